"""What autograd, exceptions, threads and processes may do to saved activations: right results, or one clear error."""

import gc
import os
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import anew
from anew.device.base import DeviceError
from anew.frontend.options import Options
from anew.frontend.scales import FIRST
from anew.frontend.session import session_for
from tests.emulator.training import TOKENS, compiled, gradients, loss_of, reference, worst_error

pytestmark = pytest.mark.usefixtures("fresh", "young")


def pool():
    return session_for(Options(device="emulator", strict=True)).device.buffers


def gradients_of(net):
    return {name: p.grad.double() for name, p in net.named_parameters()}


def test_fifty_steps_take_no_more_memory_than_four(llama):
    net = compiled(llama())
    steps = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(50):
        loss_of(net).backward()
        steps.step()
        steps.zero_grad()
        if step == FIRST:
            allocated = pool().allocated_bytes
    assert pool().allocated_bytes == allocated


def test_a_forward_without_gradients_saves_nothing(llama):
    """Twelve layers take no more than two; with gradients each keeps its own."""
    taken = {}
    for layers in (2, 12):
        net = compiled(llama(layers=layers))
        with torch.no_grad():
            loss_of(net)
        weights = sum(pool().nbytes(tuple(p.shape)) for p in net.model.layers.parameters())
        taken[layers] = pool().allocated_bytes - weights
        del net
        gc.collect()
        session_for.cache_clear()
        torch._dynamo.reset()
    assert taken[2] == taken[12]


def test_a_loss_that_is_dropped_gives_its_buffers_back(llama):
    net = compiled(llama())
    for _ in range(FIRST + 1):
        gradients(net)
    loss_of(net)
    allocated = pool().allocated_bytes
    for _ in range(5):
        loss_of(net)
    assert pool().allocated_bytes == allocated


def test_a_kept_graph_beside_other_steps(llama):
    """Its saved activations stay as they were while other steps take and return buffers."""
    net, other = llama(), TOKENS.flip(0, 1)
    wanted, wanted_other = reference(net), reference(net, other)
    compiled(net)
    kept = loss_of(net)
    for _ in range(2):
        assert worst_error(gradients(net, other), wanted_other) < 0.01
        with torch.no_grad():
            loss_of(net, other)
        net.zero_grad(set_to_none=True)
        kept.backward(retain_graph=True)
        assert worst_error(gradients_of(net), wanted) < 0.01


def test_a_second_backward_is_pytorchs_own_error(llama):
    loss = loss_of(compiled(llama()))
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_a_derivative_of_a_gradient_is_an_error(llama):
    net = compiled(llama())
    parameters = list(net.model.layers.parameters())
    found = torch.autograd.grad(loss_of(net), parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        sum(g.square().sum() for g in found).backward()
    assert worst_error(gradients(net), reference(net)) < 0.01


def test_a_weight_written_between_forward_and_backward_is_pytorchs_own_error(llama):
    net = compiled(llama())
    loss = loss_of(net)
    with torch.no_grad():
        net.model.layers[0].mlp.up_proj.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert worst_error(gradients(net), reference(net)) < 0.01


def test_training_goes_on_after_an_exception_in_a_backward(llama):
    net = compiled(llama())
    wanted = reference(net)
    for _ in range(FIRST + 1):
        gradients(net)
    allocated = pool().allocated_bytes

    def refuse(gradient):
        raise ValueError("refused")

    hook = net.model.layers[0].mlp.down_proj.weight.register_hook(refuse)
    for _ in range(3):
        with pytest.raises(ValueError, match="refused"):
            gradients(net)
    hook.remove()
    assert worst_error(gradients(net), wanted) < 0.01
    gc.collect()
    assert pool().allocated_bytes == allocated


def test_training_goes_on_after_a_value_that_does_not_fit(llama):
    net = compiled(llama())
    weight = net.model.layers[1].mlp.up_proj.weight
    kept = weight.detach().clone()
    weight.data.fill_(float("nan"))
    with pytest.raises(anew.AnewError, match="beyond fp16"):
        loss_of(net)
    weight.data.copy_(kept)
    assert worst_error(gradients(net), reference(net)) < 0.01


def test_threads_that_call_one_model_get_right_results(llama):
    """From the first call on, so that they also capture and compile it at once."""
    net = llama()
    batches = [TOKENS.roll(i, 1) for i in range(3)]
    wanted = [reference(net, batch) for batch in batches]
    compiled(net)
    errors = {}

    def train(i):
        for _ in range(3):
            found = torch.autograd.grad(loss_of(net, batches[i]), list(net.parameters()))
            names = dict(zip((name for name, _ in net.named_parameters()), found, strict=True))
            errors.setdefault(i, []).append(worst_error(names, wanted[i]))

    threads = [threading.Thread(target=train, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, errors.values())) == [3, 3, 3]
    assert max(max(found) for found in errors.values()) < 0.01


def test_workers_of_a_data_loader_are_forked_beside_a_compiled_model(llama):
    net = compiled(llama())
    wanted = reference(net)
    gradients(net)
    loader = DataLoader(TOKENS.repeat(4, 1), batch_size=2, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        for batch in loader:
            assert worst_error(gradients(net, batch), wanted) < 0.01


def test_a_forked_process_computes_the_same(llama):
    net = compiled(llama())
    wanted = gradients(net)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.write(write, b"same" if worst_error(gradients(net), wanted) < 1e-3 else b"not the same")
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read() == "same"
    os.waitpid(child, 0)
    assert worst_error(gradients(net), wanted) < 1e-3


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


@pytest.mark.parametrize("cyclic", [False, True])
def test_models_that_come_and_go_leave_their_programs_places(cyclic):
    """Each takes two programs of the six that this chip would load."""
    device = session_for(Options(device="emulator", strict=True)).device
    device.chip = replace(device.chip, loaded_programs=6)
    for width in range(3, 9):
        net = compiled(nn.Sequential(Block(width), Block(width)))
        net.itself = [net] if cyclic else None
        net(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert anew.statistics(net).programs <= 6


def test_models_that_stay_fill_the_chip():
    device = session_for(Options(device="emulator", strict=True)).device
    device.chip = replace(device.chip, loaded_programs=2)
    nets = [compiled(nn.Sequential(Block(width))) for width in (3, 4)]
    x = torch.randn(2, 4, requires_grad=True)
    nets[0](x).sum().backward()
    with pytest.raises(DeviceError, match="load: 2 programs are loaded, the most that m4 takes in a process"):
        nets[1](x)
    nets[0](x).sum().backward()
