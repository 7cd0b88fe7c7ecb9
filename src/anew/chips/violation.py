"""What a checker finds: an operation, the rule it breaks, and who says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One broken rule.

    Attributes:
        operation: the MIL operation, or ``port``.
        value: name of the MIL value that breaks the rule.
        shape: its shape.
        rule: what it breaks, with the figures.
        chip: whose rule it is.
        source: where the rule was taken from.
        switch: the disputed fact behind the rule; empty when the rule is not disputed.
        refused: False for a disputed construct that the chip's switch allows.
    """

    operation: str
    value: str
    shape: tuple[int, ...]
    rule: str
    chip: str
    source: str
    switch: str = ""
    refused: bool = True

    def __str__(self) -> str:
        where = f" {list(self.shape)}" if self.shape else ""
        disputed = f"disputed, switch '{self.switch}'; " if self.switch else ""
        return f"{self.operation} '{self.value}'{where} {self.rule} ({disputed}{self.source})"
