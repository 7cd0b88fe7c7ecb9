"""Every operation against coremltools' MIL builder: its result type, and its meaning on constants.

coremltools folds an operation whose operands are all constant with numpy; that value is the oracle of the meaning.
It folds no conv and no silu: for these two only the types are compared.
"""

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types

from anew.mil import OPS, MilError, TensorType, Value, infer_types
from anew.mil.types import numpy_dtype

#: Operations that coremltools infers but does not fold: their meaning has no oracle here.
NOT_FOLDED = {"conv", "silu"}

#: Operations without any case below, with the reason. A new operation needs a case or an entry.
NOT_COVERED: dict[str, str] = {}

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
SHAPES = [(7,), (2, 3), (1, 4, 1, 8), (2, 3, 4, 5, 2)]


def binary():
    return [({"x": x, "y": y}, {}) for x, y in PAIRS]


def unary(**params):
    return [({"x": shape}, params) for shape in SHAPES]


def conv(x, weight, strides=(1, 1), pad_type="valid", pad=(0, 0, 0, 0), dilations=(1, 1), groups=1):
    params = {"strides": strides, "pad_type": pad_type, "pad": pad, "dilations": dilations, "groups": groups}
    return {"x": x, "weight": weight}, params


def matmul(x, y, transpose_x=False, transpose_y=False):
    return {"x": x, "y": y}, {"transpose_x": transpose_x, "transpose_y": transpose_y}


def reduction():
    axes = [(2, 3), (0,)], [(2, 3), (-1,)], [(2, 3), (0, 1)], [(1, 4, 1, 8), (1,)], [(2, 3, 4), (-1, 0)]
    return [({"x": x}, {"axes": a, "keep_dims": k}) for x, a in axes for k in (True, False)]


#: For each operation: the shapes of its tensors, and its other parameters.
CASES = {
    **{name: binary() for name in ("add", "sub", "mul", "maximum", "minimum", "real_div", "pow")},
    **{name: unary() for name in ("abs", "relu", "square", "exp", "sqrt", "erf", "sigmoid", "silu", "tanh")},
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
    ],
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
    **{name: reduction() for name in ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")},
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
        if params.get("dilations", (1, 1)) != (1, 1):  # coremltools takes no weight computed in the program then
            operands["weight"] = np.zeros(shapes["weight"], numpy_dtype(dtype))
        return getattr(mb, kind)(**operands, **their_params(params, dtype))


def folded(kind, arrays, params):
    """The value to which coremltools folds the operation on fp32 constants, or None."""
    with Function({"unused": mb.placeholder((1,))}, ct.target.iOS18):
        return getattr(mb, kind)(**arrays, **their_params(params, "fp32")).val


def our_types(kind, shapes, params, dtype):
    return infer_types(OPS[kind], {**each(shapes, lambda s: Value("v", TensorType(dtype, s))), **params})


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
POSITIVE = {"sqrt", "rsqrt", "log", "inverse", "pow", "real_div"}


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
    # In double precision: what is left is the rounding of coremltools' own fp32 arithmetic.
    tensors = each(arrays, lambda x: torch.tensor(x, dtype=torch.float64))
    defaults = {p.name: p.default for p in OPS[kind].params if not p.required}
    ours = OPS[kind].meaning(**tensors, **{**defaults, **params}).numpy()
    if kind == "cast":  # the emulator rounds to the new type; the meaning alone keeps the numbers
        ours = ours.astype(numpy_dtype(params["dtype"]))
    assert ours.shape == np.shape(theirs)
    np.testing.assert_allclose(ours.astype(np.float64), np.asarray(theirs, np.float64), rtol=1e-5, atol=1e-6)


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
