"""What cannot run on the engine runs on the host, in the open."""

import warnings

import pytest
import torch
from torch import nn

import anew
from anew.frontend.options import Options
from anew.frontend.placement import PlacementError, PlacementWarning
from anew.frontend.session import session_for

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
    close([*found, *(p.grad for p in net.parameters())], wanted, tolerance=1e-2)  # tanh of 3 x, from a table


def test_the_warning_names_operation_shape_rule_and_source():
    net = anew.compile(Stack(), device="emulator")
    with pytest.warns(PlacementWarning) as caught:
        net(torch.randn(2, 6, 8))
    first = str(caught[0].message)
    assert first.startswith("region 1 forward: 'aten.cumsum.default' [2, 6, 8] cannot run on the engine: ")
    assert "'aten.cumsum.default' has no lowering" in first
    assert f"({__file__}:" in first
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
    assert found[0].kind == "fallback"
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


BY_DESIGN = {
    "integers": (lambda x, at: x * at, {"aten._to_copy.default"}),
    "arange": (lambda x, at: x * torch.arange(1, 9), {"aten.arange.start", "aten._to_copy.default"}),
    "a comparison": (lambda x, at: x * (at > 3), {"aten.gt.Scalar"}),
    "a number as tensor": (lambda x, at: x * torch.tensor(3.0), {"aten.lift_fresh_copy.default"}),
    "a gather in the middle": (lambda x, at: (x * 2).tanh().index_select(-1, at - 1) * 3, {"aten.sub.Tensor"}),
    "float work on integers": (lambda x, at: x + (1.0 - (at > 3).float()) * -1e9 * 1e-9, {"aten.mul.Tensor"}),
}


@pytest.mark.parametrize("name", BY_DESIGN)
def test_host_work_by_design_is_listed_and_strict_takes_it(name):
    function, operations = BY_DESIGN[name]
    compiled = torch.compile(function, backend="anew", dynamic=False, options={"strict": True})
    x, at = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(1, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlacementWarning)
        found = gradients(lambda x: compiled(x, at), x)
    close(found, gradients(lambda x: function(x, at), x))
    listed = session_for(Options(strict=True)).host_operations
    assert operations <= {h.operation for h in listed}
    assert {h.kind for h in listed} == {"boundary"}
    assert "test_placement.py" in listed[0].source
    assert sum(h.operation == "aten._to_copy.default" for h in listed) <= 2  # one each way


class Embedded(nn.Module):
    """Embedding, rotary angles from a buffer and from positions in the thousands, and a layer: all in one region."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.linear = nn.Embedding(12, 8, padding_idx=0), nn.Linear(8, 8)
        self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(4) / 4))

    def forward(self, tokens, positions):
        angles = (positions[..., None].float() @ self.frequencies[None]).repeat(1, 1, 2)
        x = self.embedding(tokens)
        turned = torch.cat((-x[..., 4:], x[..., :4]), -1)
        return self.linear(x * angles.cos() + turned * angles.sin()).tanh()


def test_embeddings_and_angles_are_the_host_s_and_one_program_each_way_is_left():
    tokens, positions = torch.tensor([[3, 0, 3, 7], [1, 11, 2, 0]]), torch.arange(4000, 4004).expand(2, 4)

    def step(net, function):
        y = function(tokens, positions)
        (y * torch.linspace(-1, 1, 8)).sum().backward()
        return [y.detach(), *(p.grad for p in net.parameters())]

    net, reference = Embedded(), Embedded()
    found = step(net, torch.compile(net, backend="anew", dynamic=False, options={"strict": True}))
    close(found, step(reference, reference))
    assert not net.embedding.weight.grad[0].any()
    session = session_for(Options(strict=True))
    assert [p.name.split()[2] for p in session.plans] == ["forward", "backward"]
    listed = {h.operation for h in session.host_operations}
    assert {"aten.embedding.default", "aten.embedding_dense_backward.default", "aten.cos.default"} <= listed


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_whole_model_is_one_program_each_way_between_host_work(llama, implementation):
    tokens = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([[9], [6]])).long()

    def step(compile):
        net = llama(attn_implementation=implementation, tie_word_embeddings=True)
        logits = compile(net)(input_ids=tokens, attention_mask=mask).logits[mask.bool()]
        (logits * torch.linspace(-1, 1, 64)).sum().backward()
        return [logits.detach(), *(p.grad for p in net.parameters())]

    found = step(lambda net: torch.compile(net, backend="anew", dynamic=False, options={"strict": True}))
    close(found, step(lambda net: net), tolerance=6e-3)
    session = session_for(Options(strict=True))
    assert [p.name.split()[2] for p in session.plans] == ["forward", "backward"]
    masks = [h for h in session.host_operations if h.operation == "anew.additive_mask.default"]
    assert len(masks) == (implementation == "eager")  # made once for both layers; a bool mask enters as it is


def test_what_the_backward_alone_reads_stays_fp16_beside_host_work():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        compiled = torch.compile(lambda x, at: (x * at).tanh().exp() * 2, backend="anew", dynamic=False)
        y = compiled(torch.randn(2, 8, requires_grad=True), torch.arange(8))
    assert y.dtype == torch.float32
    assert {t.dtype for t in kept if t.shape == (2, 8)} == {torch.float16}


def test_a_host_operation_reads_what_the_forward_saved():
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))

    def function(x):
        return torch.cumsum(x.sigmoid(), 1) * torch.topk(x.tanh(), 8, -1)[0]

    with pytest.warns(PlacementWarning):
        found = gradients(torch.compile(function, backend="anew", dynamic=False), x)
    close(found, gradients(function, x.double()))
