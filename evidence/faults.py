"""What becomes of a run when something fails: each call of a framework, memory, the compile budget, the worker.

On the fakes: no engine takes part. Nothing here is timed.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anew.chips import load_chip
from anew.device.ane import models
from anew.device.framework import FrameworkWarning
from anew.device.worker.client import WorkerDevice, WorkerWarning
from evidence import record
from tests.runtime import espresso, faults, neural_engine, worker_devices
from tests.runtime.espresso import FakeEspresso
from tests.runtime.neural_engine import FakeNeuralEngine

CHIP = "m4"
#: A call of each stage, at which a framework aborts or hangs, and the seconds after which a worker hangs.
STAGES = ("e5_compiler_compile", "program_library_retain_program_function", "io_port_bind_buffer_object",
          "execution_stream_execute_sync")  # fmt: skip
PATIENCE = {"open": 60.0, "compile": 5.0, "run": 5.0}
#: The columns of the table, in its order; then how it names routes and faults.
OUTCOMES = (
    "went_on_without_it",
    "went_on_with_a_warning",
    "raised_compile",
    "raised_load",
    "raised_bind",
    "raised_execute",
    "raised_memory",
)
ROUTES = {
    "e5rt": "`e5rt`",
    "ane": "`ane`, by the client",
    "ane_in_memory": "`ane`, in memory",
    "worker": "`e5rt` in a worker",
}
FAULTS = {
    "each_call": "each call fails once",
    "no_memory": "no memory at a lease",
    "compile_120": "the 120th compile",
    "abort": "it aborts",
    "hang": "it hangs",
}


def espresso_fake(library: Path, **switches: int) -> FakeEspresso:
    """A use of the fake of Espresso."""
    return FakeEspresso(library, load_chip(CHIP), switches=switches)


def classes_fake(library: Path, **switches: int) -> FakeNeuralEngine:
    """A use of the fake of the classes, whose calls are written down."""
    fake = FakeNeuralEngine(library, load_chip(CHIP), switches=switches)
    fake.log_calls()
    return fake


def of_route(make: Callable[..., Any], subject: faults.Subject) -> dict[str, Counter[str]]:
    """The outcomes of each class of faults on one route."""
    return {
        "each_call": faults.outcomes(make, subject),
        "no_memory": faults.memory_outcomes(make, subject),
        "compile_120": Counter([faults.compile_outcome(make(compiles=faults.COMPILES), subject)]),
    }


def of_worker(library: Path, folder: Path) -> dict[str, Counter[str]]:
    """The outcomes of an abort and of a hang at a call of each stage, within a worker."""
    fake = espresso_fake(library)
    faults.whole_run(faults.E5RT, fake)
    names = fake.calls
    opened = names.index(STAGES[0], names.index(STAGES[0]) + 1)  # the first is of the program that opening compiles
    found: dict[str, Counter[str]] = {"abort": Counter(), "hang": Counter()}
    for fault, outcomes in found.items():
        for name in STAGES:
            position = names.index(name, opened) + 1
            opener = partial(worker_devices.espresso, library, folder / f"{fault}-{name}", fault, position)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", WorkerWarning)
                subject = faults.Subject(lambda _, make=opener: WorkerDevice(load_chip(CHIP), make, PATIENCE), _never)
                results = faults.whole_run(subject, None)
            assert [t.unique().tolist() for t in results] == [[1.0], [2.0]]
            assert [w.category for w in said].count(WorkerWarning) == 1, name
            outcomes["went_on_with_a_warning"] += 1
    return found


def _never(error: Exception, name: str) -> bool:
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Without the routes' warnings, and without their patience."""
    patience, models.PATIENCE = models.PATIENCE, 0.0  # where nothing comes free, waiting for it is idle
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FrameworkWarning)
            yield
    finally:
        models.PATIENCE = patience


def main() -> None:
    """Try all, write the record and the table in docs/on-your-mac.md."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, quiet():
        c_functions, classes = espresso.build(Path(folder)), neural_engine.build(Path(folder))
        found = {
            "e5rt": of_route(partial(espresso_fake, c_functions), faults.E5RT),
            "ane": of_route(partial(classes_fake, classes), faults.ANE),
            "ane_in_memory": of_route(partial(classes_fake, classes, client_refuses=1), faults.ANE),
            "worker": of_worker(c_functions, Path(folder)),
        }
    figures = {
        route: {name: {"positions": tried.total(), "outcomes": dict(tried)} for name, tried in by.items()}
        for route, by in found.items()
    }
    record.write("faults", figures)
    rows = [_row(route, name, tried) for route, by in found.items() for name, tried in by.items()]
    record.write_table("on-your-mac.md", "faults", rows)


def _row(route: str, name: str, tried: Counter[str]) -> list[str]:
    def cell(key: str, value: int) -> str:
        return f'[{value}](evidence/faults.json "{route}.{name}.{key}")' if value else ""

    counts = [cell(f"outcomes.{outcome}", tried[outcome]) for outcome in OUTCOMES]
    return [ROUTES[route], FAULTS[name], cell("positions", tried.total()), *counts]
