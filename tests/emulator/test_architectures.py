"""Every architecture of the table in docs/models.md: all of its layers on the engine, gradients as in fp64 PyTorch."""

import pytest

from evidence import record
from evidence.architectures import CASES, measure

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize("name", CASES)
def test_training_step(name: str) -> None:
    found = measure(name)
    assert found.region_operations == 1.0
    assert found.worst_cosine >= 0.9995, found
    assert found.worst_error <= 0.02, found
    assert found.vanishing_norm <= 1e-4, found
    shown = record.read("architectures")[name]
    assert found.coverage == pytest.approx(shown["coverage"], abs=1e-9)
    assert (found.programs, found.dispatches) == (shown["programs"], shown["dispatches"])
    assert found.worst_error == pytest.approx(shown["worst_error"], rel=0.5)  # processors differ in fp32 sums
