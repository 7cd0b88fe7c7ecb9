"""Training with gradients held in the engine's buffers: the same numbers as PyTorch's optimizer in the same loop."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.errors import UserError
from anew.frontend.model import session_of
from anew.optim import EngineAdam, EngineAdamW, clip_norm, settle
from anew.train import snapshot
from tests.emulator.training import assert_buffers_return

#: PyTorch adds the squares of a norm in float32, and here they are added in float64.
NORM = 2e-6


def model(layers: int = 2, tied: bool = True) -> nn.Module:
    """A small model whose linear weights are large enough to be held."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 192, "intermediate_size": 256, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=layers, tie_word_embeddings=tied, use_cache=False)
    return anew.compile(LlamaForCausalLM(config), device="emulator", chip="m4")


def loss_of(net: nn.Module, number: int) -> torch.Tensor:
    """The loss of a batch."""
    ids = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(number))
    return net(input_ids=ids, labels=ids).loss


def train(net, optimizer, steps=3, accumulate=1, clip=0.0, first=0) -> list[tuple[float, float]]:
    """Losses and norms of some steps."""
    found = []
    for step in range(first, first + steps):
        for part in range(accumulate):
            loss = loss_of(net, accumulate * step + part)
            (loss / accumulate).backward()
        norm = clip_norm(optimizer, net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm))
    settle(optimizer)
    return found


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in net.state_dict().items()}


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("overlap", [False, True])
def test_losses_and_weights_are_those_of_torch_to_the_bit(accumulate, overlap) -> None:
    one, other = model(), model()
    theirs = train(one, torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True), accumulate=accumulate)
    mine = train(other, EngineAdamW(other, other.parameters(), lr=1e-3, overlap=overlap), accumulate=accumulate)
    assert [loss for loss, _ in mine] == [loss for loss, _ in theirs]
    assert [norm for _, norm in mine] == pytest.approx([norm for _, norm in theirs], rel=NORM)
    wanted = weights(one)
    assert all(torch.equal(x, wanted[name]) for name, x in weights(other).items())


def test_clipped_steps_are_those_of_torch_as_far_as_the_norm_is() -> None:
    one, other = model(), model()
    theirs = train(one, torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True), clip=0.5)
    mine = train(other, EngineAdamW(other, other.parameters(), lr=1e-3), clip=0.5)
    assert [loss for loss, _ in mine] == pytest.approx([loss for loss, _ in theirs], rel=1e-5)


def test_gradients_of_matrices_are_held_and_others_are_not() -> None:
    net = model()
    optimizer = EngineAdamW(net, net.parameters())
    loss_of(net, 0).backward()
    held = session_of(net).held
    matrices = {n for n, p in net.named_parameters() if held.of(p) or held.table(p)}
    assert matrices == {n for n, p in net.named_parameters() if p.dim() == 2}
    assert all((p.grad is None) == (n in matrices) for n, p in net.named_parameters())
    optimizer.to_grads()
    plain = model()
    loss_of(plain, 0).backward()
    wanted = dict(plain.named_parameters())
    assert all(torch.equal(p.grad, wanted[n].grad) for n, p in net.named_parameters())


def test_gradients_of_an_embedding_touch_its_rows_alone() -> None:
    ids = torch.tensor([[3, 200, 3, 7]])
    for tied in (True, False):
        one, other = model(1, tied), model(1, tied)
        one.model.embed_tokens.padding_idx = other.model.embed_tokens.padding_idx = 7
        optimizer = EngineAdamW(other, other.parameters())
        for net in (one, other):
            net(input_ids=ids, labels=ids).loss.backward()
        table = other.model.embed_tokens.weight
        assert tied or table.grad is None
        optimizer.to_grads()
        assert torch.equal(table.grad, one.model.embed_tokens.weight.grad)
        assert copy.deepcopy(other).model.embed_tokens(ids).grad_fn.name() == "EmbeddingBackward0"


def test_a_loop_of_the_users_own_gets_ordinary_gradients() -> None:
    net = model()
    loss_of(net, 0).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_buffers_go_back_to_the_pool_after_the_step() -> None:
    assert_buffers_return(model(), train)


def test_weights_are_not_converted_again_after_a_step() -> None:
    net = model()
    optimizer = EngineAdamW(net, net.parameters())
    train(net, optimizer, steps=2)
    store = session_of(net).weights
    matrices = [p for n, p in net.named_parameters() if ".layers." in n and p.dim() == 2]
    written = [store.rewritable(p)[0] for p in matrices]
    loss_of(net, 9)
    assert all(store.rewritable(p)[0] is entry for p, entry in zip(matrices, written, strict=True))


def test_retained_graphs_and_checkpointing() -> None:
    one, other = model(), model()
    theirs = torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True)
    mine = EngineAdamW(other, other.parameters(), lr=1e-3)
    for net, optimizer in ((one, theirs), (other, mine)):
        net.gradient_checkpointing_enable({"use_reentrant": False})
        for _ in range(2):
            loss = loss_of(net, 0)
            loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    wanted = weights(one)
    assert all(torch.equal(x, wanted[name]) for name, x in weights(other).items())


def test_a_gradient_that_is_no_number_shows_in_the_norm() -> None:
    net = model()
    optimizer = EngineAdamW(net, net.parameters())
    before = weights(net)
    (loss_of(net, 0) * float("nan")).backward()
    assert not torch.tensor(clip_norm(optimizer, net.parameters(), 1.0)).isfinite()
    optimizer.zero_grad()
    assert all(torch.equal(x, before[name]) for name, x in weights(net).items())


def test_states_go_from_one_optimizer_to_the_other() -> None:
    one, other = model(), model()
    theirs = torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True)
    mine = EngineAdamW(other, other.parameters(), lr=1e-3, overlap=True)
    train(one, theirs, steps=2)
    train(other, mine, steps=2)
    wanted = theirs.state_dict()
    found = mine.state_dict()
    assert found["param_groups"] == wanted["param_groups"]
    for number, state in wanted["state"].items():
        assert all(torch.equal(found["state"][number][key], x) for key, x in state.items())
    mine.load_state_dict(wanted)
    theirs.load_state_dict(found)
    assert train(one, theirs, first=2) == [(loss, pytest.approx(norm)) for loss, norm in train(other, mine, first=2)]


def test_a_snapshot_has_the_gradients_that_wait() -> None:
    net = model()
    optimizer = EngineAdamW(net, net.parameters())
    loss_of(net, 0).backward()
    tensors, _ = snapshot.take(net, optimizer)
    assert len(tensors[snapshot.GRADIENTS]) == len(list(net.parameters()))


def test_what_reads_weights_waits_for_the_thread() -> None:
    net = model(tied=False)
    optimizer = EngineAdamW(net, net.parameters(), overlap=True)
    train(net, optimizer, steps=1)
    writes, layer = session_of(net).writes, net.model.layers[1].mlp.up_proj.weight
    may_go_on = threading.Event()
    writes.start([layer], lambda: (may_go_on.wait(20), layer.data.zero_(), None)[2])
    threading.Timer(0.2, may_go_on.set).start()
    with torch.no_grad():
        waited = loss_of(net, 0).item()
    assert not layer.any()
    optimizer.settle()
    with torch.no_grad():
        assert loss_of(net, 0).item() == waited
    may_go_on.clear()
    writes.start([layer], lambda: (may_go_on.wait(20), layer.data.fill_(1.0), None)[2])
    threading.Timer(0.2, may_go_on.set).start()
    assert net.state_dict()["model.layers.1.mlp.up_proj.weight"].eq(1.0).all()


def test_adam_couples_its_decay() -> None:
    one, other = model(1), model(1)
    theirs = train(one, torch.optim.Adam(one.parameters(), lr=1e-3, weight_decay=0.1, fused=True))
    mine = train(other, EngineAdam(other, other.parameters(), lr=1e-3, weight_decay=0.1))
    assert [loss for loss, _ in mine] == [loss for loss, _ in theirs]


def test_settings_it_does_not_take_are_refused() -> None:
    net = model(1)
    with pytest.raises(UserError, match="no amsgrad"):
        EngineAdamW(net, net.parameters(), amsgrad=True)
    with pytest.raises(UserError, match="not compiled"):
        EngineAdamW(nn.Linear(4, 4), [nn.Parameter(torch.zeros(2))])


@pytest.mark.usefixtures("young")
def test_gradients_are_plain_again_once_the_optimizer_is_gone():
    net = model()
    optimizer = EngineAdamW(net, net.parameters(), lr=1e-3)
    loss_of(net, 0).backward()
    assert any(p.grad is None for p in net.parameters())
    del optimizer
    gc.collect()
    loss_of(net, 0).backward()
    assert all(p.grad is not None for p in net.parameters())
