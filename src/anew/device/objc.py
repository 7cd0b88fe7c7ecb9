"""Objective-C from plain Python: messages over ctypes, without a compiler or a bridge.

Each method is named as in a crash report, ``-[Class selector:]``, and carries the type encoding that anew calls it
with. Before it is used, the encoding is compared with the one that the runtime has: private methods change between
versions of macOS, and a wrong argument would crash the process. Written from the runtime's public interface and tested
on an emulation of it in C and on GCC's with GNUstep's Foundation (tests/runtime): no Mac was at hand.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from anew.device.base import DeviceError
from anew.device.framework import FrameworkError

#: Apple's libraries, as dyld names them; they lie in its shared cache.
FRAMEWORKS = (
    "/usr/lib/libobjc.A.dylib",
    "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation",
    "/System/Library/Frameworks/Foundation.framework/Foundation",
    "/System/Library/Frameworks/IOSurface.framework/IOSurface",
    "/System/Library/PrivateFrameworks/AppleNeuralEngine.framework/AppleNeuralEngine",
)

#: ctypes by type code. Objects, classes, selectors and out-pointers are addresses.
_TYPES: dict[str, Any] = {
    "v": None,
    "B": ctypes.c_bool,
    "I": ctypes.c_uint32,
    "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
    "*": ctypes.c_char_p,
    **dict.fromkeys(("@", "#", ":", "^@", "^v"), ctypes.c_void_p),
}
#: BOOL is B on Apple silicon, c on Intel Macs and C on GNUstep; long has 64 bits.
_EQUAL = {"c": "B", "C": "B", "l": "q", "L": "Q"}
#: A type: whether it is a pointer, and what it is or points to; GCC writes const behind the pointer, clang before it.
_ENCODED = re.compile(r"[rnNoORVA]*(\^?)[rnNoORVA]*(\{[^}]*\}|[^\d])\d*")
_METHOD = re.compile(r"([+-])\[(\w+) ([\w:]+)\]")
#: Of the runtime, so that errors have a domain.
DOMAIN = "objc"


def parse_encoding(encoding: str) -> tuple[str, ...]:
    """The type codes of a method, its result first: without offsets and qualifiers, equal types written alike.

    A pointer to anything but objects is ``^v``.
    """
    return tuple(
        ("^@" if code == "@" else "^v") if pointer else _EQUAL.get(code, code)
        for pointer, code in _ENCODED.findall(encoding)
    )


class Runtime:
    """The loaded libraries, their C functions, and the methods that were asked for.

    Raises FrameworkError when a library does not load or lacks a function.
    """

    def __init__(self, paths: Sequence[str] = FRAMEWORKS) -> None:
        self.genuine = tuple(paths) == FRAMEWORKS
        try:
            self.libraries = [ctypes.CDLL(path) for path in paths]
        except OSError as error:
            raise FrameworkError("load", "dlopen", "dyld", -1, str(error)) from error
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        self._class = self.function("objc_getClass", pointer, text)
        self._selector = self.function("sel_registerName", pointer, text)
        self._instance_method = self.function("class_getInstanceMethod", pointer, pointer, pointer)
        self._class_method = self.function("class_getClassMethod", pointer, pointer, pointer)
        self._encoding = self.function("method_getTypeEncoding", text, pointer)
        self._messenger = functools.cache(self._new_messenger)

    def _symbol(self, name: str) -> Any:
        for library in self.libraries:
            symbol = getattr(library, name, None)
            if symbol is not None:
                return symbol
        raise FrameworkError("load", name, "dyld", -1, "symbol not found", "this macOS has moved or removed it")

    def _new_messenger(self, *types: str) -> Callable[..., Any]:
        """What sends a message of these types, given receiver, selector and arguments."""
        # never variadic: Apple's arm64 passes variadic arguments elsewhere than fixed ones
        prototype = ctypes.CFUNCTYPE(*(_TYPES[t] for t in types))
        if any(hasattr(library, "objc_msgSend") for library in self.libraries):
            return prototype(ctypes.cast(self._symbol("objc_msgSend"), ctypes.c_void_p).value or 0)
        pointer, function = ctypes.c_void_p, functools.cache(prototype)  # GCC's runtime has no objc_msgSend
        implementation = self.function("class_getMethodImplementation", pointer, pointer, pointer)
        class_of = self.function("object_getClass", pointer, pointer)
        return lambda receiver, selector, *arguments: (
            function(implementation(class_of(receiver), selector))(receiver, selector, *arguments) if receiver else None
        )

    def function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        """A C function of the libraries."""
        symbol = self._symbol(name)
        symbol.restype, symbol.argtypes = result, arguments
        return symbol

    def untyped(self, name: str) -> Callable[..., int]:
        """A C function that gives an int. Arguments carry their types: objects of ctypes, None, ints of 32 bits.

        A call takes two thirds of the time: nothing is converted.
        """
        self._symbol(name)
        library = next(library for library in self.libraries if hasattr(library, name))
        return library[name]

    def constant(self, name: str) -> int:
        """The address that a global variable holds."""
        self._symbol(name)
        found = (ctypes.c_void_p.in_dll(library, name).value for library in self.libraries if hasattr(library, name))
        return next(found) or 0

    def class_named(self, name: str) -> int:
        """The address of a class; raises DeviceError when there is none of that name."""
        found = self._class(name.encode())
        if not found:
            raise DeviceError("load", f"this system has no class {name}; this macOS has moved or removed it")
        return found

    def methods(self, encodings: Mapping[str, str]) -> dict[str, Callable[..., Any]]:
        """Methods by name, given the encodings they are called with; see :meth:`method`."""
        return {name: self.method(name, encoding) for name, encoding in encodings.items()}

    def method(self, name: str, encoding: str) -> Callable[..., Any]:
        """Return a method to call: with its arguments alone for ``+[...]``, with the object first for ``-[...]``.

        Raises DeviceError with its name when this system has no such method, or one that takes other types.
        """
        found = _METHOD.fullmatch(name)
        if found is None:
            raise ValueError(f"'{name}' does not name a method")
        owner, selector = self.class_named(found[2]), self._selector(found[3].encode())
        method = (self._class_method if found[1] == "+" else self._instance_method)(owner, selector)
        if not method:
            raise DeviceError("load", f"this system has no {name}; this macOS has moved or removed it")
        actual, types = self._encoding(method).decode(), parse_encoding(encoding)
        if parse_encoding(actual) != types:
            raise DeviceError(
                "load", f"{name} is encoded '{actual}' on this system, anew calls it as '{encoding}': it has changed"
            )
        send = self._messenger(*types)
        if found[1] == "+":
            return functools.partial(send, owner, selector)
        return Message(send, selector)


class Message:
    """A method of objects, to be called with the object first."""

    __slots__ = ("_selector", "_send")

    def __init__(self, send: Callable[..., Any], selector: int) -> None:
        self._send, self._selector = send, selector

    def __call__(self, receiver: int, *arguments: Any) -> Any:
        """Send the message."""
        return self._send(receiver, self._selector, *arguments)

    def to(self, receiver: int, *first: Any) -> Callable[..., Any]:
        """Bind the object and the first arguments, for calls that come often."""
        return functools.partial(self._send, receiver, self._selector, *first)


#: What :class:`Objects` needs of NSObject.
MEMORY = {
    "-[NSObject retain]": "@16@0:8",
    "-[NSObject release]": "Vv16@0:8",
}


class Objects:
    """Ownership: autorelease pools, and objects kept beyond them."""

    def __init__(self, runtime: Runtime) -> None:
        self._retain, self._release = runtime.methods(MEMORY).values()
        self._push = runtime.function("objc_autoreleasePoolPush", ctypes.c_void_p)
        self._pop = runtime.function("objc_autoreleasePoolPop", None, ctypes.c_void_p)

    def pool(self) -> Pool:
        """A context at whose end objects die that nobody keeps."""
        return Pool(self._push, self._pop)

    def keep(self, stack: ExitStack, obj: int | None, call: str, stage: str) -> int:
        """Keep an object until ``stack`` closes; raises FrameworkError when the call that made it gave none."""
        if not obj or not self._retain(obj):
            raise FrameworkError(stage, call, DOMAIN, 0, "no object came back")
        stack.callback(self._release, obj)
        return obj


class Pool:
    """An autorelease pool; pools nest."""

    __slots__ = ("_pool", "_pop", "_push")

    def __init__(self, push: Callable[[], int], pop: Callable[[int], None]) -> None:
        self._push, self._pop = push, pop

    def __enter__(self) -> None:
        self._pool = self._push()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pop(self._pool)
