"""Operations that the executor joins give what they give alone."""

import torch

from anew.chips import load_chip
from anew.device.emulator.engine import EmulatedEngine
from anew.device.emulator.rounding import round_elementwise_
from anew.mil import Builder, print_program


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
