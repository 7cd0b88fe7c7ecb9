"""What becomes of a run when something fails, at every position in turn, on the fake of a framework.

The run opens the route, compiles a program, runs it over two sets of buffers and takes all down. Each call fails once;
the memory of the process runs out at each lease; the 120th compile is refused. After a failure the run is done again on
the same route: it must give the same numbers.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from anew.device.ane.engine import AneEngine
from anew.device.base import Device, DeviceError, Operation
from anew.device.buffers import BufferPool
from anew.device.e5rt.engine import E5rtEngine
from anew.device.e5rt.functions import Espresso
from anew.device.framework import FrameworkError, FrameworkWarning
from anew.device.objc import Runtime
from anew.mil import Builder, print_program

CODE = 77
#: The compiles that a process gets out of the leaking wrapper (maderix/ANE).
COMPILES = 119
SHAPE = (2, 3, 40)


@dataclass(frozen=True)
class Subject:
    """A route under test.

    Attributes:
        open: opens it on a fake. explains: whether an error says that the call of a name failed.
        unseen: whether the route may go on without a word, when it did not need what the call should have given.
    """

    open: Callable[[Any], Device]
    explains: Callable[[DeviceError, str], bool]
    unseen: bool = False


def _e5rt_explains(error: DeviceError, name: str) -> bool:
    if not isinstance(error, FrameworkError):
        return False
    return (error.call, error.domain, error.code) == (f"e5rt_{name}", "e5rt", CODE)


def _ane_explains(error: DeviceError, name: str) -> bool:
    """It names the call, and the code if the call gives one; or what is missing in a program's attributes."""
    gap = ("does not describe", "rows of 32 bytes are", "the program's text has", "the engine has", "the engine's ")
    if any(words in str(error) for words in gap):
        return True
    assert isinstance(error, FrameworkError)
    return error.call in (name, "IOSurfaceLock") and (error.domain != "fake" or error.code == CODE)


E5RT = Subject(lambda fake: E5rtEngine(fake.chip, espresso=Espresso(str(fake.path))), _e5rt_explains)
ANE = Subject(lambda fake: AneEngine(fake.chip, runtime=Runtime([str(fake.path)])), _ane_explains, unseen=True)


def whole_run(subject: Subject, fake: Any) -> list[Tensor]:
    """Open, compile, run twice over buffers that differ, release; returns both results."""
    b = Builder()
    y, x = b.input("y", SHAPE), b.input("x", SHAPE)
    engine = subject.open(fake)
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


def outcomes(make_fake: Callable[[], Any], subject: Subject = E5RT) -> Counter[str]:
    """How many positions ended in each way; raises AssertionError where one ended in none of the allowed ways."""
    clean = make_fake()
    wanted = whole_run(subject, clean)
    assert [t.unique().tolist() for t in wanted] == [[1.0], [2.0]]
    names = clean.calls
    return Counter(_fail(subject, make_fake(), position, name, wanted) for position, name in enumerate(names, 1))


def _fail(subject: Subject, fake: Any, position: int, name: str, wanted: list[Tensor]) -> str:
    """Let the call at a position, which is known to be ``name``, fail; returns what became of the run."""
    fake.fail_at(position, CODE)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        outcome = _outcome(subject, fake, name, wanted)
    said = [str(w.message) for w in warned if issubclass(w.category, FrameworkWarning)]
    assert fake.calls[position - 1] == name
    if outcome == "went_on":
        outcome = "went_on_with_a_warning" if said else "went_on_without_it"
        assert len(said) == 1 or (not said and subject.unseen), (name, said)
    assert all(torch.equal(a, b) for a, b in zip(whole_run(subject, fake), wanted, strict=True)), (
        "not usable afterwards"
    )
    gc.collect(1)  # what this position left is young
    assert fake.violations == [], (position, name)
    assert fake.alive == {}, (position, name)
    return outcome


def _outcome(subject: Subject, fake: Any, name: str, wanted: list[Tensor]) -> str:
    try:
        found = whole_run(subject, fake)
    except DeviceError as error:
        if not subject.explains(error, name):
            raise
        return f"raised_{error.stage}"
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), f"{name} failed unseen"
    return "went_on"


def memory_outcomes(make_fake: Callable[[], Any], subject: Subject = E5RT) -> Counter[str]:
    """The same for each lease of a buffer, at which the process has no memory left."""
    leases, wanted = _with_memory_for(None, make_fake(), subject)
    assert isinstance(wanted, list)
    found: Counter[str] = Counter()
    for position in range(leases):
        fake = make_fake()
        _, raised = _with_memory_for(position, fake, subject)
        assert isinstance(raised, MemoryError)
        assert all(torch.equal(a, b) for a, b in zip(whole_run(subject, fake), wanted, strict=True))
        del raised  # its traceback holds what was leased
        gc.collect()
        assert (fake.violations, fake.alive) == ([], {}), position
        found["raised_memory"] += 1
    return found


def _with_memory_for(leases: int | None, fake: Any, subject: Subject) -> tuple[int, list[Tensor] | MemoryError]:
    """Run with memory for so many leases, or for all: the leases asked for, and the results or what was raised."""
    asked, lease = 0, BufferPool.lease

    def limited(pool: BufferPool, *arguments: Any) -> Tensor:
        nonlocal asked
        asked += 1
        if leases is not None and asked > leases:
            raise MemoryError
        return lease(pool, *arguments)

    with patch.object(BufferPool, "lease", limited):
        try:
            results = whole_run(subject, fake)
        except MemoryError as error:
            return asked, error
        return asked, results


def compile_outcome(fake: Any, subject: Subject = E5RT) -> str:
    """What becomes of compile number 120 on a fake that allows 119, and that what was loaded before still runs."""
    device, b = subject.open(fake), Builder()
    y, x = b.input("y", SHAPE), b.input("x", SHAPE)
    text, weights = print_program(b.program([b.op("sub", "z", x=x, y=y)]))
    kept = device.compile(text, weights)
    for _ in range(COMPILES - 2):  # the first showed the row stride
        device.compile(text, weights).release()
    try:
        device.compile(text, weights)
    except DeviceError as error:
        outcome = f"raised_{error.stage}"
    else:
        outcome = "went_on_without_it"
    operation = kept.operation()
    assert _run(operation, 1.0).unique().tolist() == [1.0]
    kept.release()
    return outcome
