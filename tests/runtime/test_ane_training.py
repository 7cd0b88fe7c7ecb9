"""Training through the classes on the fake: the losses are the emulator's to the last bit, and nothing is left."""

import pytest
import torch

from anew.device.ane.engine import REQUEST
from anew.frontend.options import Options
from anew.frontend.scales import FIRST, INTERVAL
from anew.frontend.session import Session
from tests.runtime.test_training import STEPS, emulated_losses, losses


@pytest.mark.parametrize(
    ("numerics", "switches"),
    [("fast", {}), ("exact", {}), ("fast", {"packed": 1, "text_order": 1}), ("fast", {"client_refuses": 1})],
)
@pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel")
def test_losses_equal_the_emulators_to_the_last_bit(make_classes, open_ane, fresh, llama, numerics, switches):
    options = Options(device="emulator", chip="m4", numerics=numerics, strict=True)
    wanted = emulated_losses(llama, options)
    engine = open_ane(make_classes(numerics=numerics, **switches))
    session = Session(options, engine)
    assert losses(llama(), session) == wanted
    assert wanted[-1] < wanted[0]
    assert session.device is engine
    assert engine.statistics.dispatches > 2 * STEPS


def test_frozen_weights_of_all_layers_are_procedures_of_one_program(make_classes, open_ane, fresh, llama):
    options = Options(device="emulator", chip="m4", strict=True, base_bits=16)
    found, uses = [], []
    for session in (Session(options), Session(options, open_ane(make_classes()))):
        net = llama(layers=3)
        for name, p in net.named_parameters():
            p.requires_grad_("norm" in name)
        found.append(losses(net, session, steps=FIRST + 2))
        uses.append(sorted((use.layers, use.programs) for use in (bank.use() for bank in session.banks)))
        torch._dynamo.reset()
    assert found[0] == found[1]
    assert uses[0] == uses[1]
    assert (2, 1) in uses[1]  # the first layer is by itself: nothing before it trains


def test_a_training_step_runs_over_the_buffers_of_the_one_before(make_classes, open_ane, fresh, llama):
    fake = make_classes()
    session = Session(Options(device="emulator", chip="m4", strict=True), open_ane(fake))
    fake.log_calls()
    made = []
    losses(llama(layers=3), session, FIRST + 8, lambda step: made.append(fake.calls.count(REQUEST)))
    assert made[-1] == made[-2] > 0  # weights are written in place, activations lease the same memory


@pytest.mark.parametrize("bits", [0, 16])
def test_steps_do_not_grow(make_classes, open_ane, fresh, llama, bits):
    fake = make_classes()
    engine = open_ane(fake)
    session = Session(Options(device="emulator", chip="m4", strict=True, base_bits=bits), engine)
    counts = []
    net = llama(layers=1)
    for name, p in net.named_parameters():
        p.requires_grad_(bits == 0 or "norm" in name)
    for _ in range(5):
        losses(net, session, steps=INTERVAL)
        counts.append((fake.alive, engine.buffers.allocated_bytes, engine.statistics.programs))
    assert counts[3] == counts[4]  # fewer by then: requests for buffers that come no more are gone
