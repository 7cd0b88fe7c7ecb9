"""`anew generate` on the emulated engine: the text of transformers' own generate, whatever is asked for."""

import copy
import io

import pytest
import torch
from transformers import AutoModelForCausalLM

import anew
from anew.adapters import save_adapter
from anew.cli.main import main
from tests.pretrained import adapt, make_tokenizer, save_pretrained

pytestmark = pytest.mark.usefixtures("fresh")
TOKENIZER = make_tokenizer()
CHAT = "<user>the sun<end><assistant>"
#: How far the two likeliest tokens have to be apart: twice the largest error of a logit (test_generate.py).
MARGIN = 0.06


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(165)  # see MARGIN
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=261,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return save_pretrained(LlamaForCausalLM(config), tmp_path_factory.mktemp("models") / "base")


def plain(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


def expected(model, text, margin=MARGIN, **sampling):
    """The text with which transformers, in plain PyTorch, goes on."""
    ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
    arguments = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": 0, "pad_token_id": 0} | sampling
    found = model.generate(ids, **arguments, output_logits=True, return_dict_in_generate=True)
    best = torch.stack(found.logits).topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > margin
    return TOKENIZER.decode(found.sequences[0, ids.shape[1] :], skip_special_tokens=True)


def generate(base, *flags, tokens=12, device="emulator"):
    words = ["generate", "--model", str(base), "-m", str(tokens), "--device", device]
    return main([*words, *flags])


def test_the_answer_and_its_rates(base, capsys):
    assert generate(base, "--prompt", "the sun") == 0
    rule, *text, again, prompt, generation, memory = capsys.readouterr().out.splitlines()
    assert text == expected(plain(base), CHAT).splitlines()
    assert rule == again == "=========="
    device = "(emulated engine, chip m4, numerics fast, compiling included)"
    assert prompt.startswith("Prompt: 9 tokens, ")
    assert generation.startswith("Generation: 12 tokens, ")
    assert prompt.endswith(f" tokens-per-sec {device}")
    assert generation.endswith(f" tokens-per-sec {device}")
    assert memory.startswith("Peak memory: ")


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_the_prompt_as_it_is_from_standard_input(numerics, base, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the sun"))
    assert generate(base, "-p", "-", "--ignore-chat-template", "--verbose", "F", "--numerics", numerics) == 0
    assert capsys.readouterr().out == expected(plain(base), "the sun") + "\n"


@pytest.mark.parametrize(("seed", "form"), [(5, {}), (2, {"use_dora": True})])
def test_an_adapter_changes_the_answer(seed, form, base, tmp_path, capsys):
    model = adapt(plain(base), seed=seed, **form)
    save_adapter(anew.compile(copy.deepcopy(model), device="emulator"), tmp_path)
    assert generate(base, "-p", "the sun", "--adapter-path", str(tmp_path), "--verbose", "F") == 0
    shown = capsys.readouterr().out
    assert shown == expected(model, CHAT) + "\n"
    assert shown != expected(plain(base), CHAT) + "\n"


def test_system_prompt_and_beginning_of_the_answer(base, capsys):
    words = ["-p", "a\\nb", "--system-prompt", "Be brief", "--prefill-response", "Well"]
    assert generate(base, *words, "--verbose", "F", device="cpu") == 0
    text = "<system>Be brief<end><user>a\nb<end><assistant>Well"
    assert capsys.readouterr().out == expected(plain(base), text, margin=0) + "\n"


def test_draws_depend_on_the_seed_alone(base, capsys):
    texts = []
    for seed in (1, 1, 2):
        words = ["--temp", "0.9", "--top-p", "0.9", "--top-k", "50", "--min-p", "0.01", "--seed", str(seed)]
        assert generate(base, "-p", "the sun", "--verbose", "F", *words, device="cpu") == 0
        texts.append(capsys.readouterr().out)
    torch.manual_seed(1)
    sampling = {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "top_k": 50, "min_p": 0.01}
    assert texts[0] == texts[1] == expected(plain(base), CHAT, margin=-1, **sampling) + "\n"
    assert texts[0] != texts[2]


def test_a_stop_token_ends_the_answer(base, capsys):
    ids = TOKENIZER(CHAT, return_tensors="pt")["input_ids"]
    fifth = plain(base).generate(ids, do_sample=False, max_new_tokens=5, eos_token_id=0, pad_token_id=0)[0, -1]
    stop = TOKENIZER.convert_ids_to_tokens(int(fifth))
    assert generate(base, "-p", "the sun", "--extra-eos-token", stop, device="cpu") == 0
    counted = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Generation: ")]
    assert int(counted[0].split()[1]) <= 5


BAD = {
    "no model": (["--model", "/nowhere/at/all"], "there is no model at /nowhere/at/all: no such file or folder"),
    "no adapter": (["--adapter-path", "/nowhere"], "there is no adapter in /nowhere: it has no adapter_config.json"),
    "no tokens": (["-m", "0"], "--max-tokens is 0; it has to be at least 1"),
    "cold": (["--temp", "-1"], "--temp is -1.0; it has to be 0 or more"),
    "top p": (["--top-p", "1.5"], "--top-p is 1.5; it has to be above 0 and at most 1"),
    "min p": (["--min-p", "2"], "--min-p is 2.0; it has to be from 0 to 1"),
    "top k": (["--top-k", "-3"], "--top-k is -3; it has to be 0 or more"),
    "stop": (["--extra-eos-token", "<eot>"], "the tokenizer has no token '<eot>' to stop at"),
    "long": (["-m", "500"], "but the model takes 128 at most: lower --max-tokens or shorten the prompt"),
    "empty": (["--ignore-chat-template", "-p", ""], "the prompt is empty: there is nothing to go on from"),
    "no template": (["--ignore-chat-template", "--system-prompt", "x"], "a system prompt needs a chat template"),
    "chip": (["--chip", "m99"], "m99"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, base, capsys):
    flags, sentence = BAD[case]
    assert generate(base, *flags) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("anew: error: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_a_template_that_refuses_is_one_sentence(base, tmp_path, capsys):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('only the user speaks here') }}"
    plain(base).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capsys.readouterr()
    assert generate(tmp_path, "-p", "hi") == 1
    assert capsys.readouterr().err == "anew: error: the chat template refuses the prompt: only the user speaks here\n"


@pytest.mark.parametrize("value", ["[1]", "{"])
def test_bad_template_settings_are_misuse(value, base, capsys):
    with pytest.raises(SystemExit) as stopped:
        generate(base, "--chat-template-config", value)
    assert stopped.value.code == 2
    assert "--chat-template-config" in capsys.readouterr().err
