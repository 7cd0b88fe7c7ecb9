"""The MIL language: types, ops, programs, builder, text printer and parser, weight blob.

MIL is the text that the engine's compiler takes. A :class:`Program` is built with :class:`Builder`, printed with
:func:`print_program` to text and a weight blob, and read back with :func:`parse_program`.
"""

import anew.mil.ops  # noqa: F401  (fills the table of operations)
from anew.mil.blob import BlobReader, BlobWriter, Weights
from anew.mil.builder import Builder, infer_types, rule_operands
from anew.mil.ops.registry import OPS, MilError, OpDef, lookup
from anew.mil.parser import parse_program
from anew.mil.printer import print_program
from anew.mil.program import Function, Op, Program, Value
from anew.mil.types import TensorType

__all__ = [
    "OPS",
    "BlobReader",
    "BlobWriter",
    "Builder",
    "Function",
    "MilError",
    "Op",
    "OpDef",
    "Program",
    "TensorType",
    "Value",
    "Weights",
    "infer_types",
    "lookup",
    "parse_program",
    "print_program",
    "rule_operands",
]
