"""Values of Foundation: numbers, texts, bytes, lists and dictionaries as objects, and back; NSError as an error.

Objects made here are autoreleased: they live until the pool around them ends, or as long as something keeps them.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anew.device.framework import FrameworkError
from anew.device.objc import DOMAIN, Objects, Runtime

ARRAY = "+[NSArray arrayWithObjects:count:]"
METHODS = {
    "+[NSString stringWithUTF8String:]": "@24@0:8r*16",
    "-[NSString UTF8String]": "r*16@0:8",
    "+[NSData dataWithBytes:length:]": "@32@0:8r^v16Q24",
    "+[NSNumber numberWithLongLong:]": "@24@0:8q16",
    "-[NSNumber longLongValue]": "q16@0:8",
    ARRAY: "@32@0:8r^@16Q24",
    "-[NSArray count]": "Q16@0:8",
    "-[NSArray objectAtIndex:]": "@24@0:8Q16",
    "+[NSDictionary dictionaryWithObjects:forKeys:count:]": "@40@0:8r^@16r^@24Q32",
    "-[NSDictionary allKeys]": "@16@0:8",
    "-[NSDictionary objectForKey:]": "@24@0:8@16",
    "+[NSURL fileURLWithPath:isDirectory:]": "@28@0:8@16B24",
    "-[NSError domain]": "@16@0:8",
    "-[NSError code]": "q16@0:8",
    "-[NSError localizedDescription]": "@16@0:8",
    "-[NSObject isKindOfClass:]": "B24@0:8#16",
}

#: A status inside an error's text: what is known of it, with the source.
KNOWN_STATUS = {
    0x02: "a wrong symbol index (ane-infer), or wired memory is short (oMLX pull request 3123)",
    0x16: "an error of the program's run, as Core ML users meet it",
    0x1D: "a surface is smaller than its port demands, or of another port (libane, Orion)",
    0x20004: "the program's weights exceed the engine's window of about 3.75 GiB (oMLX issues 2781, 2874)",
    0x50004: "too many programs are loaded (ANEgpt); release a compiled model",
    0xE00002E2: "the program is not signed for this process (ANEForge)",
}
#: The same for codes, by domain.
KNOWN_CODES = {
    ("com.apple.appleneuralengine.compiler", 1): (
        "the compiler refused the program, or this process has compiled as many programs as it can through "
        "_ANEInMemoryModel, about 119 (maderix/ANE)"
    ),
    ("com.apple.appleneuralengine.espresso", -1): (
        "the client took the folder for a model of Espresso's: it does not compile MIL here (maderix/ANE pull "
        "request 40)"
    ),
    ("com.apple.appleneuralengine", 10): "the folder of the program was not accepted (macOS 27; oMLX issue 3124)",
}
_STATUS = re.compile(r"0x([0-9a-fA-F]+)")


class Foundation(Objects):
    """Makes and reads Foundation's objects. Raises FrameworkError where one cannot be made."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._methods = runtime.methods(METHODS)
        self._new_array = self._methods[ARRAY]  # called at each run of a program
        self._kinds: list[tuple[int, Callable[[int], Any]]] = [
            (runtime.class_named("NSString"), self._text),
            (runtime.class_named("NSNumber"), self._methods["-[NSNumber longLongValue]"]),
            (runtime.class_named("NSArray"), self._list),
            (runtime.class_named("NSDictionary"), self._dict),
        ]

    def _make(self, method: str, *arguments: Any) -> int:
        made = self._methods[method](*arguments)
        if not made:
            raise FrameworkError("bind", method, DOMAIN, 0, "no object came back")
        return made

    def string(self, text: str) -> int:
        """An NSString."""
        return self._make("+[NSString stringWithUTF8String:]", text.encode())

    def data(self, content: bytes) -> int:
        """An NSData with a copy of these bytes."""
        return self._make("+[NSData dataWithBytes:length:]", content, len(content))

    def number(self, value: int) -> int:
        """An NSNumber."""
        return self._make("+[NSNumber numberWithLongLong:]", value)

    def array(self, objects: Sequence[int]) -> int:
        """An NSArray of objects."""
        made: int | None = self._new_array(_addresses(objects), len(objects))
        if not made:
            raise FrameworkError("bind", ARRAY, DOMAIN, 0, "no object came back")
        return made

    def dictionary(self, objects: Mapping[int, int]) -> int:
        """An NSDictionary of objects by key objects."""
        keys, values = _addresses(objects.keys()), _addresses(objects.values())
        return self._make("+[NSDictionary dictionaryWithObjects:forKeys:count:]", values, keys, len(objects))

    def strings(self, texts: Mapping[str, str]) -> int:
        """An NSDictionary of texts."""
        return self.dictionary({self.string(key): self.string(value) for key, value in texts.items()})

    def folder(self, path: Path) -> int:
        """An NSURL of a folder."""
        return self._make("+[NSURL fileURLWithPath:isDirectory:]", self.string(str(path)), True)

    def python(self, obj: int | None) -> Any:
        """The value of an object: text, whole number, list or dictionary of such; None for nil and other classes."""
        is_kind = self._methods["-[NSObject isKindOfClass:]"]
        return next((read(obj) for kind, read in self._kinds if is_kind(obj, kind)), None) if obj else None

    def _text(self, obj: int) -> str:
        return (self._methods["-[NSString UTF8String]"](obj) or b"").decode(errors="replace")

    def _list(self, obj: int) -> list[Any]:
        return [self.python(item) for item in self._items(obj)]

    def _items(self, array: int | None) -> list[int]:
        at, count = self._methods["-[NSArray objectAtIndex:]"], self._methods["-[NSArray count]"]
        return [item for i in range(count(array)) if (item := at(array, i))] if array else []

    def _dict(self, obj: int) -> dict[Any, Any]:
        keys, value = self._methods["-[NSDictionary allKeys]"](obj), self._methods["-[NSDictionary objectForKey:]"]
        return {self.python(key): self.python(value(obj, key)) for key in self._items(keys)}

    def check(self, stage: str, call: str, method: Callable[..., bool], *arguments: Any) -> None:
        """Call a method whose last argument is an NSError**; raises its error as a FrameworkError when it gives NO."""
        error = ctypes.c_void_p()
        if not method(*arguments, ctypes.byref(error)):
            raise self.error(stage, call, error.value)

    def error(self, stage: str, call: str, error: int | None) -> FrameworkError:
        """What an NSError says, and what is known of it; some methods fail without one."""
        if not error:
            return FrameworkError(stage, call, DOMAIN, 0, "no reason came back")
        domain = self.python(self._methods["-[NSError domain]"](error)) or DOMAIN
        said = self.python(self._methods["-[NSError localizedDescription]"](error)) or ""
        code = self._methods["-[NSError code]"](error)
        statuses = (int(found, 16) for found in _STATUS.findall(said))
        known = next((KNOWN_STATUS[s] for s in statuses if s in KNOWN_STATUS), KNOWN_CODES.get((domain, code), ""))
        return FrameworkError(stage, call, domain, code, said, known)


def _addresses(objects: Any) -> Any:
    """A C array of object addresses."""
    return (ctypes.c_void_p * len(objects))(*objects)
