"""A compiled plan as data: programs, buffers, copies, scales."""

from anew.plan.plan import MAXIMA, SCALES, InputPort, Operand, OutputPort, Plan, Product, ScalePlan

__all__ = ["MAXIMA", "SCALES", "InputPort", "Operand", "OutputPort", "Plan", "Product", "ScalePlan"]
