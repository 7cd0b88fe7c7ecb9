"""Check MIL against a chip: each violation names operation, shape, rule and source.

The compiler checks each operation as it lowers it, the emulated engine each program as it compiles it, so both refuse
the same things. Constructs in dispute that the chip's switches allow are listed too, as not refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anew.chips.chip import Chip
from anew.chips.rules import CONVOLUTIONS, REDUCTIONS, Breach, Producer, breaches, unsupported
from anew.chips.violation import Violation
from anew.mil import Function, Op, Program
from anew.mil.lexer import Lexer


def check(program: Program | Function, chip: Chip) -> list[Violation]:
    """Return what a program, or one function of it, breaks on a chip, in the order of its operations.

    Violations that are not ``refused`` are constructs on which sources disagree and that the chip's switches allow.
    """
    if isinstance(program, Program):
        return [violation for function in program.functions.values() for violation in check(function, chip)]
    producers = {value: op for op in program.ops for value in op.outputs}
    found = [v for breach in _ports(program, chip) for v in _violation("port", breach, chip)]
    for op in program.ops:
        found += check_op(op, chip, producers.get)
    found += [v for breach in _sliced_input_norm(program) for v in _violation("slice_by_index", breach, chip)]
    return list(dict.fromkeys(found))


def check_op(op: Op, chip: Chip, producer: Producer) -> list[Violation]:
    """Return what one operation breaks; ``producer`` gives the operation that defines a value, None for an input.

    What is done when compiling (``const``, ``constexpr_*``) breaks nothing by itself.
    """
    if op.constant:
        return []
    return [v for breach in breaches(op, chip, producer) for v in _violation(op.kind, breach, chip)]


def check_text(text: str, chip: Chip) -> list[Violation]:
    """Return what the spelling of MIL text breaks: operations the chip does not have, flags that are literals.

    Operations that anew itself does not know are found too.
    """
    tokens = Lexer(text).tokens
    found: list[Violation] = []
    for before, equals, after, opening in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
        if equals != "=":
            continue
        if before in ("transpose_x", "transpose_y") and after in ("true", "false", "bool"):
            found += _decided("matmul", before, (), "must be a named constant", "inline_flags", chip)
        elif opening == "(" and (missing := unsupported(after, chip)) is not None:
            found += _decided(after, before, (), *missing, chip)
    return list(dict.fromkeys(found))


def refused(violations: Sequence[Violation]) -> list[Violation]:
    """Those that keep a program off the chip."""
    return [violation for violation in violations if violation.refused]


def _ports(function: Function, chip: Chip) -> Iterator[Breach]:
    for value in (*function.inputs, *function.outputs):
        element = value.type.dtype
        if element not in chip.port_types:
            rule = f"is {element}; the engine's ports are {', '.join(chip.port_types)}"
            yield Breach(value, rule, "fp32" if element == "fp32" else "port_types")


def _sliced_input_norm(function: Function) -> Iterator[Breach]:
    """slice_by_index of an input, a norm and a convolution in one program."""
    slices = [op for op in function.ops if op.kind == "slice_by_index" and op.inputs["x"] in function.inputs]
    kinds = {op.kind for op in function.ops}
    if slices and kinds & {"pow", "rsqrt"} and kinds & set(REDUCTIONS) and kinds & set(CONVOLUTIONS):
        yield Breach(slices[0].output, "does not compile beside a norm and a convolution", "sliced_input_norm")


def _violation(operation: str, breach: Breach, chip: Chip) -> list[Violation]:
    return _decided(operation, breach.value.name, breach.value.shape, breach.rule, breach.row, chip)


def _decided(operation: str, value: str, shape: tuple[int, ...], rule: str, row: str, chip: Chip) -> list[Violation]:
    """The violation of a row; of a switch only where it refuses, or where the refusal was reported."""
    switch = chip.switches.get(row)
    if switch is None:
        return [Violation(operation, value, shape, rule, chip.name, chip.row(row).source)]
    refuses = chip.refuses(row)
    if not refuses and switch.reported_on and chip.name not in switch.reported_on:
        return []
    return [Violation(operation, value, shape, rule, chip.name, switch.sources["refuse"], row, refuses)]
