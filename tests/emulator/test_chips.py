"""What differs between chips reaches the arithmetic: the form of 3x3 convolutions."""

import pytest
import torch
from torch import Tensor

from anew.chips import known_chips, load_chip
from anew.device.emulator.conv import conv2d
from anew.device.emulator.engine import EmulatedEngine
from anew.mil import Builder, print_program


def convolve(chip: str, x: Tensor, weight: Tensor) -> Tensor:
    """Run a 3x3 convolution as a program on the emulated chip, ``exact``."""
    builder = Builder()
    ports = {"x": builder.input("x", x.shape), "weight": builder.input("weight", weight.shape)}
    form = {"strides": [1, 1], "pad_type": "custom", "pad": [1, 1, 1, 1], "dilations": [1, 1], "groups": 1}
    y = builder.op("conv", **ports, **form)
    engine = EmulatedEngine(load_chip(chip), numerics="exact")
    operation = engine.compile(*print_program(builder.program([y]))).operation()
    buffers = {name: engine.buffers.lease(port.type.shape) for name, port in operation.program.ports.items()}
    buffers["x"].copy_(x)
    buffers["weight"].copy_(weight)
    operation.bind(buffers)
    operation.execute()
    return buffers[y.name].float()


@pytest.mark.parametrize("chip", known_chips())
def test_convolution_takes_the_chips_form(chip: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 8, 8, generator=generator).half().float()
    weight = (torch.randn(16, 16, 3, 3, generator=generator) / 12).half().float()
    direct, winograd = (
        conv2d(x, weight, (1, 1), (1, 1, 1, 1), exact=True, winograd=winograd) for winograd in (False, True)
    )
    assert not torch.equal(direct, winograd)
    expected = winograd if load_chip(chip).convolution == "winograd-f23-width" else direct
    assert torch.equal(convolve(chip, x, weight), expected)
