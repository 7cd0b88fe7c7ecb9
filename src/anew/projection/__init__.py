"""Time of programs on engines that nobody has at hand: projected from published measurements, with the error."""

from anew.projection.rates import Rates, chip_names, read_rates
from anew.projection.work import Work, convolution, elementwise, layer_norm, matmul, reduction, softmax

__all__ = [
    "Rates",
    "Work",
    "chip_names",
    "convolution",
    "elementwise",
    "layer_norm",
    "matmul",
    "read_rates",
    "reduction",
    "softmax",
]
