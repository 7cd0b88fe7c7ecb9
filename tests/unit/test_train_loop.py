"""The loop: schedule, optimizer groups, accumulation, clipping, validation, divergence."""

import math
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from anew.energy import Source
from anew.errors import AnewError
from anew.train.config import TrainConfig, resolve
from anew.train.data import Windows, validation_batches
from anew.train.display import PlainDisplay
from anew.train.interrupt import stop_on_interrupt
from anew.train.metrics import MetricsFile, Record
from anew.train.optimizer import learning_rate, make_optimizer
from anew.train.pretraining import Pretraining, accumulate, evaluate, train_step

VOCAB = 16


class Output:
    """What transformers' models return, as far as the loop looks."""

    def __init__(self, loss):
        self.loss = loss


class Bigram(nn.Module):
    """The smallest language model: a row of logits for each token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCAB, VOCAB)
        self.bias = nn.Parameter(torch.zeros(VOCAB))

    def forward(self, input_ids, labels, shift_labels):
        logits = self.table(input_ids) + self.bias
        return Output(F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten()))


def tokens(length=500):
    return np.random.default_rng(0).integers(VOCAB, size=length).astype(np.uint16)


def make_config(**choices) -> TrainConfig:
    fields = {"seq_len": 8, "batch_size": 4, "steps": 5, "val_every": 2, "lr": 1e-2, "device": "cpu"}
    return resolve("tiny", "x.txt", {**fields, **choices})


def make_loop(tmp_path, model=None, **choices) -> Pretraining:
    config = make_config(**choices)
    windows = Windows(tokens(), config.seq_len, config.seed)
    held_out = validation_batches(tokens(100), config.seq_len, config.batch_size, 2)
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    return Pretraining(model or Bigram(), config, windows, held_out, PlainDisplay(), metrics=metrics)


def test_learning_rate_rises_peaks_and_falls_to_a_tenth():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(0, 1, 1.0, 0) == 1.0


@given(steps=st.integers(1, 200), data=st.data())
def test_learning_rate_is_never_zero_nor_above_its_peak(steps, data):
    warmup = data.draw(st.integers(0, steps))
    rates = [learning_rate(step, steps, 3e-3, warmup) for step in range(steps)]
    assert all(0 < rate <= 3e-3 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_only_matrices_decay():
    matrices, rest = make_optimizer(Bigram(), weight_decay=0.1).param_groups
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert [p.dim() for p in matrices["params"]] == [2]
    assert [p.dim() for p in rest["params"]] == [1]


def test_accumulated_batches_equal_one_large_batch():
    inputs = torch.randint(VOCAB, (8, 5))
    targets = torch.randint(VOCAB, (8, 5))
    large, small = Bigram(), Bigram()
    expected = accumulate(large, [(inputs, targets)])
    loss = accumulate(small, list(zip(inputs.split(2), targets.split(2), strict=True)))
    assert loss == pytest.approx(expected, rel=1e-6)
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(("clip", "clipped"), [(0.01, 0.01), (0.0, None)])
def test_the_norm_is_reported_before_clipping(clip, clipped):
    batch = (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))
    model = Bigram()
    _, norm = train_step(model, make_optimizer(model, 0.0), [batch], clip)
    left = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert norm > 0.1
    assert left == pytest.approx(clipped if clipped else norm, rel=1e-4)


def test_validation_averages_over_rows_that_count():
    model = Bigram()
    ids = tokens(111)
    whole = evaluate(model, validation_batches(ids, 10, 11, 1))
    parts = evaluate(model, validation_batches(ids, 10, 4, 3))
    assert parts == pytest.approx(whole, rel=1e-6)
    assert model.training


def test_records_are_complete_and_validation_frames_the_run(tmp_path):
    loop = make_loop(tmp_path)
    loop.run(lambda: False)
    records = loop.history.records
    assert [r.iteration for r in records] == [0, 1, 2, 3, 4, 5]
    assert [r.iteration for r in records if r.val_loss is not None] == [0, 2, 4, 5]
    assert records[0].train_loss is None
    assert all(math.isfinite(r.train_loss) and r.grad_norm > 0 for r in records[1:])
    assert all(r.loss_scale == 1.0 and r.rescaled == 0 and r.peak_memory > 0 for r in records)
    assert loop.history.steps == 5


@pytest.mark.parametrize(("fault", "sentence"), [("loss", "the loss is nan"), ("grad", "the gradient norm is nan")])
def test_divergence_stops_before_the_weights_are_touched(tmp_path, fault, sentence):
    model = Bigram()
    if fault == "loss":
        model.bias.data[0] = math.nan
    else:
        model.table.weight.register_hook(lambda grad: grad * math.nan)
    before = model.table.weight.detach().clone()
    with pytest.raises(AnewError, match=f"training stopped in step 1: {sentence}"):
        make_loop(tmp_path, model).run(lambda: False)
    assert model.table.weight.equal(before)


@pytest.fixture
def interruptible():
    """Python's own answer to SIGINT, which a shell's background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_asks_and_the_second_stops(tmp_path, capfd, interruptible):
    with stop_on_interrupt() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("Stopping after this step") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    loop = make_loop(tmp_path)
    loop.run(lambda: loop.history.steps == 2)
    assert loop.history.interrupted
    assert loop.history.steps == 2


def test_a_loss_that_explodes_stops_the_run_after_three_steps(tmp_path):
    model = Bigram()
    loop = make_loop(tmp_path, model)
    loop.history.records = [Record(0, None, 2.0, None, None, None, None, 0, 1.0, 0, 0.0)]
    model.table.weight.data *= 100
    with pytest.raises(AnewError, match=r"stopped in step 3: the loss explodes, 3 steps in a row.*no checkpoint yet"):
        loop.run(lambda: False)


def test_steps_carry_the_energy_that_counters_give(tmp_path, monkeypatch):
    class Counters:
        def begin_window(self, label):
            pass

        def end_window(self, label):
            return {"cpu": 2.5, "ane": 0.0}

    source = Source("stand-in", Counters(), lambda found: found)
    monkeypatch.setattr("anew.energy.find_source", lambda: source)
    loop = make_loop(tmp_path)
    loop.run(lambda: False)
    steps = loop.history.records[1:]
    assert loop.history.records[0].joules is None
    assert [r.joules for r in steps] == [{"ane": None, "cpu": 2.5, "gpu": None, "dram": None}] * len(steps)
