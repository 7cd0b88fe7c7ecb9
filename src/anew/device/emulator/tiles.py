"""The matrix tiles of an x86 processor (AMX), as operations of numba kernels.

Eight tiles of 16 rows of 64 bytes: 0 to 3 hold sums (16 x 16 float32), 4 and 5 rows of the left operand (16 x 32
bfloat16), 6 and 7 columns of the right one (32 x 16, as 16 pairs of rows). Source: Intel's Architecture Instruction Set
Extensions Programming Reference, chapter 3; LLVM names each instruction ``llvm.x86.NAME``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 16
ROW_BYTES = 64
TILE_BYTES = ROWS * ROW_BYTES
_POINTER, _BYTE, _OFFSET = ir.IntType(8).as_pointer(), ir.IntType(8), ir.IntType(64)


@functools.cache
def available() -> bool:
    """Whether this processor multiplies bfloat16 tiles, and the system lets this process use them."""
    features = binding.get_host_cpu_features() if hasattr(torch.cpu, "_init_amx") else {}
    return bool(features.get("amx-bf16") and features.get("amx-tile") and torch.cpu._init_amx())


def _configuration() -> np.ndarray:
    """Palette 1, eight whole tiles: what ``ldtilecfg`` reads."""
    found = np.zeros(64, np.uint8)
    found[0] = 1
    found[16:32].view(np.uint16)[:] = ROW_BYTES
    found[48:56] = ROWS
    return found


CONFIGURATION = _configuration()


def _call(builder: ir.IRBuilder, name: str, arguments: list[ir.Value]) -> None:
    kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def address(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, offset: ir.Value) -> ir.Value:
    """The address ``offset`` bytes behind the first element of an array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(builder.bitcast(data, _POINTER), [offset])


def _on_tiles(name: str, *tiles: int) -> Callable[..., None]:
    """An instruction on tiles alone: no arguments."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        _call(builder, name, [_BYTE(tile) for tile in tiles])
        return context.get_dummy_value()

    @intrinsic
    def operation(typing_context: Any) -> Any:
        return types.void(), emit

    return operation


def _on_memory(name: str, tile: int) -> Callable[..., None]:
    """An instruction between a tile and memory: array, offset in bytes, bytes from row to row."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        place = address(context, builder, signature.args[0], args[0], args[1])
        _call(builder, name, [_BYTE(tile), place, args[2]])
        return context.get_dummy_value()

    @intrinsic
    def operation(typing_context: Any, array: Any, offset: Any, stride: Any) -> Any:
        return types.void(array, types.int64, types.int64), emit

    return operation


def _on_configuration(name: str) -> Callable[..., None]:
    """An instruction that reads or writes the 64 bytes of a configuration."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        _call(builder, name, [address(context, builder, signature.args[0], args[0], _OFFSET(0))])
        return context.get_dummy_value()

    @intrinsic
    def operation(typing_context: Any, array: Any) -> Any:
        return types.void(array), emit

    return operation


def _emit_transpose(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
    """Four rounds of exchanges between rows at distance 8, 4, 2, 1: of a pair, each takes half of the other's words."""
    vector = ir.VectorType(ir.IntType(32), ROWS)
    source, target = (address(context, builder, signature.args[2 * i], args[2 * i], args[2 * i + 1]) for i in range(2))

    def row(base: ir.Value, i: int) -> ir.Value:
        return builder.bitcast(builder.gep(base, [_OFFSET(i * ROW_BYTES)]), vector.as_pointer())

    def shuffled(x: ir.Value, y: ir.Value, mask: list[int]) -> ir.Value:
        return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), ROWS), mask))

    rows = [builder.load(row(source, i), align=4) for i in range(ROWS)]
    for distance in (8, 4, 2, 1):
        low = [j if not j & distance else ROWS + j - distance for j in range(ROWS)]
        high = [j + distance if not j & distance else ROWS + j for j in range(ROWS)]
        for i in range(ROWS):
            if not i & distance:
                x, y = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = shuffled(x, y, low), shuffled(x, y, high)
    for i, x in enumerate(rows):
        builder.store(x, row(target, i), align=4)
    return context.get_dummy_value()


@intrinsic
def transpose(typing_context: Any, source: Any, source_offset: Any, target: Any, target_offset: Any) -> Any:
    """Write the 16 x 16 words of 32 bits at one byte offset of an array transposed to one of another."""
    return types.void(source, types.int64, target, types.int64), _emit_transpose


load_configuration = _on_configuration("ldtilecfg")
save_configuration = _on_configuration("sttilecfg")
clear_0, clear_1, clear_2, clear_3 = (_on_tiles("tilezero", tile) for tile in range(4))
load_0, load_1, load_2, load_3, load_4, load_5, load_6, load_7 = (_on_memory("tileloadd64", tile) for tile in range(8))
store_0, store_1, store_2, store_3 = (_on_memory("tilestored64", tile) for tile in range(4))
add_0, add_1, add_2, add_3 = (
    _on_tiles("tdpbf16ps", sums, left, right) for sums, left, right in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))
)


@numba.njit
def aligned(words: int) -> np.ndarray:
    """New int32 memory for tiles; a row of a tile that lies in two cache lines takes several times as long to load."""
    memory = np.empty(words + ROW_BYTES // 4 - 1, np.int32)
    start = -memory.ctypes.data % ROW_BYTES // 4
    return memory[start : start + words]
