"""Fixtures: the fakes of the private frameworks, checked for leaks and violations after each test."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from anew.chips import load_chip
from anew.device.ane.engine import AneEngine
from anew.device.e5rt.engine import E5rtEngine
from anew.device.e5rt.functions import Espresso
from anew.device.objc import Runtime
from anew.frontend.session import session_for
from tests.runtime import neural_engine
from tests.runtime.espresso import FakeEspresso, build, compiler
from tests.runtime.neural_engine import FakeNeuralEngine


@pytest.fixture(scope="session")
def espresso_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of the fake library, one file for each set of macros."""
    if compiler() is None:
        pytest.skip("the fakes are C: there is no compiler `cc` here")
    folder = tmp_path_factory.mktemp("espresso")
    return functools.cache(lambda *defines: build(folder, *defines))


@pytest.fixture
def make_fake(
    request: pytest.FixtureRequest, young: None, espresso_library: Callable[..., Path]
) -> Iterator[Callable[..., FakeEspresso]]:
    """A maker of fakes; the test fails when the last one has met a violation or has objects left.

    They share the library and so its state: each begins anew, and what an earlier one gave is no longer counted.
    """
    made: list[FakeEspresso] = []

    def make(*defines: str, numerics: str = "fast", **switches: int) -> FakeEspresso:
        made.append(FakeEspresso(espresso_library(*defines), load_chip("m4"), numerics, switches))
        return made[-1]

    yield make
    _check(request, made)


def _check(request: pytest.FixtureRequest, made: Sequence[FakeEspresso | FakeNeuralEngine]) -> None:
    """Fail when the last fake has met a violation, or has objects left."""
    request.node.funcargs.clear()  # what the test was given must not count as leaked
    if "torch._dynamo" in sys.modules:  # nor what was compiled in it
        torch._dynamo.reset()
        session_for.cache_clear()
    gc.collect()
    gc.collect()
    if made:
        assert made[-1].violations == []
        assert made[-1].alive == {}


@pytest.fixture
def fake(make_fake: Callable[..., FakeEspresso]) -> FakeEspresso:
    """The fake with every disputed fact as by default."""
    return make_fake()


@pytest.fixture
def open_engine() -> Callable[[FakeEspresso], E5rtEngine]:
    """Open the e5rt route on a fake."""
    return lambda fake: E5rtEngine(fake.chip, espresso=Espresso(str(fake.path)))


@pytest.fixture(scope="session")
def neural_engine_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of the fake classes' library, one file for each set of macros."""
    if compiler() is None:
        pytest.skip("the fakes are C: there is no compiler `cc` here")
    folder = tmp_path_factory.mktemp("neural_engine")
    return functools.cache(lambda *defines: neural_engine.build(folder, *defines))


@pytest.fixture
def make_classes(
    request: pytest.FixtureRequest, young: None, neural_engine_library: Callable[..., Path]
) -> Iterator[Callable[..., FakeNeuralEngine]]:
    """A maker of fakes of the classes; the test fails when the last has met a violation or has objects left."""
    made: list[FakeNeuralEngine] = []

    def make(*defines: str, numerics: str = "fast", **switches: int) -> FakeNeuralEngine:
        made.append(FakeNeuralEngine(neural_engine_library(*defines), load_chip("m4"), numerics, switches))
        return made[-1]

    yield make
    _check(request, made)


@pytest.fixture
def open_ane() -> Callable[[FakeNeuralEngine], AneEngine]:
    """Open the route through the classes on a fake."""
    return lambda fake: AneEngine(fake.chip, runtime=Runtime([str(fake.path)]))
