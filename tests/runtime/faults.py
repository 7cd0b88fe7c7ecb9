"""Every call of a run fails once, at every position in turn, on the fake of Espresso: what becomes of the run.

The run opens the route, compiles a program, runs it over two sets of buffers and takes all down. After a failure it is
done again on the same route: it must give the same numbers.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from anew.device.base import Operation
from anew.device.e5rt.engine import E5rtEngine
from anew.device.e5rt.functions import Espresso
from anew.device.framework import FrameworkError, FrameworkWarning
from anew.mil import Builder, print_program
from tests.runtime.espresso import FakeEspresso

CODE = 77
SHAPE = (2, 3, 40)


def whole_run(fake: FakeEspresso) -> list[Tensor]:
    """Open, compile, run twice over buffers that differ, release; returns both results."""
    b = Builder()
    y, x = b.input("y", SHAPE), b.input("x", SHAPE)
    engine = E5rtEngine(fake.chip, espresso=Espresso(str(fake.path)))
    program = engine.compile(*print_program(b.program([b.op("sub", "z", x=x, y=y)])))
    try:
        operation = program.operation()
        results = [_run(operation, factor) for factor in (1.0, 2.0)]
        return [result.clone() for result in results]
    finally:
        program.release()


def _run(operation: Operation, factor: float) -> Tensor:
    pool = operation.program.device.buffers
    buffers = {name: pool.lease(SHAPE).fill_(factor * index) for index, name in enumerate("zyx")}
    operation.bind(buffers)
    operation.execute()
    return buffers["z"]  # held by the caller, so that the next run has other memory


def outcomes(make_fake: Callable[[], FakeEspresso]) -> Counter[str]:
    """How many positions ended in each way; raises AssertionError where one ended in none of the allowed ways."""
    clean = make_fake()
    wanted = whole_run(clean)
    assert [t.unique().tolist() for t in wanted] == [[1.0], [2.0]]
    names = clean.calls
    return Counter(_fail(make_fake(), position, name, wanted) for position, name in enumerate(names, 1))


def _fail(fake: FakeEspresso, position: int, name: str, wanted: list[Tensor]) -> str:
    """Let the call at a position, which is known to be ``name``, fail; returns what became of the run."""
    fake.fail_at(position, CODE)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        outcome = _outcome(fake, name, wanted)
    said = [str(w.message) for w in warned if issubclass(w.category, FrameworkWarning)]
    assert fake.calls[position - 1] == name
    assert outcome.startswith("raised") or (len(said) == 1 and f"e5rt_{name} failed with e5rt code {CODE}" in said[0])
    assert all(torch.equal(a, b) for a, b in zip(whole_run(fake), wanted, strict=True)), "not usable afterwards"
    gc.collect(1)  # what this position left is young
    assert fake.violations == [], (position, name)
    assert fake.alive == {}, (position, name)
    return outcome


def _outcome(fake: FakeEspresso, name: str, wanted: list[Tensor]) -> str:
    try:
        found = whole_run(fake)
    except FrameworkError as error:
        if (error.call, error.domain, error.code) != (f"e5rt_{name}", "e5rt", CODE):
            raise
        return f"raised_{error.stage}"
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), f"{name} failed unseen"
    return "went_on_with_a_warning"
