"""What a run shows, line by line."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from anew.train.display import LiveDisplay, PlainDisplay, make_display
from anew.train.figures import sparkline
from anew.train.interrupt import NOTICE
from anew.train.metrics import Record


def record(iteration: int) -> Record:
    return Record(iteration, 2.0 + iteration % 2, None, 1e-5, 0.5, 2.0, 1000.0, 2000 * iteration, 1.0, 0, 27.003)


def test_plain_lines_have_the_form_of_mlx_lm(capsys):
    display = PlainDisplay()
    display.start(steps=12)
    display.validated(0, 0.655, 87.79)
    for iteration in range(1, 13):
        display.stepped(record(iteration))
    display.stop()
    assert capsys.readouterr().out.splitlines() == [
        "Starting training..., iters: 12",
        "Iter 0: Val loss 0.655, Val took 87.790s",
        "Iter 10: Train loss 2.500, Learning Rate 1.000e-05, It/sec 0.500, Tokens/sec 1000.000, "
        "Trained Tokens 20000, Peak mem 27.003 GB",
        "Iter 12: Train loss 2.500, Learning Rate 1.000e-05, It/sec 0.500, Tokens/sec 1000.000, "
        "Trained Tokens 24000, Peak mem 27.003 GB",
    ]


def test_energy_stands_in_the_line_where_counters_are(capsys):
    display = PlainDisplay()
    display.start(steps=2)
    for iteration in (1, 2):
        joules = {"ane": None, "cpu": 0.25 * iteration, "gpu": 0.1, "dram": None}
        display.stepped(dataclasses.replace(record(iteration), joules=joules))
    assert capsys.readouterr().out.endswith("Peak mem 27.003 GB, J/step 0.475\n")


def shown_on(width: int, steps: int = 2) -> list[str]:
    """The lines that the live view leaves on a terminal so wide."""
    stream = io.StringIO()
    display = LiveDisplay(Console(file=stream, force_terminal=True, width=width))
    display.say("Device     emulated engine [chip m4]")
    display.start(steps, ", emulated", "emulated engine, chip m4")
    display.validated(0, 7.25, 0.1)
    for iteration in range(1, steps + 1):
        display.stepped(record(iteration))
    display.stopping()
    display.stop()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", shown)]


def test_the_live_view_shows_losses_speed_scales_memory_and_device():
    lines = shown_on(120)
    assert "Device     emulated engine [chip m4]" in lines
    assert any(re.match(r"2/2 .*100% .*left", line) for line in lines)
    assert "loss 2.000  smoothed 2.900  val 7.250  █▁" in lines
    assert "1,000 tok/s  lr 1.0e-05  loss scale 1  calls run again 0  27.00 GB" in lines
    assert "emulated engine, chip m4" in lines
    assert NOTICE in lines


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_of_the_live_view_is_wider_than_the_terminal(width):
    view = shown_on(width, steps=700)[1:]
    assert sum(line.startswith("loss") for line in view) == 1
    assert max(map(len, view)) <= width


def test_the_sparkline_follows_the_values():
    assert sparkline([], 10) == sparkline([1.0], 0) == ""
    assert sparkline([3.0, 3.0], 10) == "▁▁"
    assert sparkline([0.0, 1.0, 2.0, 7.0], 10) == "▁▂▃█"
    assert sparkline([float(n) for n in range(800)], 8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([float(n) for n in range(513)], 64)) <= 64


def test_a_pipe_and_plain_get_plain_lines():
    assert isinstance(make_display(plain=False), PlainDisplay)
    assert isinstance(make_display(plain=True), PlainDisplay)


def test_no_color_and_dumb_terminals_get_plain_lines(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", Terminal())
    assert isinstance(make_display(plain=False), LiveDisplay)
    assert isinstance(make_display(plain=True), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(plain=False), PlainDisplay)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert isinstance(make_display(plain=False), PlainDisplay)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
