"""Two-dimensional convolution on the multiply-accumulate array: the direct form and Winograd F(2,3).

Source: ANEForge 0.4.0 figures (facts: bit-exact multiply-accumulate rule; Winograd along width).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.device.emulator.mac import fixed_point_sums, matmul_exact
from anew.device.emulator.rounding import round_fixed_point, round_float64, round_matmul_

__all__ = ["conv2d"]

# The transforms of F(2,3): U = G w, V = B^T d, y = A^T (U * V).
_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
_B_T = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float64)


def conv2d(
    x: Tensor,
    w: Tensor,
    strides: tuple[int, int] = (1, 1),
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
    *,
    exact: bool = True,
    winograd: bool = False,
) -> Tensor:
    """Convolve as the engine does, without a bias.

    With `winograd`, the form of the M5 class is taken where it applies: 3x3 kernel, strides, dilations and
    groups of one and an even output width. Everything else, and every other chip, takes the direct form.

    Args:
        x: float32 [N, Cin, H, W] on the fp16 grid.
        w: float32 [Cout, Cin / groups, kh, kw] on the fp16 grid.
        strides: along height and width.
        pad: zeros added at the top, bottom, left and right.
        dilations: along height and width.
        groups: number of channel groups.
        exact: follow the multiply-accumulate rule bit for bit; otherwise sum in float32, which keeps the
            rounding of the operands (Winograd) and of the result, and its range.
        winograd: whether the chip uses Winograd F(2,3).

    Returns:
        Contiguous float32 [N, Cout, Ho, Wo] on the fp16 grid, at most 32752 in magnitude or infinite.

    Raises:
        ValueError: an operand of another dtype (in exact mode).
        RuntimeError: shapes that do not fit each other.
    """
    top, bottom, left, right = pad
    x = F.pad(x, (left, right, top, bottom)) if any(pad) else x
    plain = tuple(w.shape[2:]) == (3, 3) and tuple(strides) == tuple(dilations) == (1, 1) and groups == 1
    if winograd and plain and x.shape[3] % 2 == 0:  # the output is two narrower than the padded input
        return _winograd(x, w, exact)
    if exact:
        return _direct(x, w, strides, dilations, groups)
    return round_matmul_(F.conv2d(x, w, None, strides, 0, dilations, groups).contiguous())


def _direct(x: Tensor, w: Tensor, strides: tuple[int, int], dilations: tuple[int, int], groups: int) -> Tensor:
    extents = (d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilations, strict=True))
    height, width = ((n - e) // s + 1 for n, e, s in zip(x.shape[2:], extents, strides, strict=True))
    patches = F.unfold(x, tuple(w.shape[2:]), dilation=dilations, stride=strides)
    patches = patches.view(x.shape[0], groups, -1, height * width)
    kernels = w.reshape(groups, w.shape[0] // groups, -1)
    return matmul_exact(kernels, patches).view(x.shape[0], w.shape[0], height, width)


def _winograd(x: Tensor, w: Tensor, exact: bool) -> Tensor:
    """Convolve a padded input of even width with a 3x3 kernel, two output columns at a time."""
    height, tiles = x.shape[2] - 2, (x.shape[3] - 2) // 2
    # Float64 holds these sums of two or three fp16 values exactly, so each is rounded once.
    u = round_float64(torch.einsum("af,ocif->aoic", _G, w.double()).contiguous())
    windows = x.double().unfold(3, 4, 2)
    v = round_float64(torch.einsum("af,nchtf->anhct", _B_T, windows).contiguous())
    kernels = u.flatten(2).unsqueeze(1)
    rows = torch.stack([v[:, :, i : i + height] for i in range(3)], dim=3)  # [4, N, height, 3, Cin, tiles]
    columns = rows.permute(0, 1, 3, 4, 2, 5).reshape(4, x.shape[0], -1, height * tiles)
    m0, m1, m2, m3 = (fixed_point_sums if exact else torch.matmul)(kernels, columns)
    y = torch.stack([m0 + m1 + m2, m1 - m2 - m3], dim=-1)  # [N, Cout, height * tiles, 2]
    return (round_fixed_point if exact else round_matmul_)(y).view(x.shape[0], w.shape[0], height, 2 * tiles)
