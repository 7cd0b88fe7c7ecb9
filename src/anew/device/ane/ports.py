"""What a loaded program says of itself: its procedures, the order of their ports, and how each port lies in memory.

Read from ``modelAttributes``, never assumed. Sources: maderix/ANE follow-ups and oMLX (the dictionaries' keys), Orion
(symbols are ordered by name, not as in the text), libane (output names end in ``@output``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anew.device.base import DeviceError, Port

#: Extents and strides of a port's axes, the innermost last.
AXES = (("Batches", "BatchStride"), ("Channels", "PlaneStride"), ("Depth", "DepthStride"), ("Height", "RowStride"))


@dataclass(frozen=True)
class Side:
    """The inputs or the outputs of a procedure: names in the order that a request takes, and their symbols' indices."""

    names: tuple[str, ...]
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Procedure:
    """One function of a loaded program.

    Attributes:
        index: as requests name it. inputs, outputs: its ports in order.
        layouts: how each port lies in memory, by name, as the framework describes it.
    """

    index: int
    inputs: Side
    outputs: Side
    layouts: Mapping[str, Mapping[str, Any]]


def read_procedure(attributes: Any, function: str) -> Procedure:
    """Read one function from a loaded model's attributes; raises DeviceError when they lack something."""
    try:
        description = attributes["ANEFModelDescription"]
        procedures = description["ANEFModelProcedures"]
        identity = description.get("kANEFModelProcedureNameToIDMapKey") or {}
        index = identity.get(function, 0) if len(procedures) == 1 else identity[function]
        procedure = next(p for p in procedures if p["ANEFModelProcedureID"] == index)
        inputs, outputs = (_side(description, procedure, kind) for kind in ("Input", "Output"))
        status = attributes["NetworkStatusList"][index]
        live = [entry for name in _LISTS for entry in status.get(name) or ()]
        layouts = {_port_name(entry.get("Symbol") or entry["Name"]): entry for entry in live}
    except (KeyError, IndexError, TypeError, StopIteration) as error:
        raise DeviceError(
            "load",
            f"the loaded program does not describe its function '{function}' and its ports: {error!r}",
        ) from error
    return Procedure(index, inputs, outputs, layouts)


_LISTS = ("LiveInputList", "LiveInputParamList", "LiveOutputList")


def _side(description: Mapping[str, Any], procedure: Mapping[str, Any], kind: str) -> Side:
    symbols = description[f"kANEFModel{kind}SymbolsArrayKey"]
    indices = tuple(procedure[f"ANEFModel{kind}SymbolIndexArray"])
    return Side(tuple(_port_name(symbols[i]) for i in indices), indices)


def _port_name(symbol: str) -> str:
    return symbol.removesuffix("@output")


def check_names(kind: str, found: Side, ports: Sequence[Port]) -> None:
    """Raise DeviceError when the loaded program's ports are not those of the text."""
    wanted = {port.name for port in ports}
    if set(found.names) != wanted:
        raise DeviceError(
            "load",
            f"loaded with {kind}s {', '.join(sorted(found.names))}; the program's text has {', '.join(sorted(wanted))}",
        )


def row_stride(layout: Mapping[str, Any]) -> int:
    """Bytes from one row of a port to the next."""
    return int(layout.get("RowStride") or 0)


def check_layout(port: Port, layout: Mapping[str, Any], strides: tuple[int, ...], nbytes: int, room: int) -> None:
    """Raise DeviceError when a buffer of a port's shape is not laid out as the engine reads it.

    Args:
        port: as the text has it. layout: as the loaded program has it.
        strides: of the buffer, in bytes. nbytes: of the buffer. room: bytes of the surface that it lies in.
    """
    extents = [int(layout.get(axis) or 1) for axis, _ in AXES]
    shape, width = port.type.shape, int(layout.get("Width") or 1)
    rows = math.prod(shape[:-1])
    if width != shape[-1] or math.prod(extents) != rows:
        raise DeviceError("load", f"port '{port.name}' is {port.type}; the engine has {extents} rows of {width}")
    expected = nbytes // rows  # rows follow each other without gaps besides their own padding
    for (axis, name), extent in zip(reversed(AXES), reversed(extents), strict=True):
        found = int(layout.get(name) or 0)
        if extent > 1 and found != expected:
            raise DeviceError(
                "load",
                f"port '{port.name}' is {port.type}; the engine's {name} over {extent} {axis} is {found} bytes, "
                f"buffers have {expected} (strides {strides})",
            )
        expected *= extent
    demanded = extents[0] * int(layout.get("BatchStride") or 0)
    if demanded > room:
        raise DeviceError("load", f"port '{port.name}' is {port.type} and takes {demanded} bytes, surfaces have {room}")
