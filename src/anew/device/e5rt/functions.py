"""The C functions of Espresso.framework, called through ctypes: names, signatures, checks, ownership.

Every function returns an error code, 0 when all is well. An object comes back through an out-pointer and is given back
to a function that takes the address of its pointer. Sources: ANEForge 0.4.0 (``e5rt_api.h`` and its dispatch layer,
which ran on macOS 15 to 27), ane-guide chapter 6, and for tensor descriptors and the last error message the texts of
Apple's own clients. Some sources declare the code as 64 bits wide, some as 32; the low half is read, which both have.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from anew.device.framework import FrameworkError, FrameworkWarning

FRAMEWORK = "/System/Library/PrivateFrameworks/Espresso.framework/Espresso"

HANDLE = ctypes.c_void_p
TEXT = ctypes.c_char_p
OUT = ctypes.POINTER(ctypes.c_void_p)
SIZES = ctypes.POINTER(ctypes.POINTER(ctypes.c_int64))
U64, U32, INT = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
U64_OUT = ctypes.POINTER(ctypes.c_uint64)

#: What is known of the codes.
KNOWN_CODES = {
    11: "the engine's compiler refused the program (ANEForge issues); its reasons are in the log of Espresso on stderr",
    13: "the program could not be loaded; in one report a restart of the Mac cleared it",
}


@dataclass(frozen=True)
class Signature:
    """A function: the stage it belongs to, its arguments, what releases the object it gives, and its other names."""

    stage: str
    arguments: tuple[Any, ...]
    release: str = ""
    other_names: tuple[str, ...] = ()


FUNCTIONS = {
    "e5_compiler_config_options_create": Signature("compile", (OUT,), "e5_compiler_config_options_release"),
    "e5_compiler_config_options_set_cache_bundle_location": Signature(
        "compile", (HANDLE, TEXT), other_names=("e5_compiler_config_options_set_bundle_cache_location",)
    ),
    "e5_compiler_config_options_release": Signature("compile", (OUT,)),
    "e5_compiler_create_with_config": Signature("compile", (OUT, HANDLE), "e5_compiler_release"),
    "e5_compiler_release": Signature("compile", (OUT,)),
    "e5_compiler_options_create": Signature("compile", (OUT,), "e5_compiler_options_release"),
    "e5_compiler_options_set_compute_device_types_mask": Signature("compile", (HANDLE, U64)),
    "e5_compiler_options_set_force_recompilation": Signature("compile", (HANDLE, INT)),
    "e5_compiler_options_set_segmenter": Signature("compile", (HANDLE, TEXT)),
    "e5_compiler_options_release": Signature("compile", (OUT,)),
    "e5_compiler_compile": Signature("compile", (HANDLE, TEXT, HANDLE, OUT), "program_library_release"),
    "program_library_release": Signature("load", (OUT,)),
    "program_library_retain_program_function": Signature("load", (HANDLE, TEXT, OUT), "program_function_release"),
    "program_function_release": Signature("load", (OUT,)),
    "precompiled_compute_op_create_options_create_with_program_function": Signature(
        "load", (OUT, HANDLE), "precompiled_compute_op_create_options_release"
    ),
    "precompiled_compute_op_create_options_set_operation_name": Signature("load", (HANDLE, TEXT)),
    "precompiled_compute_op_create_options_set_allocate_intermediate_buffers": Signature("load", (HANDLE, INT)),
    "precompiled_compute_op_create_options_release": Signature("load", (OUT,)),
    "execution_stream_operation_create_precompiled_compute_operation_with_options": Signature(
        "load", (OUT, HANDLE), "execution_stream_operation_release"
    ),
    "execution_stream_operation_release": Signature("load", (OUT,)),
    "execution_stream_operation_retain_input_port": Signature("bind", (HANDLE, TEXT, OUT), "io_port_release"),
    "execution_stream_operation_retain_output_port": Signature("bind", (HANDLE, TEXT, OUT), "io_port_release"),
    "io_port_retain_tensor_desc": Signature("bind", (HANDLE, OUT), "tensor_desc_release"),
    "io_port_bind_buffer_object": Signature("bind", (HANDLE, HANDLE)),
    "io_port_release": Signature("bind", (OUT,)),
    "tensor_desc_get_strides": Signature("bind", (HANDLE, U64_OUT, SIZES)),
    "tensor_desc_release": Signature("bind", (OUT,)),
    "buffer_object_alloc": Signature("bind", (OUT, U64, U32), "buffer_object_release"),
    "buffer_object_get_data_ptr": Signature("bind", (HANDLE, OUT)),
    "buffer_object_release": Signature("bind", (OUT,)),
    "execution_stream_create": Signature("execute", (OUT,), "execution_stream_release"),
    "execution_stream_operation_prepare_op_for_encode": Signature("execute", (HANDLE,)),
    "execution_stream_encode_operation": Signature("execute", (HANDLE, HANDLE)),
    "execution_stream_execute_sync": Signature("execute", (HANDLE,)),
    "execution_stream_reset": Signature("execute", (HANDLE,)),
    "execution_stream_release": Signature("execute", (OUT,)),
}


class Espresso:
    """The loaded library. ``path`` is Apple's framework, or a library that behaves like it.

    Raises FrameworkError when the library does not load, or lacks a function under all its known names.
    """

    def __init__(self, path: str = FRAMEWORK) -> None:
        self.genuine = path == FRAMEWORK
        try:
            self.library = ctypes.CDLL(path)
        except OSError as error:
            raise FrameworkError("load", "dlopen", "dyld", -1, str(error)) from error
        self.functions = {name: self._find(name, signature) for name, signature in FUNCTIONS.items()}
        self._last_error = getattr(self.library, "e5rt_get_last_error_message", None)
        if self._last_error is not None:
            self._last_error.argtypes, self._last_error.restype = [], ctypes.c_char_p

    def _find(self, name: str, signature: Signature) -> Callable[..., int]:
        for candidate in (name, *signature.other_names):
            for symbol in (f"e5rt_{candidate}", f"_e5rt_{candidate}"):
                function = getattr(self.library, symbol, None)
                if function is not None:
                    function.argtypes, function.restype = list(signature.arguments), ctypes.c_int32
                    return function
        names = " or ".join(f"e5rt_{n}" for n in (name, *signature.other_names))
        raise FrameworkError("load", names, "dyld", -1, "symbol not found", "this macOS has moved or removed it")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function by its name without ``e5rt_``; raises FrameworkError when its code is not 0."""
        code = self.functions[name](*arguments)
        if code:
            raise self.error(name, code)

    def make(self, stack: ExitStack, name: str, *arguments: Any) -> int:
        """Call a function that gives an object, and let ``stack`` release it; returns its handle.

        ``arguments`` are those besides the out-pointer. Raises FrameworkError, also when no object comes back.
        """
        signature = FUNCTIONS[name]
        handle, position = ctypes.c_void_p(), signature.arguments.index(OUT)
        self.call(name, *arguments[:position], ctypes.byref(handle), *arguments[position:])
        if not handle.value:
            raise FrameworkError(signature.stage, f"e5rt_{name}", "e5rt", 0, "no object came back")
        stack.callback(partial(self._release, signature.release, handle))
        return handle.value

    def _release(self, name: str, handle: ctypes.c_void_p) -> None:
        code = self.functions[name](ctypes.byref(handle))
        if code:  # nobody could act on an exception: what was being taken down goes on being taken down
            warnings.warn(f"{self.error(name, code)}; its object stays until the process ends", FrameworkWarning, 2)

    def error(self, name: str, code: int) -> FrameworkError:
        """The error of a function that returned ``code``, with what the library says of it."""
        said = self._last_error() if self._last_error is not None else None
        text = (said or b"").decode(errors="replace").strip()
        return FrameworkError(FUNCTIONS[name].stage, f"e5rt_{name}", "e5rt", code, text, KNOWN_CODES.get(code, ""))
