"""Weights of a plan as constants: the blob's bytes as coremltools reads them, the codes, the budget of procedures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coremltools.libmilstoragepython import _BlobStorageReader
from hypothesis import given
from hypothesis import strategies as st

from anew.chips import load_chip
from anew.compiler.bake import LEVELS, as_quantized, bake, quantize
from anew.device.base import DeviceError
from anew.device.emulator.engine import EmulatedEngine
from anew.mil import Builder, lookup, parse_program, print_program
from anew.mil.printer import ProgramPrinter
from anew.mil.program import Program
from anew.plan import InputPort, Operand, OutputPort, Plan, Product, ScalePlan

WEIGHT = torch.randn(24, 16, generator=torch.Generator().manual_seed(3))


def plan(transposed: bool) -> Plan:
    """A product of rows with a weight [24, 16]: with its transpose as in a linear layer, or as in its gradient."""
    b = Builder()
    x, w = b.input("x", (4, 16 if transposed else 24)), b.input("w", (24, 16))
    y = b.op("matmul", "y", x=x, y=w, transpose_x=False, transpose_y=transposed)
    text, weights = print_program(b.program([y]))
    inputs = (InputPort("x", 0, x.shape, "activation"), InputPort("w", 1, w.shape, "weight", 1))
    scales = ScalePlan((Operand(None), Operand(None)), (Product(0, 1, None, 0),))
    return Plan("p", text, weights, inputs, (OutputPort("y", y.shape, (0,), False, False),), (), (), 1, scales, 0)


@pytest.mark.parametrize("transposed", [True, False])
def test_the_blob_holds_what_coremltools_reads(tmp_path, transposed):
    baked = bake(plan(transposed), {"w"}, 8, load_chip("m4"))
    (kernel,) = baked.kernels
    kernel.fill(WEIGHT, 0)
    text, blob = print_program(Program({"main": baked.function}))
    (tmp_path / "weights.bin").write_bytes(blob)
    reader = _BlobStorageReader(str(tmp_path / "weights.bin"))
    rows, codes = quantize(WEIGHT)
    stored = {v.name: v for v in parse_program(text, blob).main.constants()}
    offsets = {line.split(" = ")[0].split()[-1]: line for line in text.splitlines() if "BLOBFILE" in line}

    def read(value, method):
        offset = int(offsets[value.name].split("uint64(")[1].split(")")[0])
        return np.array(getattr(reader, method)(offset)).reshape(stored[value.name].shape)

    wanted = codes if transposed else codes.T
    assert np.array_equal(read(kernel.data, "read_int8_data")[:, :, 0, 0], wanted)
    scale = read(kernel.scale, "read_fp16_data").view(np.float16)
    meaning = lookup("constexpr_blockwise_shift_scale").meaning
    found = meaning(torch.tensor(kernel.data.const), torch.tensor(scale), None)[:, :, 0, 0].float()
    if transposed:
        assert torch.equal(found, (rows.float() * codes).half().float())
    else:  # the rows are factors of the other operand, next to a power of two
        assert np.unique(scale).size == 1
        factors = torch.tensor(kernel.factors.const).float().reshape(-1, 1)
        assert torch.allclose(found.T * factors, rows.float() * codes, rtol=2**-10)


@given(st.integers(0, 2**16), st.integers(-14, 14), st.floats(0, 1))
def test_codes_are_the_nearest_for_every_row(seed, exponent, spread):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    weight *= torch.linspace(1, spread, 5)[:, None]
    peak = float(weight.abs().max())
    scale = 3 - int(np.ceil(np.log2(peak))) if peak else 0
    rows, codes = quantize(weight * 2.0**scale)
    assert codes.abs().max() <= LEVELS
    error = (as_quantized(weight, scale) - weight).abs() * 2.0**scale
    assert (error <= rows.float() * (0.5 + LEVELS * 2.0**-10)).all()


def test_a_weight_that_more_than_products_read_stays_an_input():
    p = plan(True)
    shared = bake(replace(p, inputs=(p.inputs[0], replace(p.inputs[1], operand=None))), {"w"}, 16, load_chip("m4"))
    assert shared.kernels == ()
    assert "not only an operand of products" in shared.refused["w"]
    assert [port.name for port in shared.inputs] == ["x", "w"]


def test_what_the_chip_refuses_stays_an_input():
    tight = replace(load_chip("m4"), max_transpose=63)
    baked = bake(plan(True), {"w"}, 16, tight)
    assert "moves axes with a product of 64" in baked.refused["w"]
    assert baked.kernels == ()


def test_procedures_of_one_program_have_their_own_constants():
    engine = EmulatedEngine(load_chip("m4"))
    baked = bake(plan(True), {"w"}, 16, engine.chip)
    printer = ProgramPrinter()
    for name, factor in (("one", 1.0), ("two", 2.0)):
        baked.kernels[0].fill(WEIGHT * factor, 0)
        baked.function.name = name
        printer.add(baked.function)
    source = printer.finish("1.3", Program({}).build_info)
    found = {}
    for name, procedure in engine.compile_procedures(*source).items():
        buffers = {p.name: engine.buffers.lease(p.type.shape) for p in procedure.ports.values()}
        buffers["x"].fill_(1.0)
        operation = procedure.operation()
        operation.bind(buffers)
        operation.execute()
        found[name] = buffers["y"].clone()
    assert torch.equal(2 * found["one"], found["two"])
    assert engine.statistics.programs == 1
    engine.chip = replace(engine.chip, procedures=1)
    with pytest.raises(DeviceError, match="a program of 2 functions; m4 takes 1 procedures"):
        engine.compile_procedures(*source)
