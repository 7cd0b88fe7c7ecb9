"""Settings: presets, choices on top of them, and every sentence about a bad one."""

import json
from types import SimpleNamespace

import pytest
import torch

from anew.errors import UserError
from anew.train.config import resolve
from anew.train.model import build_model, count_parameters
from anew.train.presets import PRESETS

TOKENIZER = SimpleNamespace(bos_token_id=None, eos_token_id=0)


@pytest.mark.parametrize(
    ("name", "count"), [("tiny", 935_040), ("stories15m", 15_191_712), ("stories110m", 109_529_856)]
)
def test_parameter_counts(name, count):
    with torch.device("meta"):
        model = build_model(PRESETS[name].model, TOKENIZER, seed=0)
    assert count_parameters(model) == count


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_the_engine(name):
    preset = PRESETS[name]
    sizes = [preset.model[key] for key in ("hidden_size", "intermediate_size", "vocab_size")]
    assert all(size % 32 == 0 for size in [*sizes, preset.seq_len])
    assert resolve(name, "x.txt", {}).name == name


def test_choices_win_over_the_preset():
    config = resolve("tiny", "x.txt", {"steps": 7, "lr": None, "seed": 0})
    assert (config.steps, config.lr, config.seed) == (7, PRESETS["tiny"].lr, 0)
    assert config.warmup == 0  # a tenth of the steps, not the preset's
    assert str(config.out) == "runs/tiny"
    assert json.dumps(config.as_json())


def test_a_configuration_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**PRESETS["tiny"].model, "max_position_embeddings": 64}))
    config = resolve(str(path), "x.txt", {})
    assert (config.name, config.seq_len) == ("mine", 64)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"seq_len": -1}, "--seq-len must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"grad_accum": 0}, "--grad-accum must be at least 1"),
        ({"val_every": 0}, "--val-every must be at least 1"),
        ({"lr": 0.0}, "--lr must be more than 0"),
        ({"lr": float("nan")}, "--lr must be more than 0"),
        ({"weight_decay": -0.1}, "--weight-decay must be 0 or more"),
        ({"grad_clip": float("inf")}, "--grad-clip must be 0 or more"),
        ({"seed": -1}, "--seed must be 0 or more"),
        ({"warmup": 11, "steps": 10}, "--warmup 11 is longer than the run of 10 steps"),
        ({"seq_len": 1024}, "--seq-len 1024 is longer than the 512 positions of the model tiny"),
    ],
)
def test_a_bad_choice_is_named(choices, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve("tiny", "x.txt", choices)


def test_no_data_says_what_to_give():
    with pytest.raises(UserError, match="give --data"):
        resolve("tiny", None, {})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read .*model.json"),
        ("{", "model.json is not valid JSON"),
        ("[]", "model.json is not a model configuration"),
        ('{"model_type": "llama"}', 'model.json needs a "vocab_size"'),
    ],
)
def test_a_bad_configuration_file_is_named(tmp_path, content, sentence):
    path = tmp_path / "model.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        resolve(str(path), "x.txt", {})


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(UserError, match=r"choose tiny, stories15m, stories110m or a CONFIG\.json"):
        resolve("huge", "x.txt", {})


@pytest.mark.parametrize("change", [{"model_type": "no-such"}, {"num_attention_heads": 5}, {"model_type": "vit"}])
def test_what_transformers_refuses_is_a_user_error(change):
    with pytest.raises(UserError, match="transformers cannot build the model"):
        build_model({**PRESETS["tiny"].model, **change}, TOKENIZER, seed=0)


def test_an_unknown_chip_is_named_before_anything_is_read():
    with pytest.raises(UserError, match="unknown chip 'm9'; known: m1, m2, m3, m4, m5"):
        resolve("tiny", "no-such-file.txt", {"chip": "m9"})
