"""A head whose gradient stays in the engine's buffers, and whose tiles the optimizer writes: PyTorch's numbers."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.frontend.loss import tiling
from anew.frontend.model import session_of
from anew.frontend.staleness import StaleWarning
from anew.frontend.weight_store import UploadedWeight, WeightStore
from anew.optim import EngineAdamW, clip_norm, settle
from anew.optim.step import PartOfStep
from tests.emulator.training import assert_buffers_return

#: A norm is given in float32.
NORM = 1e-6
TOKENS = 64


def model(tied: bool = True, vocabulary: int = 300, bias: bool = False) -> nn.Module:
    """A small model; a vocabulary of 300 has two tiles, of which the second overlaps the first."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=1, tie_word_embeddings=tied, use_cache=False)
    net = LlamaForCausalLM(config)
    if bias:
        net.lm_head.bias = nn.Parameter(torch.zeros(vocabulary))
    return anew.compile(net, device="emulator", chip="m4")


def loss_of(net: nn.Module, number: int) -> torch.Tensor:
    ids = torch.randint(0, 64, (2, TOKENS // 2), generator=torch.Generator().manual_seed(number))
    labels = ids.clone()
    labels[0, :5] = -100
    return net(input_ids=ids, labels=labels).loss


def exact_norm(net: nn.Module) -> float:
    return sum(p.grad.double().square().sum() for p in net.parameters() if p.grad is not None).sqrt().item()


def train(net, optimizer, steps=4, accumulate=1, clip=0.0, first=0) -> list[tuple[float, float]]:
    """Losses and norms of some steps; what PyTorch's optimizer steps has all gradients, and a norm in float64."""
    found = []
    for step in range(first, first + steps):
        for part in range(accumulate):
            loss = loss_of(net, accumulate * step + part)
            (loss / accumulate).backward()
        exact = exact_norm(net)
        norm = clip_norm(optimizer, net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm if isinstance(optimizer, EngineAdamW) else exact))
    settle(optimizer)
    return found


def head(net: nn.Module) -> nn.Parameter:
    return net.lm_head.weight


def uploads(net: nn.Module) -> list[UploadedWeight]:
    """The tiles' weights in their buffers."""
    session = session_of(net)
    (views,) = session.loss.views.find(head(net)).values()
    return [session.weights.rewritable(view)[0] for view in views]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    wanted = one.state_dict()
    return all(torch.equal(x, wanted[name]) for name, x in other.state_dict().items())


#: Vocabulary, elements of a tile, whether gradients are held; each tied and not, in one step and in two.
HEADS = {
    "tiles that overlap": (300, 2**24, True),
    "one tile": (512, 2**24, True),
    "two chunks of tokens": (302, 256 * TOKENS // 2, True),
    "four chunks": (304, 256 * TOKENS // 4, False),
}


@pytest.mark.parametrize(
    ("kind", "tied", "accumulate", "overlap"),
    [
        ("tiles that overlap", True, 1, False),
        ("tiles that overlap", False, 2, True),
        ("one tile", False, 1, True),
        ("one tile", True, 2, False),
        ("two chunks of tokens", True, 1, True),
        ("two chunks of tokens", False, 2, False),
        ("four chunks", False, 1, False),
        ("four chunks", True, 2, True),
    ],
)
def test_losses_and_weights_are_those_of_torch_to_the_bit(kind, tied, accumulate, overlap, monkeypatch) -> None:
    vocabulary, elements, held = HEADS[kind]
    monkeypatch.setattr(tiling, "ELEMENTS", elements)
    one, other = model(tied, vocabulary), model(tied, vocabulary)
    optimizer = EngineAdamW(other, other.parameters(), lr=1e-3, overlap=overlap)
    for net in (one, other):
        loss_of(net, 0).backward()
    assert (session_of(other).held.table(head(other)) is not None) == held
    assert (head(other).grad is None) == held
    one.zero_grad()
    optimizer.zero_grad()
    theirs = train(one, torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True), accumulate=accumulate)
    mine = train(other, optimizer, accumulate=accumulate)
    assert [loss for loss, _ in mine] == [loss for loss, _ in theirs]
    assert [norm for _, norm in mine] == pytest.approx([norm for _, norm in theirs], rel=NORM)
    assert same_weights(one, other)


def test_twenty_clipped_steps_are_those_of_torch_as_far_as_the_norm_is() -> None:
    one, other = model(), model()
    theirs = train(one, torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True), steps=20, clip=0.5)
    mine = train(other, EngineAdamW(other, other.parameters(), lr=1e-3), steps=20, clip=0.5)
    assert [loss for loss, _ in mine] == pytest.approx([loss for loss, _ in theirs], rel=1e-4)


@pytest.mark.parametrize(("chunks", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 2)])
def test_tiles_are_not_converted_again_after_a_step_and_hold_the_new_weight(chunks, accumulate, monkeypatch) -> None:
    monkeypatch.setattr(tiling, "ELEMENTS", 256 * TOKENS // chunks)
    net = model(vocabulary=300 + 2 * (chunks - 1))  # a session may keep how it cuts a vocabulary
    optimizer = EngineAdamW(net, net.parameters())
    train(net, optimizer, steps=5, accumulate=accumulate)
    written = uploads(net)
    loss_of(net, 9).backward()
    assert all(now is before for now, before in zip(uploads(net), written, strict=True))
    fresh = WeightStore(session_of(net).device)
    for start, entry in zip((0, len(head(net)) - 256), written, strict=True):
        again = fresh.upload("head", head(net).detach()[start : start + 256], scaled=True, fresh=True)
        assert torch.equal(entry.buffer.float() * 2.0**-entry.exponent, again.buffer.float() * 2.0**-again.exponent)
        assert entry.largest == again.largest


@pytest.mark.parametrize("write", ["in place", "dense data", "other memory"])
def test_a_head_that_something_else_wrote_is_converted_again(write) -> None:
    net = model()
    optimizer = EngineAdamW(net, net.parameters())
    train(net, optimizer, steps=2)
    written = uploads(net)
    with torch.no_grad():
        if write == "in place":
            head(net)[299, 0] = 0.5
        elif write == "dense data":
            head(net).data.mul_(3.0)
        else:
            head(net).data = head(net).data.mul(3.0)
    loss_of(net, 9)
    assert not any(now is before for now, before in zip(uploads(net), written, strict=True))


def test_one_number_written_through_data_is_found_by_the_next_step() -> None:
    net = model()
    optimizer = EngineAdamW(net, net.parameters())
    train(net, optimizer, steps=2)
    head(net).data[290, 31] = 0.5
    with pytest.warns(StaleWarning, match="written through its data"):
        train(net, optimizer, steps=1, first=2)
    last = uploads(net)[1]
    assert float(last.buffer[290 - 44, 31]) * 2.0**-last.exponent == pytest.approx(head(net)[290, 31].item(), rel=1e-3)


def test_a_head_given_other_memory_before_the_step_is_stepped_there() -> None:
    one, other = model(), model()
    for net, optimizer in (
        (one, torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True)),
        (other, EngineAdamW(other, other.parameters(), lr=1e-3)),
    ):
        loss_of(net, 0).backward()
        head(net).data = head(net).data.clone()
        optimizer.step()
    assert same_weights(one, other)
    with torch.no_grad():
        assert loss_of(one, 1).item() == loss_of(other, 1).item()


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_come_as_plain_ones_when_asked_for_or_joined_by_a_plain_one(tied) -> None:
    plain, asked, joined = model(tied), model(tied), model(tied)
    for net in (plain, asked, joined):
        optimizer = EngineAdamW(net, net.parameters()) if net is not plain else None
        loss_of(net, 0).backward()
        if net is joined:
            head(net).grad = torch.zeros_like(head(net))
            clip_norm(optimizer, net.parameters(), 0.0)
        elif net is asked:
            optimizer.to_grads()
        assert session_of(net).held.table(head(net)) is None
    for net in (asked, joined):
        assert torch.equal(head(net).grad, head(plain).grad)


@pytest.mark.usefixtures("young")
def test_nothing_is_held_for_what_has_no_optimizer_here_or_none_any_more() -> None:
    net = model()
    optimizer = EngineAdamW(net, [p for p in net.parameters() if p is not head(net)])
    loss_of(net, 0).backward()
    assert head(net).grad is not None
    head(net).grad = None
    optimizer = EngineAdamW(net, net.parameters())
    loss_of(net, 0).backward()
    assert head(net).grad is None
    del optimizer
    gc.collect()
    assert session_of(net).held.table(head(net)) is None
    loss_of(net, 0).backward()
    assert head(net).grad is not None


def test_a_gradient_that_is_no_number_shows_in_the_norm_and_zeroing_forgets_it() -> None:
    net = model()
    optimizer = EngineAdamW(net, [head(net)])
    (loss_of(net, 0) * float("nan")).backward()
    assert head(net).grad.isnan().all()
    assert clip_norm(optimizer, net.parameters(), 1.0) != clip_norm(optimizer, net.parameters(), 1.0)
    optimizer.zero_grad()
    loss_of(net, 0).backward()
    optimizer.zero_grad()
    assert clip_norm(optimizer, net.parameters(), 1.0) == 0.0


def test_buffers_go_back_to_the_pool_after_the_step() -> None:
    assert_buffers_return(model(), train)


@contextmanager
def table_waits(monkeypatch, table: nn.Parameter, from_row: int = 1) -> Iterator[threading.Event]:
    """Let the step of a table's parts from a row on wait for an event; from 1: the second tile's."""
    may_go_on = threading.Event()
    take = PartOfStep.__call__

    def gated(part: PartOfStep) -> None:
        if part.parameter is table and part.rows.start >= from_row:
            assert may_go_on.wait(60)
        take(part)

    monkeypatch.setattr(PartOfStep, "__call__", gated)
    try:
        yield may_go_on
    finally:
        may_go_on.set()


def step(net: nn.Module, optimizer: EngineAdamW, number: int) -> None:
    """A step that may still be taken when this returns."""
    loss_of(net, number).backward()
    optimizer.step()
    optimizer.zero_grad()


def forward_runs(net: nn.Module) -> int:
    return sum(n for name, n in session_of(net).counts.dispatches.items() if "loss forward" in name)


def test_the_table_is_written_last_and_nothing_waits_for_more_of_it_than_it_reads(monkeypatch) -> None:
    one, other = model(), model()
    theirs = train(one, torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True), steps=5)
    optimizer = EngineAdamW(other, other.parameters(), lr=1e-3, overlap=True)
    train(other, optimizer, steps=3)
    with table_waits(monkeypatch, head(other)) as may_go_on:
        step(other, optimizer, 3)
        rows = other.model.embed_tokens(torch.tensor([2, 299, 2]))  # of both tiles
        assert not may_go_on.is_set()
        runs, found = forward_runs(other), []
        reader = threading.Thread(target=lambda: found.append(loss_of(other, 4)))
        reader.start()
        until = time.monotonic() + 30
        while forward_runs(other) == runs and time.monotonic() < until:
            time.sleep(0.01)
        assert forward_runs(other) == runs + 1  # the first tile's
        assert not found
        may_go_on.set()
        reader.join()
    settle(optimizer)
    assert torch.equal(rows, head(other)[[2, 299, 2]])
    assert found[0].item() == theirs[4][0]


def own_loss(net: nn.Module, number: int) -> torch.Tensor:
    """A loss that the loss region has no part in."""
    ids = torch.randint(0, 64, (2, TOKENS // 2), generator=torch.Generator().manual_seed(number))
    return net(input_ids=ids).logits.log_softmax(-1).mean().neg()


@pytest.mark.parametrize("case", ["bias", "own loss", "other memory"])
def test_where_a_step_is_not_by_tiles_the_loss_waits_for_all_of_the_table(case, monkeypatch) -> None:
    net = model(tied=False, bias=case == "bias")
    loss_of(net, 0)  # the loss region is found to be right
    optimizer = EngineAdamW(net, net.parameters(), lr=1e-2, overlap=True)
    for number in range(2):
        (own_loss if case == "own loss" else loss_of)(net, number).backward()
        optimizer.step()
        optimizer.zero_grad()
    settle(optimizer)
    (own_loss if case == "own loss" else loss_of)(net, 3).backward()
    if case == "other memory":
        head(net).data = head(net).data.clone()
    with table_waits(monkeypatch, head(net), from_row=0) as may_go_on:
        optimizer.step()
        optimizer.zero_grad()
        runs = forward_runs(net)
        threading.Timer(0.3, lambda: (found.append(forward_runs(net)), may_go_on.set())).start()
        found: list[int] = []
        waited = loss_of(net, 4).item()
    assert found == [runs]
    settle(optimizer)
    assert loss_of(net, 4).item() == waited


@pytest.mark.parametrize("read", ["logits", "rows", "state"])
def test_what_reads_a_table_otherwise_waits_for_all_of_it(read, monkeypatch) -> None:
    net = model()
    optimizer = EngineAdamW(net, net.parameters(), lr=1e-3, overlap=True)
    train(net, optimizer, steps=2)
    ids = torch.arange(280, 296).view(1, -1)
    with table_waits(monkeypatch, head(net)) as may_go_on:
        step(net, optimizer, 2)
        threading.Timer(0.2, may_go_on.set).start()
        with torch.no_grad():
            if read == "logits":
                found = net(input_ids=ids).logits + 0.0
            elif read == "rows":
                found = net.model.embed_tokens(ids)
            else:
                found = net.state_dict()["lm_head.weight"].clone()
        assert may_go_on.is_set()
    settle(optimizer)
    with torch.no_grad():
        again = {"logits": lambda: net(input_ids=ids).logits, "rows": lambda: net.model.embed_tokens(ids)}
        assert torch.equal(found, again.get(read, lambda: head(net))())
