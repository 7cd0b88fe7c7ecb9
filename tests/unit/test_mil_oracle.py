"""Every operation against coremltools' MIL builder: its result type, and its meaning on constants.

coremltools folds an operation whose operands are all constant with numpy; that value is the oracle of the meaning.
What it does not fold (NOT_FOLDED) is compared by type only. Compressed constants and quantization: test_mil_compressed.
"""

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types
from torch.nn import functional as F

from anew.mil import OPS, MilError, TensorType, Value, infer_types
from anew.mil.types import numpy_dtype

#: Operations that coremltools infers but does not fold: their meaning has no oracle here.
NOT_FOLDED = {"conv", "silu", "max_pool", "batch_norm", "instance_norm"}

#: The operands that are truth values.
TRUTHS = {"select": ("cond",), "logical_not": ("x",)}

#: Operations without any case below, with the reason. A new operation needs a case or an entry.
NOT_COVERED: dict[str, str] = {
    **{name: "in test_mil_compressed" for name in ("quantize", "dequantize", "constexpr_affine_dequantize")},
    **{f"constexpr_{name}": "in test_mil_compressed" for name in ("lut_to_dense", "sparse_to_dense", "cast")},
    "constexpr_blockwise_shift_scale": "in test_mil_compressed",
}

MIL_TYPES = {
    "fp16": types.fp16,
    "fp32": types.fp32,
    "int32": types.int32,
    "int16": types.int16,
    "uint16": types.uint16,
    "int8": types.int8,
    "uint8": types.uint8,
    "bool": types.bool,
}

#: Shapes of x and y that broadcast.
PAIRS = [
    [(2, 3), (2, 3)],
    [(1, 4, 1, 8), (1, 1, 1, 8)],
    [(1, 4, 1, 8), (1, 4, 1, 1)],
    [(5,), (2, 3, 5)],
    [(3, 1), (1, 4)],
    [(2, 3), ()],
]
#: Shapes of a condition and of what it selects from.
TRIPLES = [[(2, 3), (2, 3), (2, 3)], [(2, 3), (2, 3), ()], [(2, 3), (), (2, 3)], [(1, 3), (4, 2, 3), (2, 3)]]
SHAPES = [(7,), (2, 3), (1, 4, 1, 8), (2, 3, 4, 5, 2)]


def binary():
    return [({"x": x, "y": y}, {}) for x, y in PAIRS]


def unary(**params):
    return [({"x": shape}, params) for shape in SHAPES]


def conv(x, weight, strides=(1, 1), pad_type="valid", pad=(0, 0, 0, 0), dilations=(1, 1), groups=1):
    params = {"strides": strides, "pad_type": pad_type, "pad": pad, "dilations": dilations, "groups": groups}
    return {"x": x, "weight": weight}, params


def pool(x, kernel_sizes, strides=(1, 1), pad_type="valid", pad=(0, 0, 0, 0)):
    params = {"kernel_sizes": kernel_sizes, "strides": strides, "pad_type": pad_type, "pad": pad, "ceil_mode": False}
    return {"x": x}, params


def matmul(x, y, transpose_x=False, transpose_y=False):
    return {"x": x, "y": y}, {"transpose_x": transpose_x, "transpose_y": transpose_y}


def reduction():
    axes = [(2, 3), (0,)], [(2, 3), (-1,)], [(2, 3), (0, 1)], [(1, 4, 1, 8), (1,)], [(2, 3, 4), (-1, 0)]
    return [({"x": x}, {"axes": a, "keep_dims": k}) for x, a in axes for k in (True, False)]


def by_index(x, begin, end, **params):
    return {"x": x}, {"begin": begin, "end": end, **params}


def norm(name, x):
    """Without and with factor and term; batch_norm is given its statistics."""
    channels = (x[1],)
    given = {"x": x, "mean": channels, "variance": channels} if name == "batch_norm" else {"x": x}
    return [(given, {"epsilon": 0.25}), ({**given, "gamma": channels, "beta": channels}, {})]


#: For each operation: the shapes of its tensors, and its other parameters.
CASES = {
    **{name: binary() for name in ("add", "sub", "mul", "maximum", "minimum", "real_div", "pow")},
    **{name: unary() for name in ("abs", "relu", "square", "exp", "sqrt", "erf", "sigmoid", "silu", "tanh")},
    **{name: binary() for name in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")},
    "sign": unary(),
    "logical_not": unary(),
    "select": [({"cond": c, "a": a, "b": b}, {}) for c, a, b in TRIPLES],
    "reverse": [({"x": (2, 3, 4)}, {"axes": axes}) for axes in ((0,), (-1,), (0, 2))],
    "max_pool": [
        pool((2, 4, 9, 10), (3, 2)),
        pool((2, 4, 9, 10), (3, 2), strides=(2, 3)),
        pool((2, 4, 9, 10), (3, 2), strides=(2, 3), pad_type="custom", pad=(1, 1, 0, 1)),
        pool((2, 4, 9, 10), (3, 2), strides=(2, 3), pad_type="same"),
    ],
    **{name: unary() + unary(epsilon=0.25) for name in ("rsqrt", "inverse", "log")},
    "gelu": [c for m in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION") for c in unary(mode=m)],
    "cast": [c for d in ("fp16", "fp32", "int32", "int8", "uint8", "int16", "uint16", "bool") for c in unary(dtype=d)],
    "matmul": [
        matmul((2, 3), (3, 4)),
        matmul((3, 2), (3, 4), transpose_x=True),
        matmul((2, 3), (4, 3), transpose_y=True),
        matmul((3, 2), (4, 3), transpose_x=True, transpose_y=True),
        matmul((1, 12, 5, 3), (1, 12, 3, 7)),
        matmul((1, 12, 5, 3), (1, 12, 7, 3), transpose_y=True),
        matmul((2, 3), (5, 3, 4)),
        matmul((4, 1, 2, 3), (6, 3, 2)),
        matmul((5, 3, 2), (1, 3, 4), transpose_x=True),
    ],
    "conv": [
        conv((1, 768, 1, 256), (64, 768, 1, 1)),
        conv((1, 4, 1, 1), (8, 4, 1, 1)),
        conv((2, 4, 9, 10), (6, 4, 3, 3)),
        conv((2, 4, 9, 10), (6, 4, 3, 2), strides=(2, 3)),
        conv((2, 4, 9, 10), (6, 4, 3, 2), strides=(2, 3), pad_type="same"),
        conv((2, 4, 9, 10), (6, 4, 3, 2), pad_type="same", dilations=(2, 1)),
        conv((1, 4, 4, 4), (6, 4, 2, 2), strides=(3, 3), pad_type="same"),
        conv((2, 4, 9, 10), (6, 4, 3, 2), pad_type="custom", pad=(1, 2, 0, 3)),
        conv((2, 4, 9, 10), (6, 4, 3, 2), pad_type="custom", pad=(1, 2, 0, 3), dilations=(3, 2)),
        conv((2, 4, 9, 10), (6, 2, 3, 3), groups=2),
        conv((2, 4, 9, 10), (8, 1, 3, 3), groups=4),
    ],
    "reshape": [
        ({"x": (2, 6)}, {"shape": (3, 4)}),
        ({"x": (2, 6)}, {"shape": (-1, 4)}),
        ({"x": (2, 6)}, {"shape": (1, 2, 1, -1)}),
        ({"x": (2, 6)}, {"shape": (12,)}),
        ({"x": (1, 1)}, {"shape": (-1,)}),
    ],
    "transpose": [
        ({"x": (2, 3)}, {"perm": (1, 0)}),
        ({"x": (1, 12, 64, 5)}, {"perm": (0, 1, 3, 2)}),
        ({"x": (2, 3, 4)}, {"perm": (2, 0, 1)}),
        ({"x": (2, 3, 4)}, {"perm": (-1, 0, -2)}),
    ],
    "slice_by_size": [
        ({"x": (4, 6)}, {"begin": (0, 0), "size": (4, 6)}),
        ({"x": (4, 6)}, {"begin": (1, 2), "size": (2, 3)}),
        ({"x": (4, 6)}, {"begin": (1, 2), "size": (-1, 1)}),
        ({"x": (1, 8, 1, 5)}, {"begin": (0, 4, 0, 0), "size": (1, 4, 1, -1)}),
    ],
    "concat": [
        ({"values": ((2, 3), (2, 3))}, {"axis": 0, "interleave": False}),
        ({"values": ((2, 3), (2, 5), (2, 1))}, {"axis": 1, "interleave": False}),
        ({"values": ((1, 4, 1, 8), (1, 2, 1, 8))}, {"axis": -3, "interleave": False}),
        ({"values": ((7,),)}, {"axis": 0, "interleave": False}),
        ({"values": ((2, 3), (2, 3))}, {"axis": 1, "interleave": True}),
        ({"values": ((2, 3, 4),) * 3}, {"axis": -3, "interleave": True}),
    ],
    "stack": [
        ({"values": ((2, 3), (2, 3))}, {"axis": 0}),
        ({"values": ((2, 3),) * 3}, {"axis": -1}),
        ({"values": ((2, 3),) * 3}, {"axis": 1}),
    ],
    "expand_dims": [
        ({"x": (2, 3)}, {"axes": (0,)}),
        ({"x": (2, 3)}, {"axes": (1, -1)}),
        ({"x": (2, 3)}, {"axes": (-2, 0)}),
    ],
    "squeeze": [
        ({"x": (1, 3, 1, 2)}, {}),
        ({"x": (1, 3, 1, 2)}, {"axes": (0,)}),
        ({"x": (1, 3, 1, 2)}, {"axes": (-2, 0)}),
    ],
    "identity": unary(),
    "split": [
        ({"x": (2, 6)}, {"num_splits": 3, "axis": 1}),
        ({"x": (2, 6)}, {"num_splits": 2, "axis": -2}),
        ({"x": (1, 6, 1, 4)}, {"split_sizes": (1, 3, 2), "axis": 1}),
        ({"x": (1, 6, 1, 4)}, {"num_splits": 2, "split_sizes": (3, 1), "axis": -1}),
    ],
    "slice_by_index": [
        by_index((4, 6), (0, 0), (4, 6)),
        by_index((4, 6), (1, 2), (3, 3)),
        by_index((4, 6), (1, -4), (-1, -1)),
        by_index((4, 6), (1, 2), (2, 100)),
        by_index((4, 7), (0, 1), (4, 7), stride=(3, 2)),
        by_index((4, 7), (3, 5), (0, 0), stride=(-1, -2)),
        by_index((4, 7), (3, 5), (0, 0), stride=(-1, -2), end_mask=(True, True)),
        by_index((1, 8, 1, 5), (0, 4, 0, 0), (1, 8, 1, 5), end_mask=(True, False, True, True)),
        by_index((1, 8, 1, 5), (0, 4, 0, 3), (1, 6, 1, 4), begin_mask=(True, False, True, True)),
        by_index((2, 3, 4), (1, 0, -1), (2, 3, 0), squeeze_mask=(True, False, True)),
        by_index((2, 3, 4), (1, 0, 2), (0, 0, 0), end_mask=(False, True, False), squeeze_mask=(True, False, True)),
    ],
    "linear": [
        ({"x": (2, 3), "weight": (5, 3)}, {}),
        ({"x": (2, 3), "weight": (5, 3), "bias": (5,)}, {}),
        ({"x": (2, 4, 1, 3), "weight": (1, 3), "bias": (1,)}, {}),
    ],
    "scaled_dot_product_attention": [
        ({"query": (2, 5, 4), "key": (2, 7, 4), "value": (2, 7, 3)}, {}),
        ({"query": (1, 3, 5, 4), "key": (1, 3, 5, 4), "value": (1, 3, 5, 4), "attn_mask": (5, 5)}, {}),
        ({"query": (1, 3, 5, 4), "key": (1, 3, 7, 4), "value": (1, 3, 7, 2), "attn_mask": (1, 1, 5, 7)}, {}),
    ],
    "layer_norm": [
        ({"x": (2, 3, 4)}, {"axes": (2,)}),
        ({"x": (2, 3, 4)}, {"axes": (-1,), "epsilon": 0.25}),
        ({"x": (2, 3, 4), "gamma": (4,), "beta": (4,)}, {"axes": (-1,)}),
        ({"x": (2, 3, 4), "gamma": (3, 4), "beta": (3, 4)}, {"axes": (1, 2)}),
        ({"x": (1, 6, 1, 5), "gamma": (6,), "beta": (6,)}, {"axes": (1,)}),
    ],
    **{name: [case for shape in SHAPES[2:] for case in norm(name, shape)] for name in ("batch_norm", "instance_norm")},
    "l2_norm": [({"x": (2, 3, 4)}, {}), ({"x": (2, 3, 4, 5)}, {"epsilon": 0.25}), ({"x": (2, 2, 3, 4, 5)}, {})],
    **{name: unary() for name in ("relu6", "softplus", "softsign", "exp2", "sin", "cos", "atan")},
    **{name: unary(alpha=0.25) for name in ("leaky_relu", "elu", "threshold")},
    **{name: unary(alpha=0.25, beta=0.5) for name in ("clamped_relu", "sigmoid_hard", "scaled_tanh")},
    **{name: unary(alpha=-0.5, beta=0.5) for name in ("clip", "linear_activation")},
    "tile": [
        ({"x": (2, 3)}, {"reps": (1, 1)}),
        ({"x": (2, 3)}, {"reps": (3, 2)}),
        ({"x": (1, 4, 1, 8)}, {"reps": (1, 2, 3, 1)}),
    ],
    "pad": [
        ({"x": (2, 3)}, {"pad": (0, 0, 0, 0), "mode": "constant", "constant_val": 0.0}),
        ({"x": (2, 3)}, {"pad": (1, 2, 0, 3), "mode": "constant", "constant_val": -1.5}),
        ({"x": (1, 4, 1, 8)}, {"pad": (0, 0, 1, 1, 0, 2, 3, 0), "mode": "constant", "constant_val": 2.0}),
    ],
    **{f"reduce_{name}": reduction() for name in ("sum", "mean", "max", "min", "l1_norm", "l2_norm")},
    **{f"reduce_{name}": reduction() for name in ("sum_square", "log_sum", "log_sum_exp")},
    "softmax": [
        ({"x": (7,)}, {"axis": 0}),
        ({"x": (2, 3)}, {"axis": -1}),
        ({"x": (1, 12, 5, 8)}, {"axis": 3}),
        ({"x": (1, 12, 1, 8)}, {"axis": 1}),
    ],
}
ALL = [pytest.param(kind, *case, id=f"{kind}-{n}") for kind, cases in CASES.items() for n, case in enumerate(cases)]


def each(tensors, make):
    """Apply ``make`` to every tensor; a parameter may have a list of them."""
    return {name: tuple(map(make, t)) if is_list(t) else make(t) for name, t in tensors.items()}


def is_list(t):
    return isinstance(t, tuple) and bool(t) and not isinstance(t[0], int)


def with_truths(kind, tensors, make):
    """The tensors of an operation, those that are conditions replaced."""
    return tensors | {name: make(tensors[name]) for name in TRUTHS.get(kind, ())}


def their_params(params, dtype):
    """Floats become scalars of the tensors' type, which coremltools wants."""
    return {k: numpy_dtype(dtype).type(v) if isinstance(v, float) else v for k, v in params.items()}


def built(kind, shapes, params, dtype):
    """What coremltools makes of the operation on inputs of these shapes, in a function of its own."""
    inputs = {}

    def declare(shape):
        name = f"in{len(inputs)}"
        inputs[name] = mb.placeholder(shape, dtype=MIL_TYPES[dtype], allow_rank0_input=True)
        return name

    names = each(shapes, declare)
    with Function(inputs, ct.target.iOS18) as function:
        operands = each(names, function.inputs.get)
        operands = with_truths(kind, operands, lambda x: mb.cast(x=x, dtype="bool"))
        operands |= {name: np.zeros(shapes[name], numpy_dtype(dtype)) for name in constants_of(kind, shapes)}
        if params.get("dilations", (1, 1)) != (1, 1):  # coremltools takes no weight computed in the program then
            operands["weight"] = np.zeros(shapes["weight"], numpy_dtype(dtype))
        return getattr(mb, kind)(**operands, **their_params(params, dtype))


def folded(kind, arrays, params):
    """The value, or values, to which coremltools folds the operation on fp32 constants; or None."""
    with Function({"unused": mb.placeholder((1,))}, ct.target.iOS18):
        arrays = with_truths(kind, arrays, lambda x: x > 0)
        results = getattr(mb, kind)(**arrays, **their_params(params, "fp32"))
        return [r.val for r in results] if isinstance(results, (tuple, list)) else results.val


def constants_of(kind, shapes):
    """The tensors that the operation wants known when compiling."""
    return [p.name for p in OPS[kind].params if p.kind == "constant" and p.name in shapes]


def our_types(kind, shapes, params, dtype):
    values = each(shapes, lambda s: Value("v", TensorType(dtype, s)))
    values = with_truths(kind, values, lambda v: Value("v", TensorType("bool", v.shape)))
    for name in constants_of(kind, shapes):
        values[name].const = np.zeros(shapes[name], numpy_dtype(dtype))
    return infer_types(OPS[kind], {**values, **params})


def test_every_operation_has_a_case():
    assert set(CASES) | set(NOT_COVERED) == set(OPS)
    assert not set(CASES) & set(NOT_COVERED)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(("kind", "shapes", "params"), ALL)
def test_type(kind, shapes, params, dtype):
    theirs = built(kind, shapes, params, dtype)
    ours = our_types(kind, shapes, params, dtype)
    for our, their in zip(ours, theirs if isinstance(theirs, (tuple, list)) else [theirs], strict=True):
        assert (MIL_TYPES[our.dtype], our.shape) == (their.dtype, tuple(their.shape))


#: Operations whose sample operands must be positive.
POSITIVE = {"sqrt", "rsqrt", "log", "inverse", "pow", "real_div", "reduce_log_sum"}


def sample(shape, low):
    return np.random.default_rng(sum(shape)).uniform(low, 3, shape).astype(np.float32)


@pytest.mark.parametrize(("kind", "shapes", "params"), ALL)
def test_meaning(kind, shapes, params):
    low = 0.25 if kind in POSITIVE or params.get("dtype", "").startswith("uint") else -3
    arrays = each(shapes, lambda s: sample(s, low))
    theirs = folded(kind, arrays, params)
    if kind in NOT_FOLDED:
        assert theirs is None
        return
    if params.get("interleave"):
        pytest.skip("coremltools folds it as if it did not interleave; see test_interleaving")
    # In double precision: what is left is the rounding of coremltools' own fp32 arithmetic.
    tensors = each(arrays, lambda x: torch.tensor(x, dtype=torch.float64))
    tensors = with_truths(kind, tensors, lambda x: (x > 0).double())
    ours = OPS[kind].meaning(**{**defaults(kind), **tensors, **params})
    for our, their in zip(as_tuple(ours), as_tuple(theirs), strict=True):
        if kind == "cast":  # the emulator rounds to the new type; the meaning alone keeps the numbers
            our = torch.from_numpy(our.numpy().astype(numpy_dtype(params["dtype"])))
        assert our.shape == np.shape(their)
        np.testing.assert_allclose(our.double().numpy(), np.asarray(their, np.float64), rtol=1e-5, atol=1e-6)


def test_interleaving():
    """The example of coremltools' documentation of concat."""
    a, b = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[7, 8], [9, 10], [11, 12]])
    joined = OPS["concat"].meaning(values=(a, b), axis=0, interleave=True)
    assert joined.tolist() == [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5)])
def test_norms_that_coremltools_does_not_fold(shape, affine):
    x, *vectors = (torch.randn(s, dtype=torch.float64) for s in (shape, *[shape[1:2]] * 4))
    gamma, beta = vectors[:2] if affine else (None, None)
    mean, variance = vectors[2], vectors[3].square()
    ours = OPS["batch_norm"].meaning(x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=0.25)
    torch.testing.assert_close(ours, F.batch_norm(x, mean, variance, gamma, beta, eps=0.25))
    ours = OPS["instance_norm"].meaning(x=x, gamma=gamma, beta=beta, epsilon=0.25)
    torch.testing.assert_close(ours, F.instance_norm(x, weight=gamma, bias=beta, eps=0.25))


def test_attention_with_a_mask_of_bool():
    q, k, v = (torch.randn(1, 2, 4, 3, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    ours = OPS["scaled_dot_product_attention"].meaning(query=q, key=k, value=v, attn_mask=mask)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, mask))


def defaults(kind):
    return {p.name: p.default for p in OPS[kind].params if not p.required}


def as_tuple(results):
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


#: Operands that do not fit, to both.
REFUSED = [
    ("add", {"x": (2, 3), "y": (2, 4)}, {}),
    ("gelu", {"x": (2, 3)}, {"mode": "TANH"}),
    ("cast", {"x": (2, 3)}, {"dtype": "fp8"}),
    ("matmul", *matmul((2, 3), (4, 3))),
    ("matmul", *matmul((2, 5, 3), (3, 3, 4))),
    ("conv", *conv((1, 4, 4, 4), (6, 3, 1, 1))),
    ("conv", *conv((1, 4, 4, 4), (6, 4, 5, 5))),
    ("conv", *conv((1, 4, 4, 4), (6, 2, 1, 1), groups=4)),
    ("conv", *conv((1, 4, 4, 4), (6, 4, 1, 1), pad_type="full")),
    ("conv", *conv((1, 4, 4, 4), (6, 4, 1, 1), strides=(1,))),
    ("reshape", {"x": (2, 6)}, {"shape": (5, -1)}),
    ("reshape", {"x": (2, 6)}, {"shape": (-1, -1)}),
    ("reshape", {"x": (2, 6)}, {"shape": (3, 3)}),
    ("transpose", {"x": (2, 3)}, {"perm": (0,)}),
    ("transpose", {"x": (2, 3)}, {"perm": (0, 2)}),
    ("concat", {"values": ((2, 3), (3, 3))}, {"axis": 1, "interleave": False}),
    ("concat", {"values": ((2, 3), (2,))}, {"axis": 0, "interleave": False}),
    ("tile", {"x": (2, 3)}, {"reps": (2,)}),
    ("tile", {"x": (2, 3)}, {"reps": (0, 1)}),
    ("slice_by_size", {"x": (2, 3)}, {"begin": (0,), "size": (1,)}),
    ("reduce_sum", {"x": (2, 3)}, {"axes": (2,), "keep_dims": True}),
    ("concat", {"values": ((2, 3), (2, 4))}, {"axis": 1, "interleave": True}),
    ("stack", {"values": ((2, 3), (2, 4))}, {"axis": 0}),
    ("stack", {"values": ((2, 3), (2, 3))}, {"axis": 3}),
    ("expand_dims", {"x": (2, 3)}, {"axes": (3,)}),
    ("split", {"x": (2, 6)}, {"axis": 1}),
    ("split", {"x": (2, 6)}, {"num_splits": 4, "axis": 1}),
    ("linear", {"x": (2, 3), "weight": (5, 4)}, {}),
    ("linear", {"x": (2, 3), "weight": (5, 3), "bias": (3,)}, {}),
    ("scaled_dot_product_attention", {"query": (2, 5, 4), "key": (2, 7, 3), "value": (2, 7, 3)}, {}),
    ("scaled_dot_product_attention", {"query": (2, 5, 4), "key": (2, 7, 4), "value": (2, 6, 3)}, {}),
    (
        "scaled_dot_product_attention",
        {"query": (2, 5, 4), "key": (2, 7, 4), "value": (2, 7, 3), "attn_mask": (5, 5)},
        {},
    ),
    ("layer_norm", {"x": (2, 3, 4), "gamma": (3,), "beta": (3,)}, {"axes": (2,)}),
    ("layer_norm", {"x": (2, 3, 4)}, {"axes": (3,)}),
    ("l2_norm", {"x": (2, 3)}, {}),
    ("clip", {"x": (2, 3)}, {"alpha": 0.5, "beta": 0.25}),
]


@pytest.mark.parametrize(("kind", "shapes", "params"), REFUSED)
def test_refused(kind, shapes, params):
    with pytest.raises(MilError):
        our_types(kind, shapes, params, "fp16")
    with pytest.raises((ValueError, IndexError, TypeError, NotImplementedError)):
        built(kind, shapes, params, "fp16")


@pytest.mark.parametrize(
    ("kind", "shapes", "params"),
    [
        ("reshape", {"x": (2, 6)}, {"shape": (-1, -2)}),
        ("transpose", {"x": (2, 3)}, {"perm": (0, 0)}),
        ("softmax", {"x": (2, 3)}, {"axis": 2}),
        ("reduce_max", {"x": (2, 3)}, {"axes": (1, -1), "keep_dims": True}),
        ("squeeze", {"x": (1, 3)}, {"axes": (1,)}),
        ("split", {"x": (2, 6)}, {"split_sizes": (1, 2), "axis": 1}),
        ("slice_by_index", {"x": (4, 6)}, {"begin": (2, 0), "end": (2, 6)}),
    ],
)
def test_refused_although_coremltools_infers_a_type(kind, shapes, params):
    built(kind, shapes, params, "fp16")
    with pytest.raises(MilError):
        our_types(kind, shapes, params, "fp16")


def test_operands_of_two_types_are_refused():
    x, y = Value("x", TensorType("fp16", (1, 4, 4, 4))), Value("y", TensorType("fp32", (1, 4, 4, 4)))
    for kind, operands in [
        ("add", {"x": x, "y": y}),
        ("matmul", {"x": x, "y": y, "transpose_x": False, "transpose_y": False}),
        ("concat", {"values": (x, y), "axis": 0, "interleave": False}),
        ("conv", {"x": x, "weight": y, **conv((), ())[1]}),
    ]:
        with pytest.raises(MilError, match="cast"):
            infer_types(OPS[kind], operands)
