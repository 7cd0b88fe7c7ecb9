"""The emulator's arithmetic against every published silicon figure, the large ones included."""

from __future__ import annotations

from itertools import chain

from evidence import record, silicon_figures


def main() -> None:
    """Compute all figures and write how far each is from the published one."""
    products = [
        {"name": name, "emulated": value, "published": published, "deviation": abs(value / published - 1)}
        for name, value, published in silicon_figures.compare(
            chain(silicon_figures.mac_figures(), silicon_figures.large_gemm_figures())
        )
    ]
    ((_, jacobi, published),) = silicon_figures.compare(silicon_figures.elementwise_figures())
    record.write(
        "silicon",
        {
            "count": len(products),
            "worst_deviation": max(p["deviation"] for p in products),
            "jacobi_deviation": abs(jacobi / published - 1),
            "products": products,
        },
    )
