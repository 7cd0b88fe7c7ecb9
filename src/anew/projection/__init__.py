"""Time of programs on engines that nobody has at hand: projected from published measurements, with the error."""

from anew.projection.rates import Rates, chip_names, read_rates
from anew.projection.scaled import Scaled, scaled_names
from anew.projection.work import (
    Work,
    activation,
    convolution,
    from_memory,
    layer_norm,
    matmul,
    reduction,
    softmax,
    streamed,
)

__all__ = [
    "Rates",
    "Scaled",
    "Work",
    "activation",
    "chip_names",
    "convolution",
    "from_memory",
    "layer_norm",
    "matmul",
    "read_rates",
    "reduction",
    "scaled_names",
    "softmax",
    "streamed",
]
