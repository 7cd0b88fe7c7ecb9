"""Training through the e5rt route on the fake: the losses are the emulator's to the last bit, and nothing is left."""

import pytest
import torch

from anew.device.e5rt.engine import E5rtEngine
from anew.frontend.model import compile_in
from anew.frontend.options import Options
from anew.frontend.session import Session

STEPS, TOKENS = 4, torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(3))


def losses(net, session, steps=STEPS, before=lambda step: None):
    """Train a model in a session, with something done before each step; returns the loss of each step."""
    compile_in(net, session)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    found = []
    for step in range(steps):
        before(step)
        loss = net(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


_emulated: dict[str, list[float]] = {}


def emulated_losses(llama, options):
    """Losses on the emulated engine, trained once for all routes."""
    if options.numerics not in _emulated:
        _emulated[options.numerics] = losses(llama(), Session(options))
        torch._dynamo.reset()
    return _emulated[options.numerics]


@pytest.mark.parametrize(
    ("numerics", "switches"),
    [("fast", {}), ("exact", {}), ("fast", {"packed": 1, "in_elements": 1}), ("fast", {"binds_once": 1})],
)
@pytest.mark.filterwarnings("ignore:.*operations are made anew")
def test_losses_equal_the_emulators_to_the_last_bit(make_fake, open_engine, fresh, llama, numerics, switches):
    options = Options(device="emulator", chip="m4", numerics=numerics, strict=True)
    wanted = emulated_losses(llama, options)
    engine = open_engine(make_fake(numerics=numerics, **switches))
    session = Session(options, engine)
    assert losses(llama(), session) == wanted
    assert wanted[-1] < wanted[0]
    assert isinstance(session.device, E5rtEngine)
    assert engine.statistics.dispatches > 2 * STEPS


def test_steps_do_not_grow(make_fake, open_engine, fresh, llama):
    fake = make_fake()
    engine = open_engine(fake)
    session = Session(Options(device="emulator", chip="m4", strict=True), engine)
    counts = []
    net = llama(layers=1)
    for _ in range(3):
        losses(net, session, steps=10)
        counts.append((fake.alive, engine.buffers.allocated_bytes, engine.statistics.programs))
    assert counts[1] == counts[2]
