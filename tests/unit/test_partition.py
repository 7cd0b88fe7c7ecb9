"""What a Llama layer saves between its forward and its backward program."""

import pytest
import torch
from torch import nn

from anew.frontend import region
from anew.frontend.partition import is_view, partition

aten = torch.ops.aten


@pytest.fixture
def split(fresh, monkeypatch):
    """Run a module forward and backward; returns its forward graph, backward graph and number of results."""
    found = []

    def keep(joint, inputs, *, num_fwd_outputs, **kwargs):
        pair = partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
        found.append((*pair, num_fwd_outputs))
        return pair

    monkeypatch.setattr(region, "partition", keep)

    def run(function, *inputs):
        torch.compile(function, backend="anew", dynamic=False)(*inputs).sum().backward()
        (pair,) = found
        return pair

    return run


@pytest.fixture
def llama_layer(split, llama):
    model = llama(layers=1)
    layer, rotary = model.model.layers[0], model.model.rotary_emb
    x = torch.randn(2, 8, 32, requires_grad=True)
    angles = rotary(x, torch.arange(8)[None])
    return split(lambda x: layer(x, position_embeddings=angles), x)


def saved_of(forward, results):
    return list(forward.graph.output_node().args[0])[results:]


def test_no_saved_tensor_is_a_view(llama_layer):
    forward, _, results = llama_layer
    saved = saved_of(forward, results)
    assert saved
    assert not [n for n in saved if is_view(n)]


def test_nothing_is_saved_twice(llama_layer):
    forward, _, results = llama_layer
    saved = saved_of(forward, results)
    assert len(set(saved)) == len(saved)
    views = {n for n in forward.graph.nodes if is_view(n) and n.args[0] in saved}
    assert not views & set(saved)


def test_weights_are_not_computed_results_of_the_forward(llama_layer):
    forward, _, results = llama_layer
    matrices = {n for n in forward.graph.nodes if n.op == "placeholder" and n.meta["val"].shape[-1:] and is_matrix(n)}
    transposed = {n for n in forward.graph.nodes if is_view(n) and n.args[0] in matrices}
    assert len(matrices) == len(transposed) == 7
    assert not transposed & set(saved_of(forward, results))


def is_matrix(node):
    return node.meta["val"].dim() == 2


def test_the_backward_takes_what_the_forward_saves(llama_layer):
    forward, backward, results = llama_layer
    taken = [n for n in backward.graph.nodes if n.op == "placeholder"]
    saved = saved_of(forward, results)
    assert len(taken) == len(saved) + results
    for give, take in zip(saved, taken, strict=False):
        assert give.meta["val"].shape == take.meta["val"].shape


def test_a_saved_view_is_replayed_from_what_it_looks_at(split):
    weight = nn.Parameter(torch.randn(4, 6))
    x = torch.randn(5, 6, requires_grad=True)
    forward, backward, results = split(lambda x: (x @ weight.t()).tanh(), x)
    assert [n.op for n in saved_of(forward, results)].count("placeholder") == 2
    assert any(n.target == aten.t.default for n in backward.graph.nodes)


def test_views_are_replayed_from_the_tensor_they_look_at_whatever_its_name_in_the_backward(fresh):
    """Names differ between the two graphs; a saved clone must not be taken for another of that name."""

    def f(q, k, v):
        a, b, c = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        scores = torch.softmax(a @ b.transpose(-2, -1), -1)
        return torch.nn.functional.dropout(scores, 0.0) @ c

    inputs = [torch.randn(2, 6, 3, 6, generator=torch.Generator().manual_seed(i), requires_grad=True) for i in range(3)]
    reference = torch.autograd.grad(f(*inputs).square().sum(), inputs)
    found = torch.autograd.grad(torch.compile(f, backend="anew", dynamic=False)(*inputs).square().sum(), inputs)
    for a, b in zip(found, reference, strict=True):
        assert (a - b).norm() < 2e-3 * b.norm()
