"""Errors of anew's that PyTorch wraps reach the command line as one sentence."""

import argparse

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
