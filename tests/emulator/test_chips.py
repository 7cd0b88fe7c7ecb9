"""What differs between chips reaches programs and arithmetic: refusals, other operations, 3x3 convolutions."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from anew.chips import known_chips, load_chip
from anew.device.emulator.conv import conv2d
from anew.device.emulator.engine import EmulatedEngine
from anew.frontend.model import compile_in
from anew.frontend.options import Options
from anew.frontend.placement import PlacementWarning
from anew.frontend.session import Session, session_for
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


def operations(function, *shapes: tuple[int, ...], **options: object) -> set[str]:
    """The MIL operations of a function's programs; its values are compared with PyTorch's."""
    inputs = [torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5 for shape in shapes]
    found = torch.compile(function, backend="anew", dynamic=False, options=options)(*inputs)
    wanted = function(*(x.double() for x in inputs))
    assert (found.double() - wanted).norm() <= 4e-3 * wanted.norm()
    return {kind for plan in session_for(Options.parse(options)).plans for kind in plan.operations}


def test_roots_where_the_chip_gives_wrong_values_after_them(fresh):
    def root(x: Tensor, y: Tensor) -> Tensor:
        return x / torch.sqrt(y)

    assert "sqrt" in operations(root, (4, 8), (8,), chip="m4")
    written = operations(root, (4, 8), (8,), chip="m1")
    assert "pow" in written
    assert "sqrt" not in written


def test_an_inverse_root_where_a_switch_refuses_it_after_a_reduction(fresh):
    def norm(x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (8,))

    assert "rsqrt" in operations(norm, (4, 8), chip="m4")
    written = operations(norm, (4, 8), chip="m4", switches={"rsqrt_after_reduce": "refuse"})
    assert "pow" in written
    assert "rsqrt" not in written


@pytest.mark.parametrize(("times", "tiled"), [(4, True), (5, False)])
def test_repetition_by_factors_that_tile_takes(times, tiled, fresh):
    assert ("tile" in operations(lambda x: x.expand(times, 8) * 2, (1, 8))) == tiled


def test_what_a_switch_refuses_runs_on_the_host(fresh):
    def softmax(x: Tensor) -> Tensor:
        return torch.softmax(x * 2, -1)

    with pytest.warns(PlacementWarning, match="softmax.*runs over 12 elements.*disputed, switch 'softmax_power_of_2'"):
        assert "softmax" not in operations(softmax, (4, 12), switches={"softmax_power_of_2": "refuse"})


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def test_products_transpose_matrices_that_the_chip_would_not(fresh):
    """Layers of 16 x 8 on a chip that moves axes with a product of up to 127: on the engine, both ways."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(Mlp(), Mlp())
    x = torch.randn(4, 8)
    wanted = copy.deepcopy(net).double()
    wanted(x.double()).square().sum().backward()
    chip = replace(load_chip("m4"), max_transpose=127)
    compile_in(net, Session(Options(strict=True), EmulatedEngine(chip, numerics="exact")))
    net(x).square().sum().backward()
    for found, p in zip(net.parameters(), wanted.parameters(), strict=True):
        assert (found.grad - p.grad).norm() <= 4e-3 * p.grad.norm()
