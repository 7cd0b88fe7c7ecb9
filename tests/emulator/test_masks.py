"""Attention masks of every kind, through the engine and against PyTorch in fp64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from anew.frontend.options import Options
from anew.frontend.session import session_for

pytestmark = pytest.mark.usefixtures("fresh")

B, H, Q, K, D = 2, 4, 6, 6, 8
LOWEST = torch.finfo(torch.float32).min
STRICT = {"strict": True}


def compiled(function):
    return torch.compile(function, backend="anew", dynamic=False, fullgraph=True, options=STRICT)


def session():
    return session_for(Options(strict=True))


def qkv(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, n, D, generator=generator) * scale for n in (Q, K, K)]


def results(function, inputs, *masks):
    """The value of a function of tensors and masks, and the gradients of the tensors."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    with sdpa_kernel(SDPBackend.MATH):  # the fused CPU kernel has wrong gradients in rows of finfo.min (torch 2.13)
        y = function(*inputs, *masks)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype) * 1e-4
    y.backward(cotangent)
    return [y.detach(), *(x.grad for x in inputs)]


def check(function, inputs, *masks, tolerance=4e-3):
    found = results(compiled(function), inputs, *masks)
    exact = [m.double() if m.is_floating_point() else m for m in masks]
    for a, b in zip(found, results(function, [x.double() for x in inputs], *exact), strict=True):
        assert a.isfinite().all()
        assert (a - b).norm() <= tolerance * b.norm()
    return found


def attend(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


ATTEND = compiled(attend)


CAUSAL = torch.ones(Q, K, dtype=torch.bool).tril()
WINDOW = CAUSAL & ~CAUSAL.tril(-3)
LEFT = torch.arange(K) >= torch.tensor([2, 0])[:, None]
RIGHT = torch.arange(K) < torch.tensor([6, 3])[:, None]
DISTANCE = (torch.arange(Q)[:, None] - torch.arange(K)).abs()
ALIBI = -DISTANCE * 2.0 ** -torch.arange(1, H + 1)[:, None, None]
SEEN = CAUSAL & RIGHT[:, None, None]


def lowered(visible, value):
    return torch.zeros(visible.shape).masked_fill(~visible, value)


MASKS = {
    "bool [q, k]": CAUSAL,
    "bool [1, 1, q, k]": WINDOW[None, None],
    "bool [b, 1, 1, k], right padding": RIGHT[:, None, None],
    "bool [b, 1, q, k]": SEEN,
    "bool [b, h, q, k]": SEEN.repeat(1, H, 1, 1),
    "bool, left padding with the diagonal": LEFT[:, None, None] & CAUSAL | torch.eye(Q, dtype=torch.bool),
    "bool of stride 0": SEEN.expand(B, H, Q, K),
    "finfo.min": lowered(SEEN, LOWEST),
    "-inf": lowered(SEEN, -torch.inf),
    "-inf [b, h, q, k]": lowered(SEEN, -torch.inf).repeat(1, H, 1, 1),
    "-1e9": lowered(WINDOW, -1e9),
    "-1e4": lowered(WINDOW, -1e4),
    "finite biases": ALIBI,
    "finite biases and -inf": ALIBI + lowered(SEEN, -torch.inf),
    "finite biases and finfo.min": ALIBI + lowered(CAUSAL, LOWEST),
}


@pytest.mark.parametrize("name", MASKS)
def test_values_and_gradients(name):
    check(attend, qkv(), MASKS[name])
    assert [plan.name for plan in session().plans if "backward" not in plan.name] == [session().plans[0].name]
    assert len(session().plans) == 2


def test_a_slice_of_a_mask_is_taken_on_the_host():
    wide = lowered(torch.ones(B, 1, Q, K + 3, dtype=torch.bool).tril(), -torch.inf)
    check(lambda q, k, v, m: attend(q, k, v, m[..., :K]), qkv(), wide)
    assert len(session().plans) == 2


@pytest.mark.parametrize("kind", ["bool", "-inf"])
def test_rows_that_see_nothing_are_zero_as_in_torch(kind):
    visible = SEEN.clone()
    visible[0, 0, 2] = False
    mask = visible if kind == "bool" else lowered(visible, -torch.inf)
    y, dq, *_ = check(attend, qkv(), mask)
    assert not y[0, :, 2].any()
    assert not dq[0, :, 2].any()
    assert y[1].all()


def test_rows_of_finfo_min_attend_to_every_key_alike():
    q, k, v = qkv()
    mask = lowered(SEEN, LOWEST)
    mask[0, 0, 2] = LOWEST
    y, *_ = check(attend, (q, k, v), mask)
    torch.testing.assert_close(y[0, :, 2], v[0].mean(1), rtol=2e-3, atol=1e-3)


def test_sharp_attention_gives_masked_keys_exactly_nothing():
    q, k, v = qkv(scale=6.0)
    y = compiled(attend)(q, k, v, CAUSAL)
    torch.testing.assert_close(y[:, :, 0], v[:, :, 0], rtol=1e-3, atol=1e-3)
    changed = v.clone()
    changed[:, :, 1:] += 100.0
    assert torch.equal(compiled(attend)(q, k, changed, CAUSAL)[:, :, 0], y[:, :, 0])


def scores_of(q, k):
    return q @ k.transpose(-2, -1) * D**-0.5


EAGER = {
    "sum, then softmax": lambda q, k, v, m: torch.softmax(scores_of(q, k) + lowered(m, LOWEST), -1) @ v,
    "masked_fill": lambda q, k, v, m: scores_of(q, k).masked_fill(~m, -1e9).softmax(-1) @ v,
    "masked_fill with -inf": lambda q, k, v, m: scores_of(q, k).masked_fill(~m, -torch.inf).softmax(-1) @ v,
    "where": lambda q, k, v, m: F.softmax(torch.where(m, scores_of(q, k), LOWEST), dim=-1) @ v,
    "where, the other way": lambda q, k, v, m: F.softmax(torch.where(~m, LOWEST, scores_of(q, k)), dim=-1) @ v,
    "where with a tensor, and a sum": lambda q, k, v, m: (
        torch.softmax(
            torch.where(CAUSAL, scores_of(q, k), torch.full([], LOWEST, dtype=q.dtype)) + lowered(m, LOWEST), -1
        )
        @ v
    ),
    "soft cap": lambda q, k, v, m: torch.softmax(torch.tanh(scores_of(q, k) / 2) * 2 + lowered(m, LOWEST), -1) @ v,
    "1 - mask": lambda q, k, v, m: torch.softmax(scores_of(q, k) + (1.0 - m.float()) * LOWEST, -1) @ v,
}


@pytest.mark.parametrize("name", EAGER)
def test_masks_of_attention_that_a_model_writes_out(name):
    check(EAGER[name], qkv(), SEEN)
    assert len(session().plans) == 2
    assert {h.kind for h in session().host_operations} <= {"boundary"}
    assert all("test_masks.py" in h.source for h in session().host_operations)


def test_a_learned_bias_keeps_its_gradient():
    bias = torch.randn(1, H, Q, K, generator=torch.Generator().manual_seed(4))

    def biased(q, k, v, bias, visible):
        return attend(q, k, v, torch.where(visible, bias, LOWEST))

    check(biased, [*qkv(), bias], SEEN)
    assert len(session().plans) == 2


def combined(q, k, v, padding, segments):
    """Causal, padding, window and packed segments, put together from integers as models do."""
    at = torch.arange(Q)
    visible = (at[:, None] >= at) & (at[:, None] - at < 4)
    visible = visible & padding.bool()[:, None, None] & (segments[:, None, :, None] == segments[:, None, None])
    return attend(q, k, v, torch.logical_or(visible, torch.eye(Q, dtype=torch.bool)))


def test_masks_are_put_together_on_the_host_before_the_one_program():
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]])
    check(combined, qkv(), RIGHT.long(), segments)
    assert len(session().plans) == 2
    operations = {h.operation: h for h in session().host_operations}
    assert {h.kind for h in operations.values()} == {"boundary"}
    assert "integers and booleans are the host's" in operations["aten.ge.Tensor"].rule
    assert operations["aten.bitwise_and.Tensor"].region == "region 1 forward"


def test_the_backward_keeps_no_mask():
    check(attend, qkv(), SEEN)
    forward, backward = session().plans
    assert (B, 1, Q, K) in [port.shape for port in forward.inputs]
    assert (B, 1, Q, K) not in [port.shape for port in backward.inputs]
    assert (B, 1, Q, K) not in [port.shape for port in forward.outputs]


SHAPES = [(Q, K), (1, 1, Q, K), (B, 1, 1, K), (B, 1, Q, K), (B, H, Q, K), (1, H, 1, K)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([None, LOWEST, -torch.inf, -1e9]),
    st.integers(0, 2**31),
    st.floats(0, 1),
    st.floats(0.1, 20),
)
def test_any_mask_is_torch_s_and_finite(shape, value, seed, share, spread):
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(shape, generator=generator) < share
    biases = torch.randn(shape, generator=generator) * spread
    mask = visible if value is None else biases.masked_fill(~visible, value)
    q, k, v = qkv()
    with torch._dynamo.config.patch(recompile_limit=64), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        y = ATTEND(q, k, v, mask)
        wanted = attend(q.double(), k.double(), v.double(), mask if value is None else mask.double())
    assert y.isfinite().all()
    some = (visible.any(-1, keepdim=True) if value in (LOWEST, -1e9) else torch.ones(())).expand(B, H, Q, D)
    # fp16 rounds a bias and the score it is added to, each by 2^-11 of itself; a probability errs by twice that
    largest = 0 if value is None else biases[visible].abs().amax() if visible.any() else 0
    rounding = 4 * 2**-11 * (largest + scores_of(q, k).abs().amax()) * v.abs().amax()
    torch.testing.assert_close((y * some).double(), wanted * some, rtol=1e-2, atol=4e-3 + float(rounding))
