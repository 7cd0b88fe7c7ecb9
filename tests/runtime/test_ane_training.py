"""Training through the classes on the fake: the losses are the emulator's to the last bit, and nothing is left."""

import pytest
import torch

from anew.frontend.options import Options
from anew.frontend.session import Session
from tests.runtime.test_training import STEPS, losses


@pytest.mark.parametrize(
    ("numerics", "switches"),
    [("fast", {}), ("exact", {}), ("fast", {"packed": 1, "text_order": 1}), ("fast", {"client_refuses": 1})],
)
@pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel")
def test_losses_equal_the_emulators_to_the_last_bit(make_classes, open_ane, fresh, llama, numerics, switches):
    options = Options(device="emulator", chip="m4", numerics=numerics, strict=True)
    wanted = losses(llama(), Session(options))
    torch._dynamo.reset()
    engine = open_ane(make_classes(numerics=numerics, **switches))
    session = Session(options, engine)
    assert losses(llama(), session) == wanted
    assert wanted[-1] < wanted[0]
    assert session.device is engine
    assert engine.statistics.dispatches > 2 * STEPS


def test_steps_do_not_grow(make_classes, open_ane, fresh, llama):
    fake = make_classes()
    engine = open_ane(fake)
    session = Session(Options(device="emulator", chip="m4", strict=True), engine)
    counts = []
    net = llama(layers=1)
    for _ in range(3):
        losses(net, session, steps=10)
        counts.append((fake.alive, engine.buffers.allocated_bytes, engine.statistics.programs))
    assert counts[1] == counts[2]
