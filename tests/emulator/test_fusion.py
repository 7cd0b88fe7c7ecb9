"""Operations that the executor joins give what they give alone."""

import pytest
import torch

from anew.chips import load_chip
from anew.device.emulator.engine import EmulatedEngine
from anew.device.emulator.fused import binary, defer_scale
from anew.device.emulator.mac import matmul_fast
from anew.device.emulator.rounding import round_elementwise_
from anew.mil import Builder, Value, print_program


def test_a_maximum_without_kept_axes_is_reported_beside_its_product() -> None:
    builder = Builder()
    x, y = builder.input("x", (4, 32)), builder.input("y", (32, 8))
    product = builder.op("matmul", x=x, y=y, transpose_x=False, transpose_y=False)
    top = builder.op("reduce_max", x=builder.op("abs", x=product), axes=[0, 1], keep_dims=False)
    spread = builder.op("add", x=product, y=top)
    engine = EmulatedEngine(load_chip("m4"))
    operation = engine.compile(*print_program(builder.program([product, spread]))).operation()
    buffers = {name: engine.buffers.lease(port.type.shape) for name, port in operation.program.ports.items()}
    buffers["x"].copy_(torch.arange(128.0).view(4, 32) / 64 - 1)
    buffers["y"].copy_(torch.arange(256.0).view(32, 8) / 128 - 1)
    operation.bind(buffers)
    operation.execute()
    found = buffers[product.name].float()
    assert torch.equal(buffers[spread.name].float(), round_elementwise_(found + found.abs().max()))


@pytest.mark.parametrize(
    ("factor", "largest", "deferred"),
    [
        (2.0**9, 100.0, True),
        (1.0, 65504.0, True),
        (2.0**-6, 100.0, False),  # makes subnormals
        (3.0, 100.0, False),  # rounds
        (2.0, 40000.0, False),  # overflows
    ],
)
def test_a_scale_left_to_the_product_gives_the_same_bits(factor: float, largest: float, deferred: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(size, generator=generator).mul(2.0**-12).half().float() for size in ((16, 40), (40, 24)))
    x[3, 5] = largest
    assert (defer_scale(x, factor)[0].factor == factor) is deferred
    builder = Builder()
    scales = builder.input("scales", (1, 1))
    left, right = builder.input("x", (16, 40)), builder.input("y", (40, 24))
    scaled = builder.op("mul", x=left, y=scales)
    product = builder.op("matmul", x=scaled, y=right, transpose_x=False, transpose_y=False)
    engine = EmulatedEngine(load_chip("m4"))
    operation = engine.compile(*print_program(builder.program([product]))).operation()
    buffers = {name: engine.buffers.lease(port.type.shape) for name, port in operation.program.ports.items()}
    for name, value in (("x", x), ("y", y), ("scales", torch.tensor([[factor]]))):
        buffers[name].copy_(value)
    operation.bind(buffers)
    operation.execute()
    wanted = matmul_fast(binary("mul", x, torch.tensor(factor)), y)
    assert torch.equal(buffers[product.name].float(), wanted)


def silu_and_slope(builder: Builder, x: Value) -> list[Value]:
    """The sigmoid by tanh, SiLU and its derivative; the sigmoid is read inside the chain and outside of it."""
    half = builder.op("mul", x=x, y=0.5)
    sigmoid = builder.op("mul", x=builder.op("add", x=builder.op("tanh", x=half), y=1.0), y=0.5)
    rest = builder.op("sub", x=1.0, y=sigmoid)
    slope = builder.op("mul", x=sigmoid, y=builder.op("add", x=builder.op("mul", x=x, y=rest), y=1.0))
    return [half, sigmoid, builder.op("mul", x=x, y=sigmoid), slope, builder.op("maximum", x=sigmoid, y=half)]


def test_a_chain_looked_up_gives_the_same_bits_for_every_number() -> None:
    """One program has tensors large enough for tables, the other has not and runs its operations in one chain."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    numbers = torch.where(numbers.isnan(), 0.0, numbers).view(256, 256)
    found = []
    for rows in (512, 64):
        builder = Builder()
        results = silu_and_slope(builder, builder.input("x", (rows, 256)))
        engine = EmulatedEngine(load_chip("m4"))
        program = engine.compile(*print_program(builder.program(results)))
        parts = []
        for part in torch.cat([numbers, numbers]).split(rows):
            buffers = {name: engine.buffers.lease(port.type.shape) for name, port in program.ports.items()}
            buffers["x"].copy_(part)
            operation = program.operation()
            operation.bind(buffers)
            operation.execute()
            parts.append([buffers[value.name].view(torch.int16) for value in results])
        found.append([torch.cat(column) for column in zip(*parts, strict=True)])
        assert len(program.executable.steps) == (5 if rows == 512 else 6)
    assert all(torch.equal(table, steps) for table, steps in zip(*found, strict=True))
