"""Projected steps: what two small models give for many layers is what a device counts in a run of them all."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from anew.chips import load_chip
from anew.cli.main import main
from anew.errors import UserError
from anew.estimate import run
from anew.estimate.capture import WEIGHT, count_step, lasting
from anew.estimate.counted import Setting
from anew.estimate.counting import CountingDevice
from anew.estimate.head import LOGITS
from anew.estimate.roofline import draw
from anew.estimate.run import projection
from anew.estimate.step import Estimate, estimate
from anew.finetune.adapt import prepare
from anew.finetune.options import FinetuneConfig
from anew.frontend.held import Piece
from anew.frontend.loss import tiling
from anew.frontend.model import compile_in
from anew.frontend.options import Options
from anew.frontend.scales import INTERVAL, ScaleState
from anew.frontend.session import Session
from anew.frontend.typical import TypicalScales
from anew.optim import EngineAdamW
from anew.plan import Plan
from anew.projection import Work, read_rates
from anew.projection.rates import chip_names
from anew.train.presets import llama

LAYERS = 3


def small(layers: int = LAYERS, **changes: object) -> object:
    settings = llama(dim=64, layers=layers, heads=2, hidden=96, vocab=512, max_seq=64) | changes
    return AutoConfig.for_model(**settings, use_cache=False)


class Scales(TypicalScales):
    """Typical magnitudes, but for a loss's gradients: there only logits need no scales."""

    def make(self, plan: Plan, **saved: Any) -> ScaleState:
        state = super().make(plan, **saved)
        if " loss " in plan.name:
            state.plain = sorted(LOGITS)
        return state


def counted_in_a_run(
    config: object, seq_len: int, tuning: FinetuneConfig | None = None, base_bits: int = 0
) -> tuple[Work, int]:
    """The mean work of a step of the whole model, of which one in so many measures, and the parameters that train."""
    device = CountingDevice(load_chip("m4"))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(WEIGHT)
    model = model if tuning is None else prepare(model.train(), tuning)
    trained = [p for p in model.parameters() if p.requires_grad]
    session = Session(Options(device="null", chip="m4", base_bits=base_bits), device)
    session.scales = scales = Scales()
    compile_in(model, session)
    optimizer = EngineAdamW(model, trained, overlap=False)
    ids = torch.zeros(1, seq_len, dtype=torch.int64)

    def step(measures: bool) -> Work:
        scales.measures = measures
        optimizer.zero_grad()
        device.reset(lasting(model, session))
        model(input_ids=ids, labels=ids).loss.backward()
        for piece in held(trained, session):
            device.keep(piece.buffer)
        baked = [bank.baked_plan() for bank in session.banks]
        return device.total([*session.plans, *session.lean_plans, *baked])

    step(True)
    lean, measured = step(False), step(True)
    return lean * (1 - 1 / INTERVAL) + measured * (1 / INTERVAL), sum(p.numel() for p in trained)


def held(parameters: list[torch.nn.Parameter], session: Session) -> list[Piece]:
    """What is held in fp16 buffers."""
    tables = [table for p in parameters if (table := session.held.table(p)) is not None]
    pieces = [piece for table in tables for part in table.parts for piece in part.pieces]
    return [*pieces, *(piece for p in parameters for piece in session.held.of(p))]


def same(one: Work, other: Work) -> bool:
    """Whether all amounts are equal but for the rounding of a mean."""
    return vars(one) == pytest.approx(vars(other), rel=1e-12)


@pytest.fixture(scope="module")
def found() -> Estimate:
    return estimate(Setting(small(), 32, 1), "m4")


def test_layers_beyond_the_second_and_the_true_vocabulary_are_counted_as_in_a_run(found: Estimate) -> None:
    work, parameters = counted_in_a_run(small(), 32)
    assert same(found.counted.work, work)
    assert found.counted.parameters == found.counted.trained == parameters


def test_a_head_is_counted_as_in_a_run_where_tokens_are_in_two_chunks_or_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, terms in ((16, 2), (8, 0)):
        monkeypatch.setattr(tiling, "ELEMENTS", tiling.BLOCK * rows)
        counted = count_step(Setting(small(), 32, 1), "m4")
        assert same(counted.work, counted_in_a_run(small(), 32)[0])
        assert (counted.terms, counted.held) == (terms, 512 * 64 if terms else 0)


@pytest.mark.parametrize(
    "tuned",
    [
        {"num_layers": 2, "lora_parameters": {"rank": 4, "keys": ["self_attn.v_proj", "mlp.down_proj"]}},
        {"num_layers": -1, "lora_parameters": {"rank": 4, "keys": ["self_attn.q_proj"]}, "grad_checkpoint": True},
        {"num_layers": 1, "fine_tune_type": "full"},
    ],
    ids=["adapters of the last layers", "checkpointing", "weights of the last layer"],
)
def test_what_tunes_in_part_is_counted_as_in_a_run(tuned: dict[str, Any]) -> None:
    tuning = FinetuneConfig(**tuned)
    counted = count_step(Setting(small(), 32, 1, tuning=tuning), "m4")
    work, trained = counted_in_a_run(small(), 32, tuning)
    assert same(counted.work, work)
    assert counted.trained == trained


def test_a_run_is_projected_for_every_chip(found: Estimate) -> None:
    projected = projection(Setting(small(), 32, 1), "m4", "emulator")
    assert json.loads(json.dumps(projected)) == projected
    assert [row["chip"] for row in projected["chips"]] == list(chip_names())
    (row,) = (row for row in projected["chips"] if row["chip"] == "m4")
    assert row["seconds"] == pytest.approx(found.seconds)
    assert row["low"] < row["seconds"] < row["high"]
    assert row["joules"] == pytest.approx(sum(found.joules.values()))


def test_no_projection_is_one_with_a_reason_and_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = projection(Setting(small(), 32, 1), "m4", "cpu")
    assert "chips" not in plain
    assert "plain PyTorch" in plain["reason"]
    refused = projection(Setting(AutoConfig.for_model("t5"), 32, 1), "m4", "emulator")
    assert "chips" not in refused
    assert "transformers cannot build this model" in refused["reason"]

    def no_rates(chip: str) -> None:
        raise KeyError(chip)

    monkeypatch.setattr(run, "_counted", {("m4", repr(Setting(small(), 32, 1))): None})
    monkeypatch.setattr(run, "read_rates", no_rates)
    assert "chips" not in projection(Setting(small(), 32, 1), "m4", "emulator")


def test_runs_of_equal_setting_are_counted_once(monkeypatch: pytest.MonkeyPatch, found: Estimate) -> None:
    asked: list[Setting] = []
    monkeypatch.setattr(run, "_counted", {})
    monkeypatch.setattr(run, "count_step", lambda setting, chip: asked.append(setting) or found.counted)
    for layers in (2, 3, 3, 2):
        projection(Setting(small(layers), 32, 1, tuning=FinetuneConfig(num_layers=1)), "m4", "emulator")
    assert [setting.config.num_hidden_layers for setting in asked] == [2, 3]


def test_a_step_is_the_sum_of_its_parts_within_its_interval_and_above_its_bound(found: Estimate) -> None:
    serial = found.seconds + found.overlap
    assert serial == pytest.approx(sum(found.split.values())) == pytest.approx(sum(found.parts.values()))
    assert found.low < found.seconds < found.high
    assert found.bound_beside <= sum(found.bound.values()) < found.seconds
    assert 0 < found.compile[0] < found.compile[1]
    assert found.split["wait"] == pytest.approx(found.counted.work.dispatches * read_rates("m4").seconds.dispatches)
    assert found.tflops < found.machine.peak_tflops


def test_a_base_of_constants_is_counted_as_in_a_run() -> None:
    """One call in so many measures with weights as inputs, the others are lean ones of constants."""
    tuning = FinetuneConfig(num_layers=-1, lora_parameters={"rank": 4})
    inputs, baked = (count_step(Setting(small(), 32, 1, tuning=tuning, base_bits=b), "m4") for b in (0, 8))
    work, trained = counted_in_a_run(small(), 32, tuning, 8)
    assert same(baked.work, work)
    assert baked.trained == trained
    assert (baked.work.read, baked.work.write) == pytest.approx((inputs.work.read, inputs.work.write))
    assert baked.work.matmul == pytest.approx(inputs.work.matmul)
    assert baked.programs == inputs.programs
    assert baked.buffers >= inputs.buffers  # calls that measure take frozen weights as inputs
    total = (part.dispatches for part in (baked.forward, baked.backward))
    assert sum(total) == pytest.approx(2 * LAYERS)


def test_a_frozen_base_of_constants_is_neither_copied_nor_given_a_gradient(found: Estimate) -> None:
    baked = count_step(Setting(small(), 32, 1, lora=4, base_bits=16), "m4")
    weights = LAYERS * (4 * 64 * 64 + 3 * 64 * 96)
    assert baked.trained == baked.parameters - found.counted.parameters
    assert found.counted.work.read - baked.work.read >= weights - 2 * baked.trained
    assert found.counted.work.write - baked.work.write >= weights - 2 * baked.trained
    assert baked.convolutions > found.counted.convolutions == 0


def test_held_gradients_are_not_copied_and_the_optimizer_runs_beside_the_next_forward() -> None:
    config = AutoConfig.for_model(**llama(dim=256, layers=LAYERS, heads=4, hidden=512, vocab=512, max_seq=64))
    held = estimate(Setting(config, 32, 1), "m4")
    matrices = LAYERS * (4 * 256 * 256 + 3 * 256 * 512)
    head, norms = 512 * 256, LAYERS * 2 * 256
    assert held.counted.held == matrices + head
    assert norms <= held.counted.work.read < head
    assert norms <= held.counted.work.write < head
    assert 0 < held.beside.saved < 28 * matrices / (held.machine.memory_gb_s * 1e9 * 5 / 6)
    assert held.seconds == pytest.approx(sum(held.split.values()) - held.overlap)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--preset", "none"], "no preset 'none'"),
        (["--preset", "tiny", "--chip", "m9"], "m9"),
        (["--preset", "tiny", "--base-bits", "8"], "--lora"),
        (["--preset", "tiny", "--seq-len", "1"], "--seq-len"),
        (["--model", "nowhere/config.json/at/all"], "cannot read the configuration"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_a_sentence(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *flags]) == 1
    assert said in capsys.readouterr().err


def test_the_command_prints_json_with_the_comparison_and_draws_a_roofline(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "config.json").write_text(json.dumps(small(2).to_dict()))  # type: ignore[attr-defined]
    picture = tmp_path / "roof.png"
    flags = ["--seq-len", "32", "--json", "--compare", "--roofline", str(picture)]
    frozen = gc.get_freeze_count() > 0
    assert main(["estimate", "--model", str(tmp_path), *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert gc.isenabled()
    assert (gc.get_freeze_count() > 0) == frozen
    assert printed["projected"] is True
    assert printed["ms"] == pytest.approx(sum(printed["split_ms"].values()) - printed["overlap_ms"])
    assert {s["label"] for s in printed["compare"]["systems"]} == {"measured by its authors"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_roofline_takes_the_place_of_files_alone(found: Estimate, tmp_path: Path) -> None:
    """Written as root over a device, a file would replace it."""
    with pytest.raises(UserError, match="it is there and no file; give another name"):
        draw(found, "small", tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*roof\.png: No such file or directory"):
        draw(found, "small", tmp_path / "none" / "roof.png")
    assert list(tmp_path.iterdir()) == []
