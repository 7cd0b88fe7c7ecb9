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


def test_keys_are_saved_as_they_were_made_and_not_transposed(split):
    q, k = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 3, 7, 4, requires_grad=True)
    forward, _, results = split(lambda q, k: torch.matmul(q.tanh(), k.tanh().transpose(2, 3)), q, k)
    assert sorted(tuple(n.meta["val"].shape) for n in saved_of(forward, results)) == [(2, 3, 5, 4), (2, 3, 7, 4)]


def test_keys_that_are_a_view_are_saved_as_products_read_them(split, monkeypatch):
    """Whether the backward takes heads apart again is a matter of prices: of :mod:`anew.frontend.recompute`."""
    monkeypatch.setattr(region, "recompute", lambda *_: [])
    q, k = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 7, 12, requires_grad=True)

    def scores(q, k):
        return torch.matmul(q.tanh(), k.tanh().view(2, 7, 3, 4).transpose(1, 2).transpose(2, 3))

    forward, _, results = split(scores, q, k)
    assert (2, 3, 4, 7) in [n.meta["val"].shape for n in saved_of(forward, results)]


@pytest.mark.filterwarnings("ignore::anew.frontend.placement.PlacementWarning")
def test_a_tensor_saved_for_a_view_is_an_argument_of_its_own_name(split):
    """The backward has operations of the forward's names; generated Python must not mix up the two."""
    weight = nn.Parameter(torch.randn(6, 6))
    x = torch.randn(5, 6, requires_grad=True)

    def f(x):
        normed = nn.functional.layer_norm(x @ weight, (6,))
        return (normed.view(1, 5, 6).transpose(0, 1).contiguous().view(5, 6) @ weight).exp() @ normed.t()

    forward, backward, results = split(f, x)
    arguments = [n for n in backward.graph.nodes if n.op == "placeholder"]
    assert [n.target for n in arguments] == [n.name for n in arguments]
    names = {n.name for n in saved_of(forward, results)}
    assert names - {n.name for n in arguments}  # one was renamed, or this shows nothing


def halves(y):
    first, last = y.split(4, 1)
    return first @ last.transpose(1, 2)


ROWS = {
    "slices": (lambda y: y[:, :4] @ y[:, 4:].transpose(1, 2), [(2, 8, 6)]),
    "split": (halves, [(2, 8, 6)]),
    "beside the whole": (lambda y: y[:, :3] @ y.transpose(1, 2), [(2, 8, 6)]),
    "fewer": (lambda y: y[:, :3] @ y[:, :4].transpose(1, 2), [(2, 3, 6), (2, 4, 6)]),
    "of the last axis": (lambda y: y[..., :3].transpose(1, 2) @ y[..., 3:], [(2, 8, 3), (2, 8, 3)]),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_one_tensor_are_saved_as_that_if_it_is_no_more(split, name):
    function, shapes = ROWS[name]
    forward, _, results = split(lambda x: function(x * 2.0), torch.randn(2, 8, 6, requires_grad=True))
    assert sorted(tuple(n.meta["val"].shape) for n in saved_of(forward, results)) == shapes
