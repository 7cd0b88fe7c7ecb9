"""A compiled plan as data: programs, buffers, copies, scales."""

from anew.plan.bounds import UNKNOWN, Bound
from anew.plan.plan import BASE_BITS, MAXIMA, SCALES, InputPort, Operand, OutputPort, Plan, Product, ScalePlan

__all__ = [
    "BASE_BITS",
    "MAXIMA",
    "SCALES",
    "UNKNOWN",
    "Bound",
    "InputPort",
    "Operand",
    "OutputPort",
    "Plan",
    "Product",
    "ScalePlan",
]
