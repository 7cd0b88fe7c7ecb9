"""Options are checked where they enter, and the backend is found by its name."""

import subprocess
import sys

import pytest
import torch

from anew.errors import UserError
from anew.frontend.choice import make_device
from anew.frontend.options import Options


def test_an_unknown_option_names_the_nearest_known_one():
    with pytest.raises(UserError, match="unknown option 'numeric'; did you mean 'numerics'\\? known: device, chip,"):
        Options.parse({"numeric": "exact"})


def test_an_unknown_option_like_none_lists_the_known_ones():
    with pytest.raises(
        UserError, match="unknown option 'zzzz'; known: device, chip, numerics, strict, scaling, switches"
    ):
        Options.parse({"zzzz": 1})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("device", "gpu", "option 'device' is one of auto, e5rt, ane, emulator, null, not 'gpu'"),
        ("numerics", "slow", "option 'numerics' is one of exact, fast, not 'slow'"),
        ("scaling", True, "option 'scaling' is one of operands, none, not True"),
        ("strict", 1, "option 'strict' is True or False, not 1"),
        ("switches", {"gqs": "allow"}, "unknown switch 'gqs'; known: row_pitch, "),
        ("switches", {"gqa": "maybe"}, "switch 'gqa' is one of allow, refuse, not 'maybe'"),
        ("switches", "gqa", "option 'switches' gives an option by name, not 'gqa'"),
        ("chip", "m99", "option 'chip' is one of m1, m2, m3, m4, m5, not 'm99'"),
        ("chip", ["m4"], r"option 'chip' is one of m1, m2, m3, m4, m5, not \['m4'\]"),
    ],
)
def test_bad_values(name, value, sentence):
    with pytest.raises(UserError, match=sentence):
        Options.parse({name: value})


def test_good_values_are_taken():
    options = Options.parse({"device": "null", "chip": "m5", "numerics": "exact", "strict": True, "scaling": "none"})
    assert options == Options("null", "m5", "exact", True, "none")
    assert make_device(options).name == "null"
    assert make_device(options).chip.name == "m5"


def test_switches_reach_the_chip():
    options = Options.parse({"chip": "m3", "switches": {"gqa": "refuse", "fp32": "allow"}})
    assert options == Options(chip="m3", switches=(("fp32", "allow"), ("gqa", "refuse")))
    assert make_device(options).chip.refuses("gqa")


def test_auto_is_the_emulator_and_says_so():
    device = make_device(Options(numerics="exact"))
    assert (device.name, device.emulated, device.numerics) == ("emulator", True, "exact")


def test_torch_finds_the_backend_without_an_import_of_anew():
    script = (
        "import sys, torch\n"
        "assert 'anew' in torch._dynamo.list_backends()\n"
        "assert 'anew' not in sys.modules\n"
        "y = torch.compile(lambda x: x * 2, backend='anew', options={'device': 'emulator'})(torch.ones(3))\n"
        "assert 'anew' in sys.modules\n"
        "print(y.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[2.0, 2.0, 2.0]\n", done.stderr


def test_an_unknown_option_raises_through_torch_compile(fresh):
    doubled = torch.compile(lambda x: x * 2, backend="anew", options={"numeric": "exact"})
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="did you mean 'numerics'") as raised:
        doubled(torch.ones(3))
    assert isinstance(raised.value.inner_exception, UserError)
