"""What the loss saves for its backward pass: the programs' text, the prices that decide, gradients, and buffers."""

import dataclasses
import gc
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from anew.chips import load_chip
from anew.estimate import counted, head
from anew.estimate.counting import CountingDevice
from anew.frontend.loss import cost
from anew.frontend.loss.cost import gain_of_saving, tiling_for
from anew.frontend.loss.function import cross_entropy
from anew.frontend.loss.programs import Shape, backward, forward, lower
from anew.frontend.loss.region import LossRegion, shape_of
from anew.frontend.options import Options
from anew.frontend.scales import FIRST
from anew.frontend.session import Session
from anew.mil import Program, print_program
from anew.projection import read_rates
from anew.train.presets import llama
from tests.emulator.test_loss import assert_close, case, measure, on_chip, reference

GOLDEN = Path(__file__).parent.parent / "golden"
M4 = load_chip("m4")

pytestmark = pytest.mark.usefixtures("fresh", "young")


@pytest.fixture
def prices(monkeypatch):
    """A function that sets the price of what is streamed, in seconds a byte."""

    def change(price):
        rates = read_rates("m4")
        seconds = dataclasses.replace(rates.seconds, weight_bytes=price, fetched=0.0)
        monkeypatch.setattr(cost, "rates_of", lambda chip: dataclasses.replace(rates, seconds=seconds))

    return change


def saved(vocabulary=32000, tokens=2048, features=768, chip=M4):
    """What the loss of a head of these sizes spares by saving."""
    tiling = tiling_for(tokens, vocabulary, features, chip)
    return gain_of_saving("loss", shape_of(tiling, features, bias=False), tiling, chip)


SMALL = Shape(4, 6, 8, 3, column=False)
PROGRAMS = {
    "loss_forward": (forward(keep=True), SMALL.ports()),
    "loss_backward": (backward(hidden=True, weight=True, kept=True), SMALL.backward_ports(8, kept=True)),
    "loss_backward_again": (
        backward(hidden=True, weight=True, kept=False),
        dataclasses.replace(SMALL, column=True).backward_ports(8, kept=False),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden_text(name):
    function = lower(PROGRAMS[name][0], name, M4, PROGRAMS[name][1]).function
    text, _ = print_program(Program({"main": function}))
    assert text == (GOLDEN / f"{name}.mil").read_text()


def test_the_price_of_a_chip_decides(prices, monkeypatch):
    found = saved()
    assert found.elements * 5 == 2048 * 32000
    assert found.milliseconds > 0
    assert saved(features=64) is None  # logits are cheap then
    assert saved(chip=load_chip("m2")) is None  # no times are projected for it
    monkeypatch.setattr(cost, "MOST_SAVED", 2 * 2048 * 32000 - 1)
    assert saved() is None
    monkeypatch.undo()
    prices(1e-9)
    assert saved() is None
    prices(0.0)
    assert saved(features=64) is not None


def test_tiles_fit_on_the_engine_and_chips_without_rates_run_fewest():
    assert [len(tiling_for(2048, 32000, 768, load_chip(chip)).tiles) for chip in ("m4", "m2")] == [5, 4]
    assert [len(tiling_for(256, 32000, 768, load_chip(chip)).tiles) for chip in ("m4", "m2")] == [5, 3]
    assert not tiling_for(256, 32000, 768, M4).overlaps
    assert tiling_for(64, 32000, 768, M4, columns=8192).tiles[0].size == 8192  # the weight lies there in such tiles


def test_other_numbers_of_tokens_take_the_weight_as_it_lies():
    function, region = on_chip(1024)
    hidden, weight, target = case(300, 1500)
    for rows in (300, 7, 300):
        found = measure(function, hidden[:rows], weight, target[:rows])
        assert_close(found, reference(hidden[:rows], weight, target[:rows]), 2e-3)
    assert len(region.views.get(weight, dict)) <= 1


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("confidence", "logits"), [(0.0, 1.0), (30.0, 3.0), (0.0, 30.0)])
def test_gradients_are_as_good_as_those_computed_again(prices, with_bias, confidence, logits):
    hidden, weight, target = case(13, 700, 32, logits=logits, confidence=confidence)
    weight[500:] *= 0.02  # tiles far below the largest logit
    target[::5] = -100
    bias = torch.randn(700, generator=torch.Generator().manual_seed(1)) if with_bias else None
    wanted, errors = reference(hidden, weight, target, bias), []
    for price in (1e-6, 0.0):
        prices(price)
        function, region = on_chip(256)
        found = measure(function, hidden, weight, target, bias)
        assert len(region.session.gains) == (price == 0.0)
        assert any(kept for _, kept, *_ in region.programs) == (price == 0.0)
        errors.append(max(float((f - w).norm() / w.norm()) for f, w in zip(found, wanted, strict=True)))
    assert errors[1] <= max(1.25 * errors[0], 1e-3)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_gradient_alone(prices, frozen):
    prices(0.0)
    hidden, weight, target = case(9, 600)
    function, _ = on_chip(256)
    leaf = (weight if frozen == "hidden" else hidden).requires_grad_()
    (found,) = torch.autograd.grad(function(hidden, weight, target), leaf)
    wanted = reference(hidden.detach(), weight.detach(), target)[2 if frozen == "hidden" else 1]
    assert_close([found.double()], [wanted], 1e-3)


def test_rows_of_several_chunks(prices, monkeypatch):
    prices(0.0)
    monkeypatch.setattr("anew.frontend.loss.tiling.ELEMENTS", 5 * 512)
    hidden, weight, target = case(13, 1000)
    bias = 20.0 + torch.randn(1000, generator=torch.Generator().manual_seed(1))  # of padded rows as well
    function, _ = on_chip(512)
    assert_close(measure(function, hidden, weight, target, bias), reference(hidden, weight, target, bias), 1e-3)


def test_nothing_is_saved_where_no_backward_pass_can_follow(prices):
    prices(0.0)
    hidden, weight, target = case(9, 600)
    function, region = on_chip(256)
    function(hidden, weight, target)
    with torch.no_grad():
        function(hidden.requires_grad_(), weight, target)
    assert region.session.counts.calls == {"region 1 loss inference": 6}
    function(hidden, weight, target)
    assert region.session.counts.calls["region 1 loss forward"] == 3


def test_backward_twice_gives_the_same_and_buffers_come_back(prices):
    prices(0.0)
    hidden, weight, target = case(9, 600)
    weight.requires_grad_()
    function, region = on_chip(256)

    def step():
        loss = function(hidden, weight, target)
        first, second = (torch.autograd.grad(loss, weight, retain_graph=again)[0] for again in (True, False))
        assert (first - second).abs().max() < 1e-5 * first.abs().max()  # scales may differ until calls are lean

    for _ in range(FIRST + 2):
        step()
    function(hidden, weight, target)  # and dropped
    gc.collect()
    allocated = region.session.device.buffers.allocated_bytes
    for _ in range(3):
        step()
        function(hidden, weight, target)
    assert region.session.device.buffers.allocated_bytes == allocated


@pytest.mark.parametrize("saves", [False, True])
def test_the_estimate_counts_what_runs(prices, monkeypatch, saves):
    """Of runs that measure, without an optimizer of the engine's; what is plain in the others is an assumption."""
    prices(0.0 if saves else 1e-6)
    monkeypatch.setattr(counted, "INTERVAL", 1)
    for name in ("holds_head", "writes_head"):
        monkeypatch.setattr(head, name, lambda *_: False)
    config = AutoConfig.for_model(**llama(dim=64, layers=1, heads=2, hidden=96, vocab=700, max_seq=64))
    device = CountingDevice(M4)
    session = Session(Options(device="null", chip="m4"), device)
    region = LossRegion(session)
    hidden, weight, target = (x.requires_grad_(x.is_floating_point()) for x in case(64, 700, 64))
    for _ in range(2):
        device.reset()
        cross_entropy(region, hidden, weight, target, None, "mean", -100).backward()
    assert head.count_head(counted.Setting(config, 32, 2), "m4").work == device.total(session.plans)
