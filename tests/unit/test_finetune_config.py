"""Settings of `anew finetune`: flags over YAML over mlx_lm's defaults; one sentence for what is wrong."""

import pytest
from mlx_lm import lora as mlx

from anew.cli.main import build_parser, main
from anew.errors import UserError
from anew.finetune.config import resolve
from anew.finetune.options import OPTIONS, FinetuneConfig

#: As mlx_lm's documentation has it (examples/lora_config.yaml), every key at another value than its default.
YAML = """
model: somewhere
train: true
fine_tune_type: dora
optimizer: adamw
optimizer_config:
  adamw: {betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.05, bias_correction: true}
data: data
seed: 7
num_layers: 8
batch_size: 2
iters: 50
val_batches: -1
learning_rate: 1e-4
steps_per_report: 5
steps_per_eval: 20
grad_accumulation_steps: 2
resume_adapter_file: null
adapter_path: out
save_every: 10
test: true
test_batches: 10
max_seq_length: 64
grad_checkpoint: true
report_to: null
project_name: null
lora_parameters: {keys: ["self_attn.q_proj"], rank: 4, scale: 20, dropout: 0.1}
lr_schedule: {name: cosine_decay, warmup: 10, warmup_init: 1e-7, arguments: [1e-5, 1000, 1e-7]}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lora.yaml"
    path.write_text(YAML)
    return path


def test_defaults_are_those_of_mlx_lm():
    config = FinetuneConfig()
    for name, default in mlx.CONFIG_DEFAULTS.items():
        if name not in ("config", "optimizer_config", "adapter_path"):
            assert getattr(config, name) == default, name
    assert str(config.adapter_path) == mlx.CONFIG_DEFAULTS["adapter_path"]


def test_every_flag_of_mlx_lm_is_one_of_ours(tmp_path):
    for action in mlx.build_parser()._actions:
        if action.dest == "help":
            continue
        value = {"fine_tune_type": "dora", "optimizer": "sgd", "config": str(tmp_path)}.get(action.dest, "1")
        words = [action.option_strings[-1], *(() if action.nargs == 0 else (value,))]
        arguments = build_parser().parse_args(["finetune", *words])
        assert getattr(arguments, action.dest) is not None, words


def test_the_command_line_goes_over_yaml_and_that_over_defaults(file):
    config = resolve({"iters": 60, "batch_size": None}, file)
    assert (config.iters, config.batch_size, config.packing) == (60, 2, False)
    assert config.optimizer_config["adamw"] == {
        "betas": [0.9, 0.98],
        "eps": 1e-6,
        "weight_decay": 0.05,
        "bias_correction": True,
    }
    assert config.lr_schedule["arguments"] == [1e-5, 1000, 1e-7]
    assert type(config.lr_schedule["arguments"][1]) is int
    assert config.learning_rate == 1e-4


def test_settings_come_back_from_a_checkpoint(file):
    config = resolve({}, file)
    assert FinetuneConfig.from_json(config.as_json()) == config


def test_every_option_without_a_flag_is_for_yaml_alone():
    hidden = {name for name, option in OPTIONS.items() if not option.metadata["help"]}
    assert hidden == {
        *("optimizer_config", "lora_parameters", "lr_schedule", "hf_dataset"),
        *("prompt_feature", "completion_feature", "chat_feature", "text_feature"),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat: 1", "option 'learning_rat' is unknown: did you mean 'learning_rate'?"),
        ("iters: many", "'iters' must be a whole number, not 'many'"),
        ("train: 1", "'train' must be true or false, not 1"),
        ("learning_rate: -1.0", "--learning-rate must be more than 0, not -1.0"),
        ("num_layers: 0", "--num-layers must be at least 1, or -1 for all, not 0"),
        ("- a", "holds no options: it must be a YAML mapping, such as 'iters: 100'"),
        ("a: [", "is not valid YAML"),
        ("optimizer: adam2", "'optimizer' must be one of adam, adamw, muon, sgd, adafactor, not 'adam2'"),
        ("lora_parameters: {ranks: 8}", "lora_parameters: 'ranks' is unknown: did you mean 'rank'?"),
        ("lora_parameters: {rank: 0}", "lora_parameters: 'rank' must be a whole number of at least 1, not 0"),
        ("lora_parameters: {scale: 2, alpha: 8}", "say the same thing (scale = alpha / rank): give one"),
        ("lora_parameters: {dropout: 1}", "lora_parameters: 'dropout' must be from 0 to below 1, not 1"),
        ("lora_parameters: {keys: q_proj}", "'keys' must be a list of module names, such as self_attn.q_proj"),
        ("mask_prompt: true\nassistant_only_loss: true", "exclude each other: choose one"),
        ("train: false", "there is nothing to do: give --train, --test or both"),
        ("chip: m99", "m99"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text if text.startswith(("train", "-", "a:")) else f"train: true\n{text}\n")
    with pytest.raises(UserError) as refused:
        resolve({}, path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_one_sentence_on_the_command_line(capsys):
    assert main(["finetune", "--train", "-c", "nowhere.yaml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("anew: error: cannot read the configuration nowhere.yaml: ")
    assert said.count("\n") == 1
