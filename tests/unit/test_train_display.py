"""What a run shows, line by line."""

import dataclasses
import io
import re

from rich.console import Console

from anew.train.display import LiveDisplay, PlainDisplay, make_display
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


def test_the_live_line_shows_losses_speed_and_rate():
    stream = io.StringIO()
    display = LiveDisplay(Console(file=stream, force_terminal=True, width=120))
    display.say("Device     emulated engine [chip m4]")
    display.start(steps=2)
    display.validated(0, 7.25, 0.1)
    display.stepped(record(1))
    display.stepped(record(2))
    display.stop()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "emulated engine [chip m4]" in shown
    assert "loss 2.000  val 7.250  1,000 tok/s  lr 1.0e-05" in shown
    assert "2/2" in shown


def test_a_pipe_gets_plain_lines():
    assert isinstance(make_display(plain=False), PlainDisplay)
    assert isinstance(make_display(plain=True), PlainDisplay)
