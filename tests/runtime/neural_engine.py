"""The fake of AppleNeuralEngine.framework, Foundation, IOSurface and the Objective-C runtime, with the emulated engine.

Built from the C files in tests/runtime/objc; compiling and computing come back here.
"""

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

SOURCES = sorted(Path(__file__).with_name("objc").glob("*.c"))
REFUSED, EXECUTION_FAILED = 1, 8
ON_COMPILE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
ON_EVALUATE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_char_p),
    ctypes.POINTER(ctypes.c_void_p),
)


#: What a real runtime and Foundation take the place of.
EMULATED = ("runtime.c", "foundation.c")


def lack_of_gnustep() -> str:
    """Why the fakes cannot be built over GCC's Objective-C runtime and GNUstep's Foundation; empty when they can."""
    missing = [command for command in ("cc", "gnustep-config") if shutil.which(command) is None]
    if missing:
        return f"there is no `{missing[0]}` here: apt-get install gobjc libgnustep-base-dev"
    found = subprocess.run(
        ["cc", "-x", "objective-c", "-E", "-"], input="", capture_output=True, text=True, check=False
    )
    return "" if found.returncode == 0 else "the C compiler takes no Objective-C here: apt-get install gobjc"


def build_over_gnustep(folder: Path) -> Path:
    """Compile the classes of the engine and IOSurface over a real runtime and Foundation; returns the library."""
    path, part = folder / "libfake_neural_engine_gnustep.so", folder / "gnustep.o"
    flags = ["-std=gnu11", "-Wall", "-O1", "-fPIC"]
    asked = ["gnustep-config", "--objc-flags"]
    gnustep = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    source = Path(__file__).with_name("objc") / "gnustep.m"
    subprocess.run(["cc", *gnustep, *flags, "-MF", folder / "gnustep.d", "-c", source, "-o", part], check=True)
    ours = [source for source in SOURCES if source.name not in EMULATED]
    libraries = ["-lgnustep-base", "-lobjc", "-lm"]
    subprocess.run(["cc", *flags, "-DGNUSTEP", "-shared", "-o", path, part, *ours, *libraries], check=True)
    return path


def build(folder: Path, *defines: str) -> Path:
    """Compile the fake with these macros defined; returns the library."""
    path = folder / f"libfake_neural_engine_{abs(hash(defines))}.so"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", *(f"-D{d}" for d in defines)]
    subprocess.run(["cc", *flags, "-o", path, *SOURCES], check=True)
    return path


class Switches(ctypes.Structure):
    """What accounts differ on, and budgets; as in neural_engine.c."""

    NAMES = (
        "client_refuses",
        "text_order",
        "packed",
        "plain_names",
        "idle",
        "loads_late",
        "loaded_programs",
        "compiles",
    )
    _fields_ = [(name, ctypes.c_int) for name in NAMES]


@dataclass
class FakeNeuralEngine:
    """One use of the fake: it begins without objects, counts or violations.

    Attributes:
        path: the library, as given to anew's Runtime. chip: whose rules the compiler behind it has.
        numerics: of the emulated engine behind it. switches: disputed facts that are not as by default; besides those
            in C ``coherent`` (surfaces need no lock) and ``channels_first`` (axes of a short shape are channels).
    """

    path: Path
    chip: Chip
    numerics: str = "fast"
    switches: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.library = ctypes.CDLL(str(self.path))
        self.library.fake_violations.restype = self.library.fake_calls.restype = ctypes.c_char_p
        self.library.fake_calls_made.restype = ctypes.c_long
        self.library.fake_fail_at.argtypes = [ctypes.c_long, ctypes.c_int]
        self.library.fake_declare.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_int64),
        ]
        self.library.fake_alive.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.engine = EmulatedEngine(self.chip, numerics=self.numerics)
        self.programs: dict[tuple[int, str], LoadedProgram] = {}
        self.layout = BufferPool(1 if self.switches.get("packed") else 64)
        self._callbacks = ON_COMPILE(self._compile), ON_EVALUATE(self._evaluate)
        self.library.fake_reset(*self._callbacks)
        found = Switches.in_dll(self.library, "fake_switches")
        for name in Switches.NAMES:
            setattr(found, name, self.switches.get(name, 0))
        ctypes.c_int.in_dll(self.library, "coherent_surfaces").value = self.switches.get("coherent", 0)

    @property
    def violations(self) -> list[str]:
        """What was done wrong, each with the method's or function's name."""
        return self.library.fake_violations().decode().splitlines()

    @property
    def calls(self) -> list[str]:
        """The calls that may fail, made since :meth:`log_calls`."""
        return self.library.fake_calls().decode().splitlines()

    def log_calls(self) -> None:
        """Write down each call from now on."""
        ctypes.c_bool.in_dll(self.library, "fake_logging").value = True

    @property
    def alive(self) -> dict[str, int]:
        """The objects not released, by class."""
        text = ctypes.create_string_buffer(1024)
        self.library.fake_alive(text, len(text))
        entries = [entry.split(" ", 1) for entry in text.value.decode().split("; ") if entry]
        return {kind: int(count) for count, kind in entries}

    def fail_at(self, call: int, code: int = 77) -> None:
        """Let the call of that number, counted from 1, do nothing and give nil, NO or a code."""
        self.library.fake_fail_at(call, code)

    def _compile(self, model: int, folder: bytes) -> int:
        try:
            place = Path(folder.decode())
            text = (place / "model.mil").read_text()
            names = set(re.findall(r'path = string\("([^"]+)"\)', text))
            weights = {name: (place / name.removeprefix("@model_path/")).read_bytes() for name in names}
            for name in parse_program(text, weights).functions:
                program = self.engine.compile(text, weights, name)
                self.engine.statistics.programs = 0  # budgets are the fake's own
                self.programs[model, name] = program
                for kind, ports in enumerate((program.inputs, program.outputs)):
                    for port in ports:
                        self._declare(model, name, port, kind)
        except (DeviceError, MilError, OSError) as error:
            return self._refuse(error, REFUSED)
        return 0

    def _declare(self, model: int, function: str, port: Port, kind: int) -> None:
        extents = (ctypes.c_int64 * 5)(*self._extents(port.type.shape))
        size = port.dtype.itemsize
        self.library.fake_declare(model, function.encode(), port.name.encode(), kind, size, extents)

    def _extents(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Batches, channels, depth, height and width of a port."""
        if len(shape) == 5:
            return shape
        if self.switches.get("channels_first") and len(shape) < 4:
            batches, channels, width = (1,) * (3 - len(shape)) + shape
            return batches, channels, 1, 1, width
        batches, channels, height, width = (1,) * (4 - len(shape)) + shape
        return batches, channels, 1, height, width

    def _evaluate(self, model: int, function: bytes, count: int, names: Any, memory: Any) -> int:
        program = self.programs[model, function.decode()]
        try:
            bindings = {names[i].decode(): memory[i] for i in range(count)}
            operation = program.operation()
            operation.bindings.update({name: self._tensor(program.ports[name], at) for name, at in bindings.items()})
            operation.execute()
        except Exception as error:
            return self._refuse(error, EXECUTION_FAILED)
        return 0

    def _tensor(self, port: Port, address: int) -> Tensor:
        shape, dtype = port.type.shape, port.dtype
        block = (ctypes.c_uint8 * self.layout.nbytes(shape, dtype)).from_address(address)
        return torch.frombuffer(block, dtype=dtype).as_strided(shape, self.layout.strides(shape, dtype))

    def _refuse(self, error: Exception, code: int) -> int:
        self.library.fake_set_message(str(error).encode())
        return code
