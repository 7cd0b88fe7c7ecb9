"""`anew train --device`: a route that is not there is one sentence, and `auto` says why it took what it took."""

import json
import subprocess
import sys

import pytest

from anew.cli.main import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="about a machine without an engine")
MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 288,
    "max_position_embeddings": 64,
}


@pytest.fixture
def arguments(tmp_path):
    data, model = tmp_path / "text.txt", tmp_path / "small.json"
    data.write_text("It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 20)
    model.write_text(json.dumps(MODEL))
    words = f"train --preset {model} --data {data} --seq-len 16 --batch-size 2 --steps 2 --out {tmp_path / 'out'}"
    return words.split()


def test_a_route_that_is_not_there(arguments, capsys):
    assert main([*arguments, "--device", "e5rt"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("anew: error: device 'e5rt' is not available: this is Linux, and the engine is in Macs")
    assert said.count("\n") == 1


def test_auto_says_which_and_why(arguments, capsys, fresh, tmp_path):
    assert main([*arguments, "--worker", "--recheck", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Device     emulated engine, chip m4, numerics fast")
    assert lines[at + 1].startswith("           not e5rt")
    assert lines[at + 1].endswith(": this is Linux, and the engine is in Macs with Apple silicon")


def test_a_negative_recheck(arguments, capsys):
    assert main([*arguments, "--recheck", "-1"]) == 1
    assert capsys.readouterr().err == "anew: error: --recheck must be 0 or more, not -1\n"


def test_the_routes_are_listed_without_pytorch():
    code = "import sys; from anew.cli.main import build_parser; build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
