"""Compressed constants and quantization against coremltools: types, and values bit for bit; text and blob of them."""

import math

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types
from hypothesis import given, settings
from hypothesis import strategies as st

from anew.chips import load_chip
from anew.device.emulator.engine import EmulatedEngine
from anew.mil import OPS, Builder, MilError, TensorType, Value, infer_types, parse_program, print_program
from anew.mil.types import ELEMENT_BITS, integer_range, numpy_dtype

#: coremltools' numpy dtypes of elements narrower than a byte.
THEIR_DTYPES = {
    n: types.nptype_from_builtin(types.string_to_builtin(n)) for n in ELEMENT_BITS if ELEMENT_BITS[n] in range(1, 8)
}


def integers(element, *shape):
    low, high = integer_range(element)
    rng = np.random.default_rng(sum(shape) + ELEMENT_BITS[element])
    return rng.integers(low, high + 1, shape).astype(numpy_dtype(element))


def reals(element, *shape):
    return np.random.default_rng(sum(shape)).uniform(0.01, 2, shape).astype(numpy_dtype(element))


def data(element, *shape):
    """A tensor of an element type: the type beside the array, as int4 and uint4 have no dtype of their own."""
    return element, (reals if element.startswith("fp") else integers)(element, *shape)


def affine(q, zero_point, scale, axis=0):
    return {"quantized_data": q, "zero_point": zero_point, "scale": scale}, {"axis": axis}


def blockwise(q, scale, offset=None):
    return {"data": q, "scale": scale} | ({} if offset is None else {"offset": offset}), {}


def lut(indices, table, vector_axis=None):
    return {"indices": indices, "lut": table}, {} if vector_axis is None else {"vector_axis": vector_axis}


def packed_lut(indices, table, shape):
    return {"indices": indices, "lut": table}, {"shape": shape}


def sparse(nonzero, mask, shape=None):
    return {"nonzero_data": nonzero, "mask": mask}, {} if shape is None else {"shape": shape}


def bits(*values):
    return "uint1", np.array(values, np.uint8)


def dequantize(q, scale, **params):
    return {"input": q, "scale": scale}, params


MASK = "uint8", np.array([0b00101100], np.uint8)
Q8, U8 = data("int8", 4, 6, 1, 1), data("uint8", 4, 6, 1, 1)

#: Operation, opset, constants, other parameters.
CASES = [
    ("constexpr_affine_dequantize", "iOS16", *affine(Q8, data("int8"), data("fp16"))),
    ("constexpr_affine_dequantize", "iOS16", *affine(Q8, data("int8"), data("fp32"), -1)),
    ("constexpr_affine_dequantize", "iOS16", *affine(Q8, data("int8", 4), data("fp16", 4))),
    ("constexpr_affine_dequantize", "iOS16", *affine(U8, data("uint8", 6), data("fp16", 6), -3)),
    ("constexpr_affine_dequantize", "iOS16", *affine(U8, data("fp32", 4), data("fp16"))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(Q8, data("fp16", 4, 1, 1, 1))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(Q8, data("fp16", 4, 3, 1, 1))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(Q8, data("fp16", 2, 2, 1, 1), data("int8", 2, 2, 1, 1))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(U8, data("fp16", 1, 2, 1, 1), data("uint8", 1, 2, 1, 1))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(U8, data("fp16", 4, 2, 1, 1), data("fp16", 4, 2, 1, 1))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(data("int4", 4, 6), data("fp16", 4, 2))),
    (
        "constexpr_blockwise_shift_scale",
        "iOS18",
        *blockwise(data("uint4", 4, 6), data("fp32", 4, 2), data("uint4", 4, 2)),
    ),
    *[
        ("constexpr_lut_to_dense", "iOS18", *lut(data(e, 4, 6), data("fp16", 1, 1, 2 ** ELEMENT_BITS[e], 1)))
        for e in ("uint1", "uint2", "uint3", "uint4", "uint6", "uint8")
    ],
    ("constexpr_lut_to_dense", "iOS18", *lut(data("uint4", 4, 6, 1, 1), data("fp16", 4, 1, 1, 1, 16, 1))),
    ("constexpr_lut_to_dense", "iOS18", *lut(data("uint2", 4, 6), data("int8", 2, 3, 4, 1))),
    ("constexpr_lut_to_dense", "iOS18", *lut(data("uint2", 4, 6), data("fp16", 2, 1, 4, 3), 0)),
    ("constexpr_lut_to_dense", "iOS18", *lut(data("uint2", 4, 6), data("fp16", 1, 2, 4, 3), -1)),
    *[
        ("constexpr_lut_to_dense", "iOS16", *packed_lut(data("uint8", n), data("fp16", entries), (5, 3)))
        for entries, n in ((2, 2), (4, 4), (16, 8), (64, 12), (256, 15))
    ],
    ("constexpr_sparse_to_dense", "iOS18", *sparse(data("fp16", 3), bits((1, 0, 1), (0, 0, 1)))),
    (
        "constexpr_sparse_to_dense",
        "iOS16",
        *sparse(data("fp16", 3), ("uint8", np.array([0b00101100], np.uint8)), (2, 3)),
    ),
    ("constexpr_cast", "iOS16", {"source_val": data("fp16", 2, 3)}, {"output_dtype": "fp32"}),
    ("dequantize", "iOS18", *dequantize(Q8, data("fp16"))),
    ("dequantize", "iOS18", *dequantize(Q8, data("fp16", 4), axis=0)),
]
IDS = [f"{kind}-{n}" for n, (kind, *_) in enumerate(CASES)]


def theirs(opset, kind, tensors, params):
    """What coremltools makes of the operation, and the value it decompresses to."""
    with Function({"unused": mb.placeholder((1,))}, getattr(ct.target, opset)):
        arrays = {n: x.astype(THEIR_DTYPES.get(e, x.dtype))[()] for n, (e, x) in tensors.items()}
        arrays |= {n: np.array(p, np.uint32) if n == "shape" else p for n, p in params.items()}
        return getattr(mb, kind)(**arrays)


def ours(kind, tensors, params):
    values = {n: Value(n, TensorType(e, x.shape), x) for n, (e, x) in tensors.items()}
    return infer_types(OPS[kind], {**values, **params})[0]


def meaning(kind, tensors, params):
    absent = {p.name: None for p in OPS[kind].params if not p.required}
    return OPS[kind].meaning(**{**absent, **{n: torch.from_numpy(x) for n, (_, x) in tensors.items()}, **params})


@pytest.mark.parametrize(("kind", "opset", "tensors", "params"), CASES, ids=IDS)
def test_type_and_value(kind, opset, tensors, params):
    their = theirs(opset, kind, tensors, params)
    our = ours(kind, tensors, params)
    assert (types.string_to_builtin(our.dtype), our.shape) == (their.dtype, tuple(their.shape))
    their_value = np.asarray(their.op.materialized_val_inference())
    if kind == "dequantize":  # an operation at run time: the device rounds
        tensors = {n: (e, x.astype(np.float64)) for n, (e, x) in tensors.items()}
        np.testing.assert_allclose(meaning(kind, tensors, params).numpy(), their_value, rtol=1e-3)
        return
    our_value = meaning(kind, tensors, params).numpy()
    assert our_value.dtype == their_value.dtype == numpy_dtype(our.dtype)
    np.testing.assert_array_equal(our_value, their_value)


def test_zero_point_between_integers():
    """A zero point of fp32 is subtracted in fp32, not rounded to the scale's fp16 before."""
    tensors, params = affine(U8, ("fp32", np.float32(100.3)), ("fp16", np.float16(0.25)))
    their = theirs("iOS16", "constexpr_affine_dequantize", tensors, params).op.materialized_val_inference()
    tensors["zero_point"] = ("fp32", np.array(100.3, np.float32))
    tensors["scale"] = ("fp16", np.array(0.25, np.float16))
    np.testing.assert_array_equal(meaning("constexpr_affine_dequantize", tensors, params).numpy(), their)


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis"),
    [((), None, None), ((4,), None, 0), ((6,), (6,), -3), ((), (), None)],
)
@pytest.mark.parametrize("output", ["int8", "uint8"])
def test_quantize(scale, zero_point, axis, output):
    x = np.random.default_rng(0).uniform(-90, 90, (4, 6, 1, 1)).astype(np.float32)
    tensors = {"input": ("fp32", x), "scale": data("fp32", *scale)}
    if zero_point is not None:
        tensors["zero_point"] = data(output, *zero_point)
    params = {"output_dtype": output} | ({} if axis is None else {"axis": axis})
    their = theirs("iOS18", "quantize", tensors, params)
    our = ours("quantize", tensors, params)
    assert (types.string_to_builtin(our.dtype), our.shape) == (their.dtype, tuple(their.shape))
    codes = meaning("quantize", tensors, params).numpy()
    assert len(np.unique(codes)) > 10
    np.testing.assert_array_equal(codes, their.val)


REFUSED = [
    ("constexpr_affine_dequantize", "iOS16", *affine(data("int16", 4), data("int8"), data("fp16"))),
    ("constexpr_affine_dequantize", "iOS16", *affine(Q8, data("int8"), data("fp16", 3))),
    ("constexpr_affine_dequantize", "iOS16", *affine(Q8, data("int8"), data("fp16", 4, 1, 1, 1))),
    ("constexpr_affine_dequantize", "iOS16", *affine(Q8, data("int8", 5), data("fp16"))),
    ("constexpr_affine_dequantize", "iOS16", *affine(Q8, data("int8"), data("fp16"), 4)),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(Q8, data("fp16", 3, 1, 1, 1))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(Q8, data("fp16", 4))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(Q8, data("fp16", 4, 1, 1, 1), data("int8", 4, 6, 1, 1))),
    ("constexpr_blockwise_shift_scale", "iOS18", *blockwise(Q8, data("fp16", 4, 1, 1, 1), data("uint8", 4, 1, 1, 1))),
    ("constexpr_lut_to_dense", "iOS18", *lut(data("uint4", 4, 6), data("fp16", 1, 1, 8, 1))),
    ("constexpr_lut_to_dense", "iOS18", *lut(data("uint4", 4, 6), data("fp16", 16))),
    ("constexpr_lut_to_dense", "iOS18", *lut(data("uint4", 4, 6), data("fp16", 3, 1, 16, 1))),
    ("constexpr_lut_to_dense", "iOS18", *lut(data("uint4", 4, 6), data("fp16", 1, 1, 16, 2))),
    ("constexpr_lut_to_dense", "iOS16", *packed_lut(data("uint8", 9), data("fp16", 16), (5, 3))),
    ("constexpr_lut_to_dense", "iOS16", *packed_lut(data("uint8", 6), data("fp16", 8), (5, 3))),
    ("constexpr_sparse_to_dense", "iOS16", *sparse(data("fp16", 3), ("uint8", np.array([7, 0], np.uint8)), (2, 3))),
    ("constexpr_cast", "iOS16", {"source_val": data("fp16", 2)}, {"output_dtype": "int8"}),
    ("dequantize", "iOS18", *dequantize(Q8, data("fp16", 4))),
    ("dequantize", "iOS18", *dequantize(Q8, data("fp16"), axis=0)),
]


@pytest.mark.parametrize(("kind", "opset", "tensors", "params"), REFUSED)
def test_refused(kind, opset, tensors, params):
    with pytest.raises(MilError, match=kind):
        ours(kind, tensors, params)
    with pytest.raises((ValueError, AssertionError, NotImplementedError, TypeError)):
        theirs(opset, kind, tensors, params)


def test_a_mask_that_sets_another_count_is_refused_when_decompressed():
    tensors, params = sparse(data("fp16", 2), bits((1, 0, 1), (0, 0, 1)))
    with pytest.raises(MilError, match="mask sets 3 elements, but 2 are given"):
        meaning("constexpr_sparse_to_dense", tensors, params)


# ---- as text


def stored_program(kind, tensors, params):
    """A program that returns its input times the decompressed constant."""
    b = Builder()
    constants = {n: b.constant(x if x.shape else x.item(), TensorType(e, x.shape), n) for n, (e, x) in tensors.items()}
    w = b.op(kind, "w", **constants, **params)
    return b.program([b.op("mul", "y", x=b.input("x", w.shape), y=w)])


FP16 = [c for c in CASES if c[0] != "dequantize" and ours(c[0], *c[2:]).dtype == "fp16"]


@pytest.mark.parametrize(("kind", "opset", "tensors", "params"), FP16)
def test_text_round_trip_and_emulator(kind, opset, tensors, params):
    printed = print_program(stored_program(kind, tensors, params))
    parsed = parse_program(*printed)
    assert print_program(parsed) == printed
    assert ("()[" in printed[0].split(kind)[1]) == (opset == "iOS16")  # the older operations stand in brackets
    engine = EmulatedEngine(load_chip("m4"))
    operation = engine.compile(*printed).operation()
    x, y = (engine.buffers.lease(parsed.main.inputs[0].shape).fill_(1.0) for _ in "xy")
    operation.bind({"x": x, "y": y})
    operation.execute()
    torch.testing.assert_close(y, meaning(kind, tensors, params), rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_blockwise_constant(data):
    """Any element type, blocks and numbers: the same text, blob and value after a round trip."""
    element = data.draw(st.sampled_from(["int4", "uint4", "int8", "uint8"]))
    blocks = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    sizes = tuple(b * data.draw(st.integers(1, 3)) for b in blocks)
    codes = data.draw(
        st.lists(st.integers(*integer_range(element)), min_size=math.prod(sizes), max_size=math.prod(sizes))
    )
    scales = data.draw(st.lists(st.floats(-8, 8, width=16), min_size=math.prod(blocks), max_size=math.prod(blocks)))
    tensors, params = blockwise(
        (element, np.array(codes, numpy_dtype(element)).reshape(sizes)),
        ("fp16", np.array(scales, np.float16).reshape(blocks)),
    )
    kind = "constexpr_blockwise_shift_scale"
    printed = print_program(stored_program(kind, tensors, params))
    parsed = parse_program(*printed)
    assert print_program(parsed) == printed
    read = {v.name: v for v in parsed.main.constants()}
    assert read["data"].type == TensorType(element, sizes)
    np.testing.assert_array_equal(read["data"].const, tensors["data"][1])
    their = theirs("iOS18", kind, tensors, params).op.materialized_val_inference()
    np.testing.assert_array_equal(meaning(kind, tensors, params).numpy(), their)


def test_a_constant_in_brackets_and_elsewhere_is_also_named():
    b = Builder()
    q, scale = b.array(np.ones((2, 2)), "q", "int8"), b.scalar(0.5)
    w = b.op(
        "constexpr_affine_dequantize",
        quantized_data=q,
        zero_point=b.constant(0, TensorType("int8")),
        scale=scale,
        axis=0,
    )
    printed = print_program(b.program([b.op("mul", x=w, y=scale), b.op("mul", x=b.input("x", (2, 2)), y=w)]))
    assert printed[0].count("= const()") == 1
    assert print_program(parse_program(*printed)) == printed
