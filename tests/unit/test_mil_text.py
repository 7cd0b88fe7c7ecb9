"""MIL text: golden programs, round trips of random programs, lines seen in the field, errors with their position."""

import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anew.mil import BlobWriter, Builder, MilError, Op, Program, TensorType, parse_program, print_program

GOLDEN = Path(__file__).parent.parent / "golden"


def attention_program():
    """A head of attention with a weight, a scale, a small mask, a concat and a reduction."""
    b = Builder()
    x = b.input("x", (1, 16, 1, 8))
    w = b.array(np.arange(256).reshape(16, 16, 1, 1) / 256, "w")
    conv = {"strides": (1, 1), "pad_type": "valid", "pad": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1}
    q = b.op("conv", "q", x=x, weight=w, **conv)
    heads = b.op("reshape", "heads", x=q, shape=(1, 2, 8, 8))
    scores = b.op("matmul", "scores", x=heads, y=heads, transpose_x=True, transpose_y=False)
    scaled = b.op("mul", "scaled", x=scores, y=0.125)
    masked = b.op("add", "masked", x=scaled, y=b.array(np.array([[0, -65504, 0.1, 6e-8] * 2]), "mask"))
    weights = b.op("softmax", "weights", x=masked, axis=-1)
    total = b.op("reduce_sum", "total", x=weights, axes=(-1,), keep_dims=True)
    out = b.op("concat", "out", values=(weights, total), axis=3, interleave=False)
    return b.program([out, q])


def constants_program():
    """A constant of every element type, in the text and, where the format has the type, in the blob."""
    b = Builder()
    x = b.input("x", (2,))
    for dtype in ("fp16", "fp32", "int8", "uint8", "int16", "uint16", "int32", "uint64", "bool"):
        scalar = True if dtype == "bool" else 1.5 if dtype.startswith("fp") else 7
        b.constant(scalar, TensorType(dtype), f"{dtype}_scalar")
        b.array(np.array([[1, 0, 3]]), f"{dtype}_small", dtype)
        b.array(np.arange(12).reshape(3, 4), f"{dtype}_large", dtype)
    b.constant((0,) * 12, TensorType("int32", (12,)), "vector")
    b.constant('a "quoted" \\ text\nof two lines', TensorType("string"), "text")
    b.array(np.array([np.inf, -np.inf, np.nan, -0.0, 2**-24, 65504]), "extremes")
    b.constant(-np.inf, TensorType("fp16"), "low")
    return b.program([b.op("relu", x=x)])


PROGRAMS = {"attention": attention_program, "constants": constants_program}


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden_text(name):
    text, weights = print_program(PROGRAMS[name]())
    assert text == (GOLDEN / f"{name}.mil").read_text()
    assert print_program(parse_program(text, weights)) == (text, weights)


def function(name, kind):
    b = Builder()
    x = b.input("x", (16,))
    return b.function([b.op(kind, "out", x=x, y=b.array(np.arange(16)))], name)


def test_functions_share_equal_weights():
    program = Program({name: function(name, kind) for name, kind in [("main", "add"), ("other", "mul")]})
    text, weights = print_program(program)
    assert text.count("offset = uint64(64)") == 2
    assert len(weights) == 64 + 64 + 32
    parsed = parse_program(text, weights)
    assert list(parsed.functions) == ["main", "other"]
    assert print_program(parsed) == (text, weights)


def test_the_weights_path_is_a_parameter():
    text, weights = print_program(attention_program(), "@model_path/weights/weights.bin")
    assert 'BLOBFILE(path = string("@model_path/weights/weights.bin"), offset = uint64(64))' in text
    assert print_program(parse_program(text, weights))[1] == weights


def test_payloads_have_the_types_of_the_ir():
    text, weights = print_program(constants_program())
    consts = {v.name: v for v in parse_program(text, weights).main.constants()}
    assert consts["vector"].const == (0,) * 12
    assert consts["text"].const == 'a "quoted" \\ text\nof two lines'
    assert consts["low"].const == -np.inf
    assert [type(consts[f"{d}_scalar"].const) for d in ("fp16", "uint64", "bool")] == [float, int, bool]
    for name in ("fp16_small", "fp16_large", "int8_large", "int32_large", "bool_large"):
        payload = consts[name].const
        assert isinstance(payload, np.ndarray)
        assert TensorType(name.split("_")[0], payload.shape) == consts[name].type
    expected = np.array([np.inf, -np.inf, np.nan, -0.0, 2**-24, 65504], np.float16)
    np.testing.assert_array_equal(consts["extremes"].const, expected)
    assert np.signbit(consts["extremes"].const[3])


# ---- random programs

_UNARY = ("abs", "relu", "square", "exp", "sqrt", "erf", "sigmoid", "silu", "tanh", "rsqrt", "inverse", "log")
_BINARY = ("add", "sub", "mul", "maximum", "minimum", "real_div", "pow")
_floats = st.floats(width=16) | st.sampled_from([0.0, -0.0, 1e-7, 65504.0, 0.1])


@st.composite
def programs(draw):
    """A program of random operations on random earlier values."""
    b = Builder()
    shapes = st.tuples(*[st.integers(1, 4)] * 4)
    values = [b.input(f"x{i}", draw(shapes), draw(st.sampled_from(["fp16", "fp32"]))) for i in range(2)]
    for step in range(draw(st.integers(1, 12))):
        x = draw(st.sampled_from(values))
        values.append(draw(st.sampled_from(STEPS))(b, draw, x, f"v{step}"))
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
    return b.program(outputs)


def _axis(draw, x):
    return draw(st.integers(-x.type.rank, x.type.rank - 1))


def _unary(b, draw, x, hint):
    return b.op(draw(st.sampled_from(_UNARY)), hint, x=x)


def _gelu(b, draw, x, hint):
    return b.op("gelu", hint, x=x, mode=draw(st.sampled_from(["EXACT", "TANH_APPROXIMATION"])))


def _scalar(b, draw, x, hint):
    half = b.op("cast", x=x, dtype="fp16")
    return b.op(draw(st.sampled_from(_BINARY)), hint, x=half, y=draw(_floats))


def _array(b, draw, x, hint):
    count = x.type.numel
    numbers = np.array(draw(st.lists(_floats, min_size=count, max_size=count)), np.float32)
    with np.errstate(over="ignore"):
        return b.op(draw(st.sampled_from(_BINARY)), hint, x=x, y=b.array(numbers.reshape(x.shape), "k", x.type.dtype))


def _matmul(b, draw, x, hint):
    flip = draw(st.booleans())
    return b.op("matmul", hint, x=x, y=x, transpose_x=flip, transpose_y=not flip)


def _conv(b, draw, x, hint):
    weight = b.array(np.full((3, x.shape[1], 1, 1), draw(st.integers(0, 3))), dtype=x.type.dtype)
    pad_type = draw(st.sampled_from(["valid", "same", "custom"]))
    pad = tuple(draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)))
    strides = (draw(st.integers(1, 2)), 1)
    params = {"strides": strides, "pad_type": pad_type, "pad": pad, "dilations": (1, 1), "groups": 1}
    return b.op("conv", hint, x=x, weight=weight, **params)


def _reshape(b, draw, x, hint):
    return b.op("reshape", hint, x=x, shape=(x.shape[0], 1, -1, x.shape[3]))


def _transpose(b, draw, x, hint):
    return b.op("transpose", hint, x=x, perm=draw(st.permutations(range(4))))


def _slice(b, draw, x, hint):
    begin = [draw(st.integers(0, n - 1)) for n in x.shape]
    return b.op("slice_by_size", hint, x=x, begin=begin, size=(-1, 1, -1, -1))


def _concat(b, draw, x, hint):
    return b.op("concat", hint, values=(x,) * draw(st.integers(1, 3)), axis=_axis(draw, x), interleave=False)


def _tile(b, draw, x, hint):
    return b.op("tile", hint, x=x, reps=[draw(st.integers(1, 2)), 1, 1, 1])


def _pad(b, draw, x, hint):
    pad = draw(st.lists(st.integers(0, 1), min_size=8, max_size=8))
    return b.op("pad", hint, x=x, pad=pad, mode="constant", constant_val=draw(_floats))


def _reduce(b, draw, x, hint):
    kind = draw(st.sampled_from(["reduce_sum", "reduce_mean", "reduce_max", "reduce_min"]))
    return b.op(kind, hint, x=x, axes=(_axis(draw, x),), keep_dims=True)


def _softmax(b, draw, x, hint):
    return b.op("softmax", hint, x=x, axis=_axis(draw, x))


def _split(b, draw, x, hint):
    axis = _axis(draw, x)
    first = draw(st.integers(1, x.shape[axis]))
    sizes = [first, x.shape[axis] - first] if first < x.shape[axis] else [first]
    return draw(st.sampled_from(b.results("split", hint, x=x, split_sizes=sizes, axis=axis)))


def _slice_by_index(b, draw, x, hint):
    mask = draw(st.none() | st.lists(st.booleans(), min_size=4, max_size=4))
    stride = draw(st.none() | st.lists(st.sampled_from([1, 2]), min_size=4, max_size=4))
    return b.op("slice_by_index", hint, x=x, begin=(0,) * 4, end=x.shape, stride=stride, begin_mask=mask)


def _affine(b, draw, x, hint):
    """A constant in brackets, its numbers shared with others in brackets or not."""
    codes = b.array(np.full((1, 4, 1, 1), draw(st.integers(-9, 9))), "codes", "int8")
    zero, scale = b.constant(draw(st.integers(-9, 9)), TensorType("int8")), b.scalar(draw(_floats))
    weight = b.op("constexpr_affine_dequantize", quantized_data=codes, zero_point=zero, scale=scale, axis=1)
    return b.op("tile", hint, x=weight, reps=(1, 1, draw(st.integers(1, 3)), 1))


def _blockwise(b, draw, x, hint):
    element = draw(st.sampled_from(["int4", "uint4", "int8"]))
    codes = b.array(np.arange(8).reshape(1, 8, 1, 1) % 8, "codes", element)
    blocks = b.array(np.array(draw(st.lists(_floats, min_size=2, max_size=2))).reshape(1, 2, 1, 1), "blocks")
    return b.op("identity", hint, x=b.op("constexpr_blockwise_shift_scale", data=codes, scale=blocks))


def _layer_norm(b, draw, x, hint):
    half = b.op("cast", x=x, dtype="fp16")
    gamma = draw(st.none() | st.just(b.array(np.full(x.shape[3], 0.5), "gamma")))
    return b.op("layer_norm", hint, x=half, axes=(-1,), gamma=gamma, epsilon=0.25)


STEPS = [
    _split,
    _slice_by_index,
    _affine,
    _blockwise,
    _layer_norm,
    _unary,
    _gelu,
    _scalar,
    _array,
    _matmul,
    _conv,
    _reshape,
    _transpose,
    _slice,
    _concat,
    _tile,
    _pad,
    _reduce,
]
STEPS.append(_softmax)


def same_payload(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    return type(a) is type(b) and repr(a) == repr(b)  # as text, nan equals itself


@settings(max_examples=150, deadline=None)
@given(program=programs())
def test_round_trip(program):
    text, weights = print_program(program)
    parsed = parse_program(text, weights)
    assert print_program(parsed) == (text, weights)
    assert [v.name for v in parsed.main.outputs] == [v.name for v in program.main.outputs]
    for ours, theirs in zip(*(computed(p.main) for p in (program, parsed)), strict=True):
        assert (ours.kind, list(ours.inputs)) == (theirs.kind, list(theirs.inputs))
        assert [(v.name, v.type) for v in ours.outputs] == [(v.name, v.type) for v in theirs.outputs]
        assert [v.type for v in ours.operands()] == [v.type for v in theirs.operands()]
        for a, b in zip((*ours.operands(), *ours.outputs), (*theirs.operands(), *theirs.outputs), strict=True):
            assert a.constant == b.constant
            assert same_payload(a.const, b.const)


def computed(function):
    """The operations but ``const``: constants that stand in brackets have no name, and may come in another order."""
    return [op for op in function.ops if op.kind != "const"]


def error_of(text, weights):
    try:
        parse_program(text, weights)
    except MilError as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_text_is_a_located_error_or_parses(data):
    """No edit of the text ends in another exception than MilError, and that one says where."""
    text, weights = print_program(attention_program())
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 12, len(text))))
    junk = data.draw(st.sampled_from(["", *' ()[],;"<>=é', "x", "0", "-1", "1e9", "tensor", "BLOBFILE"]))
    message = error_of(text[:start] + junk + text[end:], weights)
    assert message is None or message.startswith("line ")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_tokens_moved_are_a_located_error_or_parse(data):
    """No text of other tokens than meant ends in another exception, however far it still parses."""
    text, weights = print_program(data.draw(programs()))
    tokens = re.findall(r'"[^"]*"|[\w.+-]+|\s+|.', text)
    junk = [*"()[]{}<>,;=", "const", "tensor", "int32", "BLOBFILE", "-1", "99999999999", "0x1p+9999", "true", '""']
    for _ in range(data.draw(st.integers(1, 4))):
        at, other = (data.draw(st.integers(0, len(tokens) - 1)) for _ in range(2))
        edit = data.draw(st.sampled_from(["drop", "repeat", "swap", "copy", "junk"]))
        if edit == "drop":
            tokens[at] = ""
        elif edit == "repeat":
            tokens[at] *= 2
        elif edit == "swap":
            tokens[at], tokens[other] = tokens[other], tokens[at]
        else:
            tokens[at] = tokens[other] if edit == "copy" else data.draw(st.sampled_from(junk))
    message = error_of("".join(tokens), weights)
    assert message is None or message.startswith("line ")


@pytest.mark.parametrize(
    "nest", ["tensor<fp16, [1]>(" + "[" * 10000, "tensor<" * 10000, "string(BLOBFILE(path = " * 10000, "(" * 10000]
)
def test_deep_nesting_is_an_error(nest):
    message = error_of(program_text(f"fp16 c = const()[val = {nest}"), b"")
    assert message.startswith("line 4, ")


def test_time_grows_with_the_size_of_the_text():
    """Ten thousand operations, with literals inside, parse and print in seconds; an error late in them likewise."""
    line = 'tensor<fp16, [2, 3]> {} = softmax(x = {}, axis = -1)[name = string("y")];\n'
    names = ["x", *(f"v{i}" for i in range(10000))]
    body = "".join(line.format(new, old) for old, new in itertools.pairwise(names))
    start = time.perf_counter()
    program = parse_program(program_text(body, names[-1]))
    assert len(print_program(program)[0].splitlines()) > 20000
    assert error_of(program_text(body + "!", names[-1]), b"").startswith("line 10004, column 1: expected a type")
    assert time.perf_counter() - start < 20  # about one second on an idle processor


# ---- text that anew does not print


def program_text(body, result="out", inputs="tensor<fp16, [2, 3]> x", header="program(1.3)", target="ios18"):
    return f"{header}\n{{\n    func main<{target}>({inputs}) {{\n        {body}\n    }} -> ({result});\n}}\n"


def parsed_op(body, name, inputs, **kwargs) -> Op:
    function = parse_program(program_text(body, name, inputs, **kwargs)).main
    return next(op for op in function.ops if op.output.name == name)


CONV_CONSTANTS = """
string pt = const()[name=string("pt"), val=string("valid")];
tensor<int32, [2]> st = const()[name=string("st"), val=tensor<int32, [2]>([1,1])];
tensor<int32, [4]> pd = const()[name=string("pd"), val=tensor<int32, [4]>([0,0,0,0])];
tensor<int32, [2]> dl = const()[name=string("dl"), val=tensor<int32, [2]>([1,1])];
int32 gr = const()[name=string("gr"), val=int32(1)];
tensor<fp16, [768,768,1,1]> Wq = const()[name=string("Wq"), val=tensor<fp16, [768,768,1,1]>(BLOBFILE(path=string("@model_path/weights/wq.bin"), offset=uint64(64)))];
"""  # noqa: E501

#: Lines of published ANE programs: inputs, constants before, the line, its result.
FIELD_LINES = [
    (
        "tensor<fp16, [1,768,1,256]> xn",
        CONV_CONSTANTS,
        'tensor<fp16, [1,768,1,256]> qf = conv(dilations=dl,groups=gr,pad=pd,pad_type=pt,strides=st,weight=Wq,x=xn)[name=string("cq")];',  # noqa: E501
    ),
    (
        "tensor<fp16, [1,12,64,256]> q, tensor<fp16, [1,12,64,256]> k",
        'bool tx = const()[name=string("tx"), val=bool(true)]; bool ty = const()[name=string("ty"), val=bool(false)];',
        'tensor<fp16, [1,12,256,256]> sc1 = matmul(transpose_x=tx,transpose_y=ty,x=q,y=k)[name=string("mm1")];',
    ),
    (
        "tensor<fp16, [1,768,1,256]> x, tensor<fp16, [1,1,1,256]> rrms",
        "",
        'tensor<fp16, [1,768,1,256]> xr = mul(x=x,y=rrms)[name=string("xr")];',
    ),
    (
        "tensor<fp16, [1,12,256,256]> sc2, tensor<fp16, [1,1,256,256]> cm",
        "",
        'tensor<fp16, [1,12,256,256]> ms = add(x=sc2,y=cm)[name=string("msk")];',
    ),
    (
        "tensor<fp16, [1,768,1,256]> dyw, tensor<fp16, [1,768,1,256]> xc",
        "",
        'tensor<fp16, [1,768,1,256]> diff = sub(x=dyw,y=xc)[name=string("dif")];',
    ),
    (
        "tensor<fp16, [1,1,1,256]> ss3",
        'fp16 nhalf = const()[name=string("nhalf"), val=fp16(-0.500000)];',
        'tensor<fp16, [1,1,1,256]> rrms = pow(x=ss3,y=nhalf)[name=string("rrms")];',
    ),
    (
        "tensor<fp16, [1,768,1,256]> sq",
        'tensor<int32, [1]> rax = const()[name=string("rax"), val=tensor<int32, [1]>([1])]; '
        'bool kd = const()[name=string("kd"), val=bool(true)];',
        'tensor<fp16, [1,1,1,256]> ss = reduce_sum(x=sq,axes=rax,keep_dims=kd)[name=string("ss")];',
    ),
    (
        "tensor<fp16, [1,2048,1,256]> h1",
        "",
        'tensor<fp16, [1,2048,1,256]> sig = sigmoid(x=h1)[name=string("sg")];',
    ),
    (
        "tensor<fp16, [1,12,256,256]> ms",
        'int32 sax = const()[name=string("sax"), val=int32(-1)];',
        'tensor<fp16, [1,12,256,256]> aw = softmax(axis=sax,x=ms)[name=string("sm")];',
    ),
    (
        "tensor<fp16, [1,768,1,256]> qf",
        'tensor<int32, [4]> qsh = const()[name=string("qsh"), val=tensor<int32, [4]>([1,12,64,256])];',
        'tensor<fp16, [1,12,64,256]> q4 = reshape(shape=qsh,x=qf)[name=string("rq")];',
    ),
    (
        "tensor<fp16, [1,12,64,256]> q4",
        'tensor<int32, [4]> pm = const()[name=string("pm"), val=tensor<int32, [4]>([0,1,3,2])];',
        'tensor<fp16, [1,12,256,64]> q = transpose(perm=pm,x=q4)[name=string("tq")];',
    ),
    (
        "tensor<fp16, [1,1536,1,256]> inp",
        'tensor<int32, [4]> b0 = const()[name=string("b0"), val=tensor<int32, [4]>([0,0,0,0])]; '
        'tensor<int32, [4]> sz = const()[name=string("sz"), val=tensor<int32, [4]>([1,768,1,256])];',
        'tensor<fp16, [1,768,1,256]> dy = slice_by_size(x=inp,begin=b0,size=sz)[name=string("sdy")];',
    ),
    (
        ", ".join(f"tensor<fp16, [1,768,1,256]> {n}" for n in ("oo", "qf", "kf", "vf", "af", "xn")),
        'int32 cax = const()[name=string("cax"), val=int32(1)]; '
        'bool cid = const()[name=string("cid"), val=bool(false)];',
        'tensor<fp16, [1,4608,1,256]> out = concat(axis=cax,interleave=cid,values=(oo,qf,kf,vf,af,xn))[name=string("cat")];',  # noqa: E501
    ),
    (
        "tensor<fp32, [1,64,1,32]> x",
        'string to16 = const()[name=string("to16"), val=string("fp16")];',
        'tensor<fp16, [1,64,1,32]> x16 = cast(dtype=to16,x=x)[name=string("cin")];',
    ),
]


@pytest.mark.parametrize(("inputs", "before", "line"), FIELD_LINES, ids=[c[2].split("= ")[1][:8] for c in FIELD_LINES])
def test_lines_of_published_programs(inputs, before, line):
    writer = BlobWriter()
    writer.add(np.ones((768, 768, 1, 1), np.float16))
    name = line.split("=")[0].split()[-1]
    program = parse_program(program_text(before + line, name, inputs), writer.to_bytes())
    assert program.main.ops[-1].output is program.main.outputs[0]
    printed = print_program(program)
    assert print_program(parse_program(*printed)) == printed


def test_field_constants():
    body = """
        fp16 scv = const()[name=string("scv"), val=fp16(0.125000)];
        fp16 q_scale = const()[name = string("q_scale"), val = fp16(0x1p-3)];
        fp16 low = const()[name = string("low"), val = fp16(-inf)];
        fp16 eps = const()[name = string("eps"), val = fp16(1e-05)];
        tensor<fp16, [1, 1, 2, 2]> flat = const()[name = string("flat"), val = tensor<fp16, [1,1,2,2]>([0, -65504, 0, 1])];
        tensor<fp16, [1, 1, 2, 2]> deep = const()[name = string("deep"), val = tensor<fp16, [1,1,2,2]>([[[[0, -65504],[0, 1]]]])];
        """  # noqa: E501
    consts = {v.name: v.const for v in parse_program(program_text(body, "x")).main.constants()}
    assert consts["scv"] == consts["q_scale"] == 0.125
    assert consts["low"] == -np.inf
    assert consts["eps"] == float(np.float16(1e-5))
    np.testing.assert_array_equal(consts["flat"], np.array([[[[0, -65504], [0, 1]]]], np.float16))
    np.testing.assert_array_equal(consts["deep"], consts["flat"])


def test_inline_literals_become_constants():
    body = """
        tensor<fp16, [2, 2]> x_y = matmul(x = x, y = x, transpose_x = false, transpose_y = true)[name = string("m")];
        tensor<fp16, [2, 1]> r = reduce_sum(x = x_y, axes = [1], keep_dims = bool(true))[name = string("r")];
        tensor<fp16, [2, 1]> s = softmax(x = r, axis = int32(1))[name = string("s")];
        tensor<fp16, [2, 1]> out = mul(x = s, y = fp16(0.5))[name = string("out")];
        """
    program = parse_program(program_text(body))
    consts = [(v.name, str(v.type), v.const) for v in program.main.constants()]
    assert consts == [
        ("x_y_transpose_x", "bool", False),
        ("x_y_transpose_y", "bool", True),
        ("r_axes", "tensor<int32, [1]>", (1,)),
        ("r_keep_dims", "bool", True),
        ("s_axis", "int32", 1),
        ("out_y", "fp16", 0.5),
    ]
    printed = print_program(program)
    assert print_program(parse_program(*printed)) == printed


def test_a_constant_that_the_parser_adds_takes_no_name_of_the_text():
    body = """
        tensor<fp16, [2, 3]> r = softmax(x = x, axis = 1)[name = string("r")];
        int32 r_axis = const()[name = string("r_axis"), val = int32(0)];
        tensor<fp16, [2, 3]> out = softmax(x = r, axis = r_axis)[name = string("out")];
        """
    ops = parse_program(program_text(body)).main.ops
    assert [op.output.name for op in ops] == ["r_axis_1", "r", "r_axis", "out"]


def test_a_parameter_left_out_gets_its_default():
    op = parsed_op('tensor<fp16, [2, 3]> out = inverse(x = x)[name = string("o")];', "out", "tensor<fp16, [2, 3]> x")
    assert op.inputs["epsilon"].const == float(np.float16(1e-4))


def test_the_older_header_and_scalars_as_tensors_without_axes():
    info = 'dict<tensor<string, []>, tensor<string, []>>({{"coremlc-version", "3505.4.1"}})'
    body = """
        tensor<int32, []> ax = const()[name = tensor<string, []>("ax"), val = tensor<int32, []>(1)];
        tensor<bool, []> keep = const()[name = tensor<string, []>("keep"), val = tensor<bool, []>(true)];
        tensor<fp16, [2, 3]> w = const()[name = tensor<string, []>("w"), val = tensor<fp16, [2, 3]>(BLOBFILE(path = tensor<string, []>("@model_path/weights/w.bin"), offset = tensor<uint64, []>(64)))];
        tensor<fp16, [2, 3]> y = softmax(axis = ax, x = w)[name = tensor<string, []>("y")];
        """  # noqa: E501
    writer = BlobWriter()
    writer.add(np.ones((2, 3), np.float16))
    program = parse_program(
        program_text(body, "y", header=f"program(1.0)\n[buildInfo = {info}]", target="ios16"), writer.to_bytes()
    )
    assert (program.version, program.build_info) == ("1.0", {"coremlc-version": "3505.4.1"})
    assert program.main.target == "ios16"
    assert [v.type for v in program.main.constants()][:2] == [TensorType("int32"), TensorType("bool")]


def test_attributes_are_kept():
    body = 'tensor<fp16, [2, 3]> out = relu(x = x)[name = string("o"), tag = int32(3), w = tensor<fp16, [2]>([1, 2])];'
    op = parsed_op(body, "out", "tensor<fp16, [2, 3]> x")
    assert op.attributes["tag"] == (TensorType("int32"), 3)
    printed = print_program(parse_program(program_text(body)))
    assert "tag = int32(3), w = tensor<fp16, [2]>([0x1p+0, 0x1p+1])" in printed[0]
    assert print_program(parse_program(*printed)) == printed


# ---- errors


def const(type, value):
    return f'{type} c = const()[name = string("c"), val = {value}];'


def softmax(axis):
    return f'tensor<fp16, [2, 3]> out = softmax(x = x, axis = {axis})[name = string("out")];'


def blob(path="w", offset="uint64(64)", type="tensor<fp16, [2]>", at=""):
    return const(type, f'{type}({at}BLOBFILE(path = string("{path}"), offset = {offset}))')


PART = "tensor<fp16, [2, 1]>"


def affine(axis):
    data = "quantized_data = tensor<int8, [2, 2]>([1, 2, 3, 4]), scale = fp16(0.5), zero_point = int8(1)"
    return f"tensor<fp16, [2, 2]> w = constexpr_affine_dequantize()[{axis}{data}];"


#: Body of a function of x: tensor<fp16, [2, 3]>, with @ before the token that the error is at; what it says.
ERRORS = [
    ("tensor<fp16, [2, 3]> out = @warp(x = x)[];", "operation 'warp' is not known to anew"),
    ("tensor<fp16, [2, 3]> out = @soft_max(x = x)[];", "'soft_max' is not known to anew; did you mean 'softmax'?"),
    ("tensor<fp16, [2, 3]> out = relu(x = @z)[];", "'z' is not defined"),
    ("tensor<fp16, [2, 3]> out = relu(x = @out)[];", "'out' is not defined"),
    ("tensor<fp16, [2, 3]> @x = relu(x = x)[];", "'x' is defined twice"),
    (
        "tensor<fp16, [2, 4]> out = @relu(x = x)[];",
        "relu: 'out' is declared tensor<fp16, [2, 4]>, but the operation gives tensor<fp16, [2, 3]>",
    ),
    ("tensor<fp32, [2, 3]> out = @relu(x = x)[];", "is declared tensor<fp32, [2, 3]>, but"),
    ("tensor<fp16, [2, 3]> out = relu(x = x, @y = x)[];", "relu: unknown parameter 'y'; it takes x"),
    ("tensor<fp16, [2, 3]> out = relu(x = x, @x = x)[];", "relu: parameter 'x' is given twice"),
    ("tensor<fp16, [2, 3]> out = @relu()[];", "relu: parameter 'x' is missing"),
    ("tensor<fp16, [2, 3]> out = relu(x = @(x, x))[];", "relu: 'x' takes one value"),
    ("tensor<fp16, [2, 3]> out = relu(x = @0.5)[];", "a literal with its type"),
    ("tensor<fp16, [2, 3]> out = relu(x = x)@};", "expected ';', but found '}'"),
    ("tensor<fp16, [2, 3]> out = relu(x @x)[];", "expected '=', but found 'x'"),
    ("tensor<fp16, [2, 6]> out = @concat(values = x, axis = 1, interleave = false)[];", "a tuple of values"),
    ("tensor<fp16, [2, 6]> out = @concat(values = (), axis = 1, interleave = false)[];", "a tuple of values"),
    ("tensor<fp16, [2, @x]> out = relu(x = x)[];", "expected the size of an axis, but found 'x'"),
    ("tensor<@fp8, [2, 3]> out = relu(x = x)[];", "expected an element type"),
    ("@vector out = relu(x = x)[];", "expected a type, but found 'vector'"),
    ("@€", "expected a type, but found '€'"),
    (softmax("@x"), "softmax: 'axis' must be a constant int32, not tensor<fp16, [2, 3]> x"),
    (softmax("@int8(1)"), "softmax: 'axis' must be a constant int32, not int8 out_axis"),
    (softmax("@true"), "expected a value of type int32, but found 'true'"),
    (softmax("2").replace("softmax", "@softmax"), "axis 2 is outside a tensor of rank 2"),
    (const("string", 'string(@"open)'), "this string is not terminated"),
    (const("int32", "fp16(1)").replace("const", "@const"), "declared int32, but val is fp16"),
    ('int32 c = @const()[name = string("c")];', "the attribute 'val' is missing"),
    ("int32 c = const(@x = x)[val = int32(1)];", "expected ')'"),
    ("tensor<fp16, [2, 3]> out @+ relu(x = x)[];", "expected '=', but found '+'"),
    ("tensor<fp16, [2, 3]> @2out = relu(x = x)[];", "expected the name of the value, but found '2'"),
    ("(@) = relu(x = x)[];", "expected a type, but found ')'"),
    ("tensor<fp16, [2, 3]> a, tensor<fp16, [2, 3]> b = @relu(x = x)[];", "2 results are declared, but the"),
    ("tensor<fp16, [2, 3]> out = @split(x = x, num_splits = 3, axis = 1)[];", "1 results are declared, but the"),
    (f"{PART} a, {PART} @a, {PART} c = split(x = x, num_splits = 3, axis = 1)[];", "'a' is defined twice"),
    (f"{PART} a, {PART} b, fp16 c = @split(x = x, num_splits = 3, axis = 1)[];", "split: 'c' is declared fp16, but"),
    ("tensor<fp16, [2, 5]> out = @linear(x = x, weight = x)[];", "linear: 'weight' must be a constant, not tensor<"),
    ("tensor<fp16, [2, @99999999999]> out = relu(x = x)[];", "an axis of 99999999999 elements is too large"),
    (const("tensor<string, [1]>", '@tensor<string, [1]>(["a"])'), "lists of strings are not known"),
    (const("int4", "int4(@8)"), "int4 cannot hold this value"),
    (const("tensor<uint4, [2]>", "tensor<uint4, [2]>(@[3, 16])"), "uint4 cannot hold this value"),
    (affine("@axis = int8(0), "), "constexpr_affine_dequantize: 'axis' must be a constant int32, not int8 w_axis"),
    (affine("axis = int32(2), ").replace("constexpr", "@constexpr"), "axis 2 is outside a tensor of rank 2"),
    (affine("").replace("constexpr", "@constexpr"), "parameter 'axis' is missing"),
    (affine("axis = int32(0), @axis = int32(0), "), "attribute 'axis' is given twice"),
    (affine("@axis = int32(0), ").replace("()", "(axis = 0)"), "parameter 'axis' is given twice"),
    (
        affine("axis = int32(0), ").replace("constexpr", "@constexpr").replace("int8(1)", "int16(1)"),
        "zero_point is int16",
    ),
    (affine("axis = @x, "), "expected a type, but found 'x'"),
    (const("int32", "int32(@1.5)"), "expected a value of type int32, but found '1.5'"),
    (const("bool", "bool(@1)"), "expected a value of type bool"),
    (const("int8", "int8(@300)"), "int8 cannot hold this value"),
    (const("fp16", "fp16(@70000)"), "fp16 cannot hold this value"),
    (const("tensor<int32, [3]>", "tensor<int32, [3]>(@[1, 2])"), "has 3 elements, but 2 are given"),
    (const("tensor<int32, [2]>", "tensor<int32, [2]>([1 @2])"), "expected ',', but found '2'"),
    (const("tensor<int32, [2]>", "tensor<int32, [2]>([1, @])"), "expected a value of type int32, but found ']'"),
    (const("tensor<fp16, [2]>", "tensor<fp16, [2]>(@1)"), "expected '[', but found '1'"),
    (blob(offset="uint64(128)", at="@"), "offset 128 is no blob record"),
    (blob(type="tensor<fp32, [1]>", at="@"), "holds fp16, not fp32"),
    (blob(type="tensor<fp16, [3]>", at="@"), "has 4 bytes, but fp16 [3] has 6"),
    (blob(offset="@int32(64)"), "expected a uint64, but found int32"),
    (blob() + blob("other", at="@"), "in two files, 'w' and 'other'"),
]


def assert_error_at(text, message, weights=None):
    before = text[: text.index("@")]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    with pytest.raises(MilError) as error:
        parse_program(text.replace("@", ""), weights)
    assert str(error.value).startswith(f"line {line}, column {column}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(("body", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors_in_operations(body, message):
    writer = BlobWriter()
    writer.add(np.ones(2, np.float16))
    assert_error_at(program_text(body), message, writer.to_bytes())


def test_missing_weights():
    assert_error_at(program_text(blob(at="@")), "takes constants from 'w', but no weights were given")


FUNCTION = "func main<ios18>(fp16 x) {} -> (x);"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@", "expected 'program', but the text ends"),
        ("program(@x)", "expected the version of the program"),
        ("program(1.3)\n{ " + FUNCTION + "@", "expected a function or '}', but the text ends"),
        ("program(1.3)\n{ " + FUNCTION + " } @}", "expected the end of the text, but found '}'"),
        ("program(1.3)\n{ " + FUNCTION + FUNCTION.replace("main", "@main") + " }", "function 'main' is defined twice"),
        ("program(1.3) { func main<ios18>(fp16 x, fp16 @x) {} -> (x); }", "'x' is defined twice"),
        ("program(1.3) { func main<ios18>(fp16 x) {} -> (@y); }", "result 'y' is not produced by function 'main'"),
        ("program(1.3) { func main<ios18>(fp16 x) {} @; }", "expected '->', but found ';'"),
        ('program(1.3) [buildInfo = dict<string, string>({{"a" @"b"}})]', "expected ',', but found"),
        ('program(1.3) [buildInfo = dict<string, string>({{@a, "b"}})]', "expected a string, but found 'a'"),
    ],
)
def test_errors_around_operations(text, message):
    assert_error_at(text, message)


@pytest.mark.parametrize("name", ["layers.0.w", "", "0", "é", "tensor", "fp16", "true"])
def test_the_printer_refuses_names_that_mil_cannot_spell(name):
    b = Builder()
    with pytest.raises(MilError, match="cannot name a value"):
        print_program(b.program([b.op("relu", x=b.input(name, (2,)))]))


@pytest.mark.parametrize(
    ("payload", "type", "message"),
    [
        (300, TensorType("int8"), "int8 cannot hold 300"),
        (1e9, TensorType("fp16"), "fp16 cannot hold 1000000000.0"),
        ("x", TensorType("int32"), "int32 cannot hold 'x'"),
        (np.ones(3, np.float16), TensorType("fp16", (4,)), "has shape \\[3\\]"),
    ],
)
def test_the_printer_refuses_constants_that_do_not_fit(payload, type, message):
    b = Builder()
    b.constant(payload, type)
    with pytest.raises(MilError, match=message):
        print_program(b.program([b.input("x", (2,))]))
