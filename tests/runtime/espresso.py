"""The fake of Espresso.framework: built from fake_e5rt.c, with the emulated engine behind it."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anew.chips import Chip
from anew.device.base import DeviceError, LoadedProgram, Port
from anew.device.buffers import BufferPool
from anew.device.emulator.engine import EmulatedEngine
from anew.mil import MilError, parse_program

SOURCE = Path(__file__).with_name("fake_e5rt.c")
REFUSED, EXECUTION_FAILED = 11, 5
ON_COMPILE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
ON_EXECUTE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_char_p),
    ctypes.POINTER(ctypes.c_void_p),
)


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("cc")


def build(folder: Path, *defines: str) -> Path:
    """Compile the fake with these macros defined; returns the library."""
    path = folder / f"libfake_e5rt{''.join('_' + d for d in defines)}.so"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", *(f"-D{d}" for d in defines)]
    subprocess.run(["cc", *flags, "-o", path, SOURCE], check=True)
    return path


class Switches(ctypes.Structure):
    """What accounts differ on, and budgets; as in fake_e5rt.c."""

    _fields_ = [
        (name, ctypes.c_int)
        for name in ("packed", "in_elements", "binds_once", "loads_per_operation", "loaded_programs", "compiles")
    ]


@dataclass
class FakeEspresso:
    """One use of the fake: it begins without objects, counts or violations.

    Attributes:
        path: the library, as given to anew's Espresso. chip: whose rules the compiler behind it has.
        numerics: of the emulated engine behind it. switches: disputed facts that are not as by default.
    """

    path: Path
    chip: Chip
    numerics: str = "fast"
    switches: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.library = ctypes.CDLL(str(self.path))
        self.library.fake_violations.restype = self.library.fake_calls.restype = ctypes.c_char_p
        self.library.fake_declare.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.POINTER(ctypes.c_int64),
        ]
        self.library.fake_alive.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.engine = EmulatedEngine(self.chip, numerics=self.numerics)
        self.programs: dict[tuple[int, str], LoadedProgram] = {}
        self.layout = BufferPool(1 if self.switches.get("packed") else 64)
        self._callbacks = ON_COMPILE(self._compile), ON_EXECUTE(self._execute)
        self.library.fake_reset(*self._callbacks)
        found = Switches.in_dll(self.library, "fake_switches")
        for name, value in self.switches.items():
            setattr(found, name, value)

    @property
    def violations(self) -> list[str]:
        """What was done wrong, each with the function's name."""
        return self.library.fake_violations().decode().splitlines()

    @property
    def calls(self) -> list[str]:
        """The functions called so far, without their common prefix."""
        return self.library.fake_calls().decode().splitlines()

    @property
    def alive(self) -> dict[str, int]:
        """The objects not released, by kind."""
        text = ctypes.create_string_buffer(1024)
        self.library.fake_alive(text, len(text))
        entries = [entry.split(" ", 1) for entry in text.value.decode().split("; ") if entry]
        return {kind: int(count) for count, kind in entries}

    def fail_at(self, call: int, code: int = 77) -> None:
        """Let the call of that number, counted from 1, do nothing and return a code."""
        self.library.fake_fail_at(call, code)

    def _compile(self, library: int, path: bytes) -> int:
        try:
            file = Path(path.decode())
            text = file.read_text()
            names = set(re.findall(r'path = string\("([^"]+)"\)', text))
            weights = {name: (file.parent / name.removeprefix("@model_path/")).read_bytes() for name in names}
            for name in parse_program(text, weights).functions:
                program = self.engine.compile(text, weights, name)
                self.engine.statistics.programs = 0  # budgets are the fake's own
                self.programs[library, name] = program
                self._declare(library, name, program.inputs, program.outputs)
        except (DeviceError, MilError, OSError) as error:
            return self._refuse(error, REFUSED)
        return 0

    def _declare(self, library: int, function: str, inputs: list[Port], outputs: list[Port]) -> None:
        for port in (*inputs, *outputs):
            shape = (ctypes.c_int64 * len(port.type.shape))(*port.type.shape)
            kind = int(port in outputs)
            size = port.dtype.itemsize
            self.library.fake_declare(library, function.encode(), port.name.encode(), kind, size, len(shape), shape)

    def _execute(self, library: int, function: bytes, count: int, names: Any, pointers: Any) -> int:
        program = self.programs[library, function.decode()]
        try:
            bindings = {names[i].decode(): pointers[i] for i in range(count)}
            operation = program.operation()
            operation.bindings.update({name: self._tensor(program.ports[name], at) for name, at in bindings.items()})
            operation.execute()
        except Exception as error:
            return self._refuse(error, EXECUTION_FAILED)
        return 0

    def _tensor(self, port: Port, address: int) -> Tensor:
        shape, dtype = port.type.shape, port.dtype
        memory = (ctypes.c_uint8 * self.layout.nbytes(shape, dtype)).from_address(address)
        return torch.frombuffer(memory, dtype=dtype).as_strided(shape, self.layout.strides(shape, dtype))

    def _refuse(self, error: Exception, code: int) -> int:
        self.library.fake_set_message(str(error).encode())
        return code
