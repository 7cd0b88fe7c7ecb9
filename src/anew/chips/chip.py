"""A chip: the rows of its data files, as typed attributes, with where each comes from.

``m1.toml`` holds every row; the file of a later generation says what changed since the one it ``follows``.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from anew.errors import UserError


@dataclass(frozen=True)
class Row:
    """One fact about a chip.

    Attributes:
        name: of the fact, and of the attribute of :class:`Chip`.
        value: of the fact on this chip.
        source: the project and the file, issue or document it was taken from.
        confidence: ``measured`` (on silicon), ``derived`` (computed from measurements, or carried over from a
            neighbouring generation), ``claimed`` (stated without a measurement) or ``disputed`` (a switch).
    """

    name: str
    value: Any
    source: str
    confidence: str


@dataclass(frozen=True)
class Switch:
    """A fact on which sources contradict each other.

    Attributes:
        name: of the switch.
        value: the option taken.
        sources: who stands for which option, by option.
        reported_on: the chips on which the refusal was reported; empty when the reports do not say.
        corpus: the published programs (A: accepted, R: rejected) that hang on it.
        operations: the MIL operations it is about, where it is about a list of them.
    """

    name: str
    value: str
    sources: Mapping[str, str]
    reported_on: tuple[str, ...] = ()
    corpus: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chip:
    """What one engine generation can do.

    Attributes:
        name: as given to ``--chip``.
        max_axis: longest axis of a tensor, in elements; the channels of a convolution are exempt.
        max_channels: most channels of a convolution, in or out.
        max_input_channels: most input channels of a convolution while the switch ``wide_input`` refuses more.
        max_transpose: largest product of the axes that a transpose moves.
        max_rank: largest rank of a tensor.
        max_matmul_rank: largest rank of an operand of matmul or transpose.
        max_kernel_width: widest fp16 kernel of a convolution.
        max_pool_window: largest side of a pooling window.
        max_layer_norm: longest row that the operation ``layer_norm`` is known to take.
        max_sdpa_length: most positions for which ``scaled_dot_product_attention`` is right.
        tile_factors: repetitions along one axis that ``tile`` takes, besides 1.
        runtime_kernel_batch: largest batch of a convolution whose weight is not a constant.
        port_types: element types of a program's inputs and outputs, besides fp32 where the switch ``fp32`` allows it.
        row_bytes: rows (the last axis) start at multiples of this in a buffer.
        loaded_programs: programs a process may have loaded at once.
        compiles: compiles of a process through ``_ANEInMemoryModel``.
        procedures: most functions of one loaded program.
        weight_bytes: largest weight file of a loaded program.
        convolution: ``direct`` or ``winograd-f23-width``, the form of 3x3 convolutions of stride 1.
        slice_limit: larger magnitudes become infinite in a slice of the last axis that does not begin at 0; ``inf``
            where there is no such rule.
        finite_infinities: whether infinities turn into finite values in later operations.
        reduce_threshold: reduced axes of this length and more take the transpose route.
        bit_exact: operations whose arithmetic the emulator reproduces bit for bit (with ``numerics="exact"``).
        operations: how each MIL operation reaches the engine: ``native``, ``folded`` (when a program is compiled),
            ``bridge`` (not from MIL) or ``walled``.
        switches: the disputed facts by name.
        rows: all rows by attribute, each with source and confidence.
    """

    name: str
    max_axis: int
    max_channels: int
    max_input_channels: int
    max_transpose: int
    max_rank: int
    max_matmul_rank: int
    max_kernel_width: int
    max_pool_window: int
    max_layer_norm: int
    max_sdpa_length: int
    tile_factors: tuple[int, ...]
    runtime_kernel_batch: int
    port_types: tuple[str, ...]
    row_bytes: int
    loaded_programs: int
    compiles: int
    procedures: int
    weight_bytes: int
    convolution: str
    slice_limit: float
    finite_infinities: bool
    reduce_threshold: int
    bit_exact: tuple[str, ...]
    operations: Mapping[str, str] = field(repr=False)
    switches: Mapping[str, Switch] = field(repr=False)
    rows: Mapping[str, Row] = field(repr=False)

    def row(self, name: str) -> Row:
        """Return the row behind an attribute, or behind an operation's status; raises UserError for any other name."""
        if name in self.rows:
            return self.rows[name]
        if name in self.operations:
            return Row(name, self.operations[name], self.rows["operations"].source, "claimed")
        raise UserError(f"chip {self.name} has no row '{name}'; rows: {', '.join(self.rows)}")

    def refuses(self, switch: str) -> bool:
        """Whether the construct that a switch is about is refused."""
        return self.switches[switch].value == "refuse"

    def arithmetic(self, operation: str) -> str:
        """The arithmetic class of a MIL operation: ``bit-exact`` or ``calibrated``."""
        return "bit-exact" if operation in self.bit_exact else "calibrated"


def known_chips() -> list[str]:
    """Names of the chips with a data file."""
    return sorted(f.name[:-5] for f in resources.files(__package__).iterdir() if f.name.endswith(".toml"))


def load_chip(name: str, switches: Mapping[str, str] | None = None) -> Chip:
    """Return the chip of that name, with the disputed facts in ``switches`` (option by switch) decided otherwise.

    Raises UserError naming the known ones when there is no such chip, switch or option.
    """
    return _load(name, tuple(sorted((switches or {}).items())))


@functools.cache
def _load(name: str, options: tuple[tuple[str, str], ...]) -> Chip:
    if name not in known_chips():
        raise UserError(f"unknown chip '{name}'; known: {', '.join(known_chips())}")
    data = _merged(name)
    switches = {key: _switch(key, entry) for key, entry in data.pop("switches").items()}
    operations = data.pop("operations")
    rows = {key: _row(name, key, entry) for section in data.values() for key, entry in section.items()}
    values = {key: row.value for key, row in rows.items()}
    rows["operations"] = Row("operations", None, operations.pop("source"), "claimed")
    status = {operation: status for status, names in operations.items() for operation in names}
    return Chip(name, **values, operations=status, switches=switches | _decided(switches, options), rows=rows)


def _merged(name: str) -> dict[str, Any]:
    """The sections of a chip's file over those of the chip it follows."""
    own: dict[str, Any] = tomllib.loads(resources.files(__package__).joinpath(f"{name}.toml").read_text())
    if "follows" not in own:
        return own
    base = _merged(own.pop("follows"))
    native = set(own.get("operations", {}).pop("native", ()))
    for status, names in base["operations"].items():
        if status != "source":
            base["operations"][status] = [n for n in names if n not in native]
    base["operations"]["native"] += sorted(native)
    for section, entries in own.items():
        for key, entry in entries.items():
            kept = base[section][key]
            if "confidence" in entry:
                kept.pop("on", None)
            kept.update(entry)
    return base


def _row(chip: str, name: str, entry: dict[str, Any]) -> Row:
    value, confidence = entry["value"], entry["confidence"]
    if chip not in entry.get("on", (chip,)):
        confidence = "derived"
    return Row(name, tuple(value) if isinstance(value, list) else value, entry["source"], confidence)


def _switch(name: str, entry: dict[str, Any]) -> Switch:
    on, corpus, operations = (tuple(entry.get(key, ())) for key in ("on", "corpus", "operations"))
    return Switch(name, entry["value"], entry["sources"], on, corpus, operations)


def _decided(switches: Mapping[str, Switch], options: tuple[tuple[str, str], ...]) -> dict[str, Switch]:
    decided = {}
    for name, value in options:
        if name not in switches:
            raise UserError(f"unknown switch '{name}'; known: {', '.join(switches)}")
        if value not in switches[name].sources:
            raise UserError(f"switch '{name}' is one of {', '.join(switches[name].sources)}, not {value!r}")
        old = switches[name]
        decided[name] = Switch(name, value, old.sources, old.reported_on, old.corpus, old.operations)
    return decided
