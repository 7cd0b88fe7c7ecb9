"""What cannot run on the engine runs on the host, in the open."""

import warnings

import pytest
import torch
from torch import nn

import anew
from anew.frontend.placement import PlacementError, PlacementWarning

pytestmark = pytest.mark.usefixtures("fresh")


class Layer(nn.Module):
    """A layer with an operation the engine does not have between two that it has."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        mixed = torch.cumsum(self.first(x).sigmoid(), 1)
        return self.second(mixed) * (x * 3).tanh()


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def gradients(function, *inputs):
    """Values and gradients of a function of tensors, for a cotangent of ordinary training's size."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype) * 1e-5)
    return [y.detach(), *(x.grad for x in inputs)]


def close(found, wanted, tolerance=3e-3):
    for a, b in zip(found, wanted, strict=True):
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


def test_values_and_gradients_with_a_host_operation_are_right():
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    reference = Stack().double()
    wanted = [*gradients(reference, x.double()), *(p.grad for p in reference.parameters())]
    net = anew.compile(Stack(), device="emulator")
    with pytest.warns(PlacementWarning):
        found = gradients(net, x)
    close([*found, *(p.grad for p in net.parameters())], wanted, tolerance=6e-3)


def test_the_warning_names_operation_shape_rule_and_source():
    net = anew.compile(Stack(), device="emulator")
    with pytest.warns(PlacementWarning) as caught:
        net(torch.randn(2, 6, 8))
    first = str(caught[0].message)
    assert first.startswith("region 1 forward: 'aten.cumsum.default' [2, 6, 8] cannot run on the engine: ")
    assert "'aten.cumsum.default' has no lowering" in first
    assert f'File "{__file__}"' in first
    assert "mixed = torch.cumsum(self.first(x).sigmoid(), 1)" in first
    assert first.endswith("; it runs on the host")


def test_statistics_list_what_runs_on_the_host():
    net = anew.compile(Stack(), device="emulator")
    with pytest.warns(PlacementWarning):
        net(torch.randn(2, 6, 8)).sum().backward()
    found = anew.statistics(net).host_operations
    assert {"aten.cumsum.default"} == {h.operation for h in found}
    assert found[0].region == "region 1 forward"
    assert found[0].shape == (2, 6, 8)
    assert found[0].rule == "'aten.cumsum.default' has no lowering"
    assert "test_placement.py" in found[0].source


def test_strict_raises_the_same_sentence():
    net = anew.compile(Stack(), device="emulator", strict=True)
    sentence = r"region 1 forward: 'aten.cumsum.default' \[2, 6, 8\] cannot run on the engine: .*has no lowering"
    with pytest.raises(PlacementError, match=sentence):
        net(torch.randn(2, 6, 8))


def test_a_model_that_fits_warns_of_nothing(llama):
    net = anew.compile(llama(), device="emulator")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlacementWarning)
        net(input_ids=torch.arange(8)[None]).logits.sum().backward()
    assert anew.statistics(net).host_operations == ()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (torch.cumsum((x * 2).sigmoid(), 1) * (x * 3).tanh()).exp(),  # a program's cotangent feeds another
        lambda x: torch.cumsum(x.sigmoid() @ x.mT, 0).tanh() @ x,
        lambda x: torch.cumsum(torch.cumsum(x * 2, 1).tanh() * x, 0) * 3,
        lambda x: torch.topk(x * 2, 3)[0] * x[..., :3],  # several results on the host
        lambda x: torch.where(torch.signbit(x), x * 2, 0.5) * 3,  # truth values made on the host
        lambda x: torch.cumsum(x > 0, 1) * x.exp(),  # truth values read on the host
        lambda x: torch.where(torch.cumsum(x, 0) > 0, x, 0.0) * 2,
        lambda x: torch.where(x > 0, x, 0.5) + torch.where(x.double() > 0, x.double(), 0.5).float(),  # a number shared
        lambda x: (x * 2).view(1, 1, 1, 2, 6, 8).exp().view(2, 6, 8) * 3,  # rank 6
        lambda x: (x * 1e-3) * 1e5 + torch.cumsum(x, 0),  # a number beyond fp16
        lambda x: torch.cumsum(x.transpose(0, 1).contiguous(), 0).transpose(0, 1) + x.clone(),
    ],
)
def test_programs_and_host_operations_in_turn(function):
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(PlacementWarning):
        found = gradients(torch.compile(function, backend="anew", dynamic=False), x)
    close(found, gradients(function, x.double()))


def test_dropout_draws_on_the_host_and_its_mask_is_reused_in_the_backward():
    x = torch.ones(64, 64, requires_grad=True)
    dropped = torch.compile(lambda x: nn.functional.dropout(x * 2, 0.5) * 3, backend="anew", dynamic=False)
    with pytest.warns(PlacementWarning):
        y = dropped(x)
    with pytest.warns(PlacementWarning):  # the backward is compiled when it first runs
        y.sum().backward()
    kept = y != 0
    assert 0.4 < kept.float().mean() < 0.6
    assert torch.equal(y[kept], torch.full_like(y[kept], 12.0))
    assert torch.equal(x.grad, kept * 12.0)
    with torch.no_grad(), pytest.warns(PlacementWarning):
        assert not torch.equal(dropped(x) != 0, kept)
