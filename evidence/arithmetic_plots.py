"""The engine's arithmetic in three pictures, made by the emulator in ``exact``.

The grid that products are rounded to; gradients under one loss scale for all of a model, beside operand scales; and one
matmul over the magnitudes of its operands, as they are and scaled.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from anew.device.emulator.mac import matmul_exact
from anew.frontend.scales import OPERAND_TARGET, exponent_for
from evidence import record
from evidence.arithmetic import measure
from evidence.gradients import trained_like

UNIT = 2.0**-16
#: Exponents of the loss scales of the second picture.
LOSS_SCALES = range(0, 33, 4)
#: Exponents of the operands' magnitude in the third.
MAGNITUDES = range(-16, 9, 2)
SIZE = 256


def half(x: Tensor) -> Tensor:
    """Round to fp16, kept as float32."""
    return x.half().float()


def products(x: Tensor, w: Tensor) -> Tensor:
    """Return the engine's product of each pair of numbers; float32 [N] on the fp16 grid, as the result."""
    return matmul_exact(x[:, None, None], w[:, None, None]).flatten()


def relative_error(found: Tensor, exact: Tensor) -> float:
    """``||found - exact|| / ||exact||``; infinite where something found is."""
    return float((found.double() - exact).norm() / exact.norm())


def draw_grid(path: Path) -> None:
    """Draw one product: near zero, on a straight scale, and its relative error by magnitude."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    near, far = figure.subplots(1, 2)
    near.axline((0, 0), slope=1, color="0.7", label="exact")
    for factor, label in ((2.0**-8, "times $2^{-8}$"), (1.75 * 2.0**-8, r"times $1.75 \cdot 2^{-8}$")):
        x = half(torch.linspace(-4.2 * UNIT / factor, 4.2 * UNIT / factor, 4001))
        near.plot(x * factor / UNIT, products(x, torch.full_like(x, factor)) / UNIT, label=label, linewidth=1.2)
    _name(near, "exact product, in $2^{-16}$", "the engine's product, in $2^{-16}$")
    near.legend(frameon=False)

    generator = torch.Generator().manual_seed(0)
    x, w = (half(torch.exp2(torch.empty(6000).uniform_(-10, 1, generator=generator))) for _ in range(2))
    exact = x.double() * w.double()
    error = ((products(x, w).double() - exact) / exact).abs()
    far.scatter(exact.log2(), error, s=2, alpha=0.4, linewidths=0)
    far.axhline(2.0**-11, color="0.4", linestyle="--", linewidth=1, label="rounding to fp16, at most")
    far.axvline(-16, color="C3", linewidth=1, label="$2^{-16}$")
    far.set_yscale("log")
    far.set_ylim(1e-6, 2)
    _name(far, "exact product, power of two", "relative error")
    far.legend(frameon=False, loc="lower left")
    _save(figure, path)


def loss_scales() -> dict[str, Any]:
    """Errors of the gradients of trained-like weights by exponent of the loss scale, and with operand scales."""
    found: dict[str, Any] = {str(e): asdict(measure(trained_like, "none", 2.0**e)) for e in LOSS_SCALES}
    return {**found, "operands": asdict(measure(trained_like, "operands", 1.0))}


def draw_loss_scales(rows: dict[str, Any], path: Path) -> None:
    """Draw worst and median error of a parameter's gradient over the loss scale; what is not finite is left out."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label, color in (("worst_error", "worst parameter", "C3"), ("median_error", "median", "C0")):
        axes.plot(LOSS_SCALES, [rows[str(e)][key] for e in LOSS_SCALES], "o-", color=color, label=label)
        axes.axhline(rows["operands"][key], color=color, linestyle="--", label=f"{label}, operand scales")
    axes.set_yscale("log")
    axes.set_xticks(LOSS_SCALES)
    _name(axes, "loss scale, power of two", "relative error of the gradient")
    axes.legend(frameon=False)
    _save(figure, path)


def one_matmul() -> dict[str, dict[str, float]]:
    """Relative errors of a product [256, 256] x [256, 256] by exponent of both operands' magnitude."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    rows = {}
    for exponent in MAGNITUDES:
        a, b = half(left * 2.0**exponent), half(right * 2.0**exponent)
        exact = a.double() @ b.double()
        up = [2.0 ** exponent_for(OPERAND_TARGET, float(x.abs().max())) for x in (a, b)]
        scaled = matmul_exact(half(a * up[0]), half(b * up[1])).double() / (up[0] * up[1])
        rows[str(exponent)] = {
            "as_they_are": relative_error(matmul_exact(a, b), exact),
            "scaled": relative_error(scaled, exact),
        }
    return rows


def draw_one_matmul(rows: dict[str, dict[str, float]], path: Path) -> None:
    """Draw both errors over the magnitude of the operands."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("as_they_are", "operands as they are"), ("scaled", "operands brought near 64")):
        axes.plot(MAGNITUDES, [rows[str(e)][key] for e in MAGNITUDES], "o-", label=label)
    axes.set_yscale("log")
    axes.set_xticks(MAGNITUDES)
    _name(axes, "magnitude of both operands, power of two", "relative error of the product")
    axes.legend(frameon=False)
    _save(figure, path)


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=110)
    partial.rename(path)


def main() -> None:
    """Measure, draw and write the record."""
    scales, matmul = loss_scales(), one_matmul()
    draw_grid(record.FOLDER / "arithmetic-grid.png")
    draw_loss_scales(scales, record.FOLDER / "arithmetic-loss-scale.png")
    draw_one_matmul(matmul, record.FOLDER / "arithmetic-operand-scales.png")
    record.write("arithmetic_plots", {"loss_scales": _finite(scales), "matmul": _finite(matmul)})


def _finite(rows: Any) -> Any:
    """The same with null, which JSON has, for what is not finite."""
    if isinstance(rows, dict):
        return {key: _finite(value) for key, value in rows.items()}
    return None if isinstance(rows, float) and not np.isfinite(rows) else rows
