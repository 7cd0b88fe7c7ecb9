"""The loss region on the emulated engine against PyTorch's linear_cross_entropy in fp64."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import anew
from anew.chips import load_chip
from anew.device.emulator.engine import EmulatedEngine
from anew.errors import UserError
from anew.frontend.loss.function import cross_entropy
from anew.frontend.loss.region import LossRegion
from anew.frontend.loss.tiling import Tiling
from anew.frontend.options import Options
from anew.frontend.session import Session

pytestmark = pytest.mark.usefixtures("fresh")


def case(tokens, vocabulary, features=16, logits=1.0, confidence=0.0, seed=0):
    """Hidden states, weight and labels. Logits have that deviation; ``confidence`` is added to the label's."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, features, generator=g) * logits / features**0.5
    target = torch.randint(0, vocabulary, (tokens,), generator=g)
    towards = weight[target] / weight[target].square().sum(1, keepdim=True)
    return torch.randn(tokens, features, generator=g) + confidence * towards, weight, target


def measure(function, hidden, weight, target, bias=None, dtype=torch.float32, **options):
    """Loss and gradients in fp64."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias) if x is not None]
    loss = function(leaves[0], leaves[1], target, linear_bias=leaves[2] if bias is not None else None, **options)
    return [x.double() for x in (loss.detach(), *torch.autograd.grad(loss.sum(), leaves))]


def reference(*args, **options):
    return measure(F.linear_cross_entropy, *args, dtype=torch.float64, **options)


def on_chip(max_axis, **limits):
    """An engine whose axes end at ``max_axis``, with other limits; returns the function and its region."""
    session = Session(Options(numerics="exact"))
    session.device = EmulatedEngine(replace(load_chip("m4"), max_axis=max_axis, **limits), numerics="exact")
    region = LossRegion(session)

    def function(hidden, weight, target, linear_bias=None, reduction="mean", ignore_index=-100):
        return cross_entropy(region, hidden, weight, target, linear_bias, reduction, ignore_index)

    return function, region


def assert_close(found, wanted, error):
    for f, w in zip(found, wanted, strict=True):
        assert (f - w).norm() <= error * w.norm()


@pytest.mark.parametrize(
    ("vocabulary", "max_axis", "tiles"),
    [
        (61, 65536, 1),
        (512, 65536, 1),
        (32000, 65536, 1),
        (32000, 16384, 2),
        (50257, 65536, 2),
        (50257, 16384, 4),
        (151936, 65536, 3),
        (151936, 16384, 10),
    ],
)
def test_loss_and_gradients_are_those_of_fp64(vocabulary, max_axis, tiles):
    hidden, weight, target = case(12, vocabulary)
    target[::4] = -100
    function, region = on_chip(max_axis)
    found = measure(function, hidden, weight, target)
    assert_close(found, reference(hidden, weight, target), 1e-3)
    assert region.session.device.statistics.programs == 2
    assert region.session.counts.dispatches["region 1 loss forward"] >= tiles
    assert len(Tiling.plan(12, vocabulary, max_axis).tiles) == tiles


@pytest.mark.parametrize("confidence", [0.0, 12.0, 20.0, 30.0, 40.0, 60.0])
def test_confident_models_keep_their_gradients(confidence):
    """At a confidence of 60 the loss is 5e-6: P - Y with fp16 logits would be noise."""
    hidden, weight, target = case(13, 512, 32, logits=3.0, confidence=confidence)
    found, wanted = measure(anew.linear_cross_entropy, hidden, weight, target), reference(hidden, weight, target)
    assert_close(found, wanted, 0.02)
    for f, w in zip(found[1:], wanted[1:], strict=True):
        assert F.cosine_similarity(f.flatten(), w.flatten(), 0) > 0.9999


@pytest.mark.parametrize("logits", [10.0, 30.0, 100.0, 300.0])
def test_large_logits(logits):
    """fp16 logits have steps of 0.03 at 50 and 0.5 at 1000; where two compete, that is the error of their ratio."""
    hidden, weight, target = case(12, 512, 32, logits=logits)
    assert_close(measure(anew.linear_cross_entropy, hidden, weight, target), reference(hidden, weight, target), 0.02)


def test_logits_that_share_an_offset():
    """GPT-2's logits are near -100, all of them."""
    hidden, weight, target = case(12, 512, 32)
    hidden[:, 0], weight[:, 0] = 10.0, -10.0
    assert_close(measure(anew.linear_cross_entropy, hidden, weight, target), reference(hidden, weight, target), 0.02)


def test_bias():
    hidden, weight, target = case(9, 600)
    bias = torch.randn(600)
    found = measure(anew.linear_cross_entropy, hidden, weight, target, bias)
    assert_close(found, reference(hidden, weight, target, bias), 1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_ignored_labels(reduction):
    hidden, weight, target = case(10, 300)
    target[[0, 3, 9]] = 7
    found = measure(anew.linear_cross_entropy, hidden, weight, target, reduction=reduction, ignore_index=7)
    wanted = reference(hidden, weight, target, reduction=reduction, ignore_index=7)
    assert_close(found, wanted, 1e-3)
    assert found[1][[0, 3, 9]].count_nonzero() == 0
    assert found[0].shape == wanted[0].shape


def test_no_label_counts():
    hidden, weight, target = case(4, 300)
    found = measure(anew.linear_cross_entropy, hidden, weight, torch.full_like(target, -100))
    wanted = reference(hidden, weight, torch.full_like(target, -100))
    assert found[0].isnan()
    assert wanted[0].isnan()
    for f, w in zip(found[1:], wanted[1:], strict=True):
        assert f.equal(w)


def test_one_token_without_a_batch():
    hidden, weight, target = case(1, 300)
    found = measure(anew.linear_cross_entropy, hidden[0], weight, target[0])
    assert_close(found, reference(hidden[0], weight, target[0]), 1e-3)


def test_a_vocabulary_of_one():
    assert anew.linear_cross_entropy(torch.ones(2, 4), torch.ones(1, 4), torch.tensor([0, 0])) == 0.0


def test_tied_weights_get_both_gradients():
    _, weight, target = case(8, 400)
    tokens = torch.arange(8) * 3

    def gradient(function, dtype):
        table = weight.detach().to(dtype, copy=True).requires_grad_()
        function(torch.tanh(F.embedding(tokens, table)), table, target).backward()
        return table.grad.double()

    found, wanted = gradient(anew.linear_cross_entropy, torch.float32), gradient(F.linear_cross_entropy, torch.float64)
    assert_close([found], [wanted], 1e-3)


def test_a_tile_is_no_larger_than_what_the_chip_transposes():
    hidden, weight, target = case(13, 1000)
    function, region = on_chip(65536, max_transpose=16 * 600)
    found = measure(function, hidden, weight, target)
    assert region.session.counts.calls["region 1 loss forward"] == 2  # 512 columns of 16 features each
    assert_close(found, reference(hidden, weight, target), 1e-3)


def test_rows_are_cut_where_a_tile_would_grow_too_large(monkeypatch):
    monkeypatch.setattr("anew.frontend.loss.tiling.ELEMENTS", 5 * 512)
    hidden, weight, target = case(13, 1000)
    bias = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    function, region = on_chip(65536)
    found = measure(function, hidden, weight, target, bias)
    assert region.session.counts.calls["region 1 loss forward"] == 3 * 2  # 5 rows and 512 columns each
    assert_close(found, reference(hidden, weight, target, bias), 1e-3)


def test_frozen_weights_cost_no_gradient():
    hidden, weight, target = case(8, 300)
    leaf = hidden.clone().requires_grad_()
    anew.linear_cross_entropy(leaf, weight, target).backward()
    assert_close([leaf.grad.double()], reference(hidden, weight, target)[1:2], 1e-3)
    leaf = weight.clone().requires_grad_()
    anew.linear_cross_entropy(hidden, leaf, target).backward()
    assert_close([leaf.grad.double()], reference(hidden, weight, target)[2:], 1e-3)


def test_steps_see_the_new_weight():
    hidden, weight, target = case(8, 300)
    weight = weight.requires_grad_()
    for _ in range(2):
        loss = anew.linear_cross_entropy(hidden, weight, target)
        assert_close([loss.double()], reference(hidden, weight, target)[:1], 1e-3)
        with torch.no_grad():
            weight -= 0.5 * torch.autograd.grad(loss, weight)[0]
    weight.data = weight.data * 2  # new storage
    assert_close(
        [anew.linear_cross_entropy(hidden, weight, target).double()], reference(hidden, weight, target)[:1], 1e-3
    )


def test_backward_twice_with_retain_graph_and_no_second_derivative():
    hidden, weight, target = case(6, 300)
    leaf = weight.requires_grad_()
    loss = anew.linear_cross_entropy(hidden, leaf, target)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    assert first.equal(second)
    with pytest.raises(UserError, match="no second derivative"):
        torch.autograd.grad(loss, leaf, create_graph=True)


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that an operation gives."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))])
        return result


def test_no_tensor_is_larger_than_a_tile():
    hidden, weight, target = case(256, 4096, 8)
    function, _ = on_chip(1024)
    with Largest() as seen:
        measure(function, hidden, weight, target)
    assert seen.numel == 256 * 1024


def test_inside_compiled_code_it_breaks_the_graph():
    hidden, weight, target = case(6, 300)
    step = torch.compile(lambda h: anew.linear_cross_entropy(torch.tanh(h), weight, target), backend="aot_eager")
    assert_close([step(hidden).double()], reference(torch.tanh(hidden), weight, target)[:1], 1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_smoothing": 0.1}, "no class weights, label smoothing"),
        ({"weight": torch.ones(300)}, "no class weights, label smoothing"),
        ({"target": torch.tensor([0, 300])}, "target 300 is outside the vocabulary of 300"),
        ({"target": torch.tensor([0, -1])}, "target -1 is outside the vocabulary of 300"),
        ({"target": torch.zeros(2, 300)}, r"target is torch.float32 \[2, 300\]"),
        ({"input": torch.ones(2, 8).half()}, "input is torch.float16"),
        ({"linear_weight": torch.ones(300, 4)}, "are no "),
        ({"linear_bias": torch.ones(4)}, "does not fit"),
        ({"reduction": "max"}, "reduction is one of"),
        ({"chip": "m99"}, "option 'chip'"),
        ({"smoothing": 1}, "unknown option 'smoothing'"),
    ],
)
def test_what_it_does_not_take_is_one_sentence(change, message):
    given = {"input": torch.ones(2, 8), "linear_weight": torch.ones(300, 8), "target": torch.tensor([0, 1])} | change
    with pytest.raises(UserError, match=message):
        anew.linear_cross_entropy(**given)


def test_features_beyond_the_chip_are_one_sentence():
    function, _ = on_chip(1024)
    with pytest.raises(anew.AnewError, match="m4 takes 1 to 1024"):
        function(torch.ones(2, 1025), torch.ones(8, 1025), torch.tensor([0, 1]))
