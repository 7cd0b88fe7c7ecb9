"""Gradients of norms of many features, at weights of any size: against PyTorch in fp64."""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("fresh")

FEATURES = 768


class Gemma(nn.RMSNorm):
    """A norm whose weight is stored less one."""

    def forward(self, x):
        return nn.functional.rms_norm(x, (FEATURES,), None, self.eps) * (1 + self.weight)


def gradients(norm, x, cotangent, compile=lambda module: module):
    x = x.clone().requires_grad_()
    compile(norm)(x).backward(cotangent)
    return [x.grad, *(p.grad for p in norm.parameters() if p.requires_grad)]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("make", [nn.RMSNorm, Gemma, nn.LayerNorm])
def test_gradients_of_norms(make, trained, scale):
    generator = torch.Generator().manual_seed(0)
    norm = make(FEATURES, eps=1e-6).requires_grad_(trained)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(FEATURES, generator=generator).add(0.5).mul(scale))
    x, cotangent = (torch.randn(2, 16, FEATURES, generator=generator) for _ in range(2))
    cotangent += 0.5 * x  # the mean of its product with what was normed is not 0
    found = gradients(norm, x, cotangent, lambda m: torch.compile(m, backend="anew", options={"strict": True}))
    norm.zero_grad()
    for a, b in zip(found, gradients(norm.double(), x.double(), cotangent.double()), strict=True):
        assert (a - b).norm() <= 2e-3 * b.norm()
