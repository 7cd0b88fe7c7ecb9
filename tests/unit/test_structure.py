"""Which captured graphs are one."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from anew.frontend.structure import structure


def captured(function, *inputs):
    """The graph that Dynamo captures of a call, and what it is called with."""
    found = []

    def keep(module, example_inputs):
        found.append((module, example_inputs))
        return module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=keep, fullgraph=True, dynamic=False)(*inputs)
    return found[0]


def key(function, *inputs):
    return structure(*captured(function, *inputs))


X = torch.zeros(2, 3)


def test_equal_code_is_one_graph():
    assert key(lambda x: x.tanh() * 2 + 1, X) == key(lambda y: y.tanh() * 2 + 1, X + 1)


def test_parameters_do_not_count_by_value():
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    assert key(one, X) == key(two, X)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.tanh() * 2 + 2,
        lambda x: x.tanh() * 2 + 1.0,
        lambda x: x.tanh() * 2 - 1,
        lambda x: x.sin() * 2 + 1,
        lambda x: (x.tanh() * 2 + 1, x.tanh()),
        lambda x: x.tanh() * x + 1,
    ],
)
def test_other_code_is_another_graph(other):
    assert key(lambda x: x.tanh() * 2 + 1, X) != key(other, X)


def test_the_kind_of_input_counts():
    def plain(x):
        return x * 2

    kinds = [
        X,
        X.clone().requires_grad_(),
        torch.zeros(3, 2),
        torch.zeros(3, 2).t(),
        X.double(),
        nn.Parameter(X),
    ]
    keys = [key(plain, kind) for kind in kinds]
    assert len(set(keys)) == len(kinds)


def test_the_mode_counts():
    module, inputs = captured(lambda x: x * 2, X)
    keys = {structure(module, inputs)}
    with torch.no_grad():
        keys.add(structure(module, inputs))
    with torch.inference_mode():
        keys.add(structure(module, inputs))
    assert len(keys) == 3


def test_graphs_inside_a_graph_count():
    def of(body):
        return key(lambda x: checkpoint(body, x, use_reentrant=False), X.clone().requires_grad_())

    assert of(lambda x: x.tanh().sin()) == of(lambda y: y.tanh().sin())
    assert of(lambda x: x.tanh().sin()) != of(lambda x: x.tanh().cos())
