"""Architectures of the table in docs/models.md: all of their layers on the engine, gradients as in fp64 PyTorch."""

import pytest

from evidence import record
from evidence.architectures import CASES, measure

#: Bars of the table; a network of ReLUs and maxima has its own: fp16 decides ties that fp64 decides otherwise, and then
#: a whole element of the gradient goes elsewhere. Its cross-entropy looks up integer labels, on the host.
COSINE, ERROR, OPERATIONS = 0.9995, 0.01, 1.0
OWN = {"convolutional": (0.999, 0.04, 0.95)}
#: Left to `python -m evidence architectures`: test_layers.py runs theirs.
EVIDENCE = {"smollm2", "qwen2", "qwen3", "mistral", "gemma", "gemma_2"}

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize("name", [name for name in CASES if name not in EVIDENCE])
def test_training_step(name: str) -> None:
    found = measure(name)
    cosine, error, operations = OWN.get(name, (COSINE, ERROR, OPERATIONS))
    assert found.region_operations >= operations
    assert found.worst_cosine >= cosine, found
    assert found.worst_error <= error, found
    assert found.vanishing_norm <= 1e-4, found
    shown = record.read("architectures")[name]
    assert found.coverage == pytest.approx(shown["coverage"], abs=1e-9)
    assert (found.programs, found.dispatches) == (shown["programs"], shown["dispatches"])
    assert found.worst_error == pytest.approx(shown["worst_error"], rel=0.5)  # processors differ in fp32 sums
