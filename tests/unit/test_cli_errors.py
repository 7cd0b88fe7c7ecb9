"""Errors of anew's that PyTorch wraps reach the command line as one sentence."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anew.cli import main as cli
from anew.compiler.lowering import NotLowered


def test_an_error_wrapped_by_dynamo_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    def backend(module, example_inputs):
        raise NotLowered("'aten.cumsum' has no lowering")

    def run(arguments: argparse.Namespace) -> int:
        torch.compile(torch.nn.Linear(2, 2), backend=backend)(torch.ones(1, 2))
        return 0

    monkeypatch.setattr(cli.build_parser().__class__, "parse_args", lambda self, argv: argparse.Namespace(run=run))
    assert cli.main([]) == cli.FAILED
    assert capsys.readouterr().err == "anew: error: 'aten.cumsum' has no lowering\n"


@pytest.mark.parametrize("flushed", [True, False])
def test_a_reader_that_leaves_ends_the_command_without_a_word(flushed: bool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = f"""
import sys
from argparse import Namespace
from anew.cli import main as cli
cli.Parser.parse_args = lambda self, argv: Namespace(run=lambda arguments: print("text", flush={flushed}) or 0)
sys.exit(cli.main([]))
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (cli.READER_LEFT, "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full on this system")
@pytest.mark.parametrize("flushed", [True, False])
def test_a_full_disk_behind_standard_output_is_one_sentence(flushed: bool) -> None:
    code = f"""
import sys
from argparse import Namespace
from anew.cli import main as cli
cli.Parser.parse_args = lambda self, argv: Namespace(run=lambda arguments: print("text", flush={flushed}) or 0)
sys.exit(cli.main([]))
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    said = "anew: error: No space left on device: free some space, or write elsewhere"
    assert [line for line in done.stderr.splitlines() if line.startswith("anew")] == [said]
