"""Two ways to compile, load and run a program: the daemon's client, and the wrapper around it.

``_ANEClient`` with ``_ANEModel`` does not leak, so it comes first; where it does not compile MIL (maderix/ANE pull
request 40), ``_ANEInMemoryModel`` does, about 119 times in a process (maderix/ANE issue 54). Either wants the text and
its weight files in a folder before it compiles, keeps the weights it compiled with, and runs synchronously.
"""

from __future__ import annotations

import ctypes
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anew.device.ane.methods import CLIENT, IN_MEMORY, QOS
from anew.device.foundation import Foundation
from anew.device.framework import FrameworkError, FrameworkWarning
from anew.device.objc import Runtime
from anew.device.staging import owned_folder, staging_folder, write_program

MODEL = "model.mil"
#: Seconds after which a load is tried once more: places of unloaded programs come free late (maderix/ANE bridge).
PATIENCE = 0.1


class Model(ABC):
    """A loaded program."""

    def __init__(self, foundation: Foundation) -> None:
        self.foundation = foundation

    @abstractmethod
    def attributes(self) -> Any:
        """``modelAttributes`` as Python values."""

    @abstractmethod
    def evaluate(self, request: int) -> None:
        """Run a request to its end; raises FrameworkError."""


class Way(ABC):
    """A way to make loaded programs. ``stack`` of its ``load`` unloads a program and deletes its folder."""

    #: As in messages.
    name: str

    def __init__(self, runtime: Runtime, foundation: Foundation, methods: Mapping[str, str]) -> None:
        self.foundation = foundation
        self.methods = runtime.methods(methods)

    @abstractmethod
    def load(self, stack: ExitStack, text: str, files: Mapping[str, bytes]) -> Model:
        """Compile and load a program of MIL text and weight files by path; raises FrameworkError."""

    def check(self, stage: str, call: str, *arguments: Any) -> None:
        """Call a method that gives an NSError; raises FrameworkError."""
        self.foundation.check(stage, call, self.methods[call], *arguments)

    def check_twice(self, call: str, *arguments: Any) -> None:
        """Load or unload; once more after a moment when it fails."""
        try:
            self.check("load", call, *arguments)
        except FrameworkError:
            time.sleep(PATIENCE)
            self.check("load", call, *arguments)

    def unload(self, call: str, *arguments: Any) -> None:
        """Unload; what goes wrong is a warning: nobody could act on an exception."""
        with self.foundation.pool():
            try:
                self.check_twice(call, *arguments)
            except FrameworkError as error:
                warnings.warn(f"{error}; the program stays loaded until the process ends", FrameworkWarning, 2)


class ClientWay(Way):
    """``_ANEClient`` and ``_ANEModel`` (Splash and pie compile and load so)."""

    name = "_ANEClient"
    COMPILE = "-[_ANEClient compileModel:options:qos:error:]"
    LOAD = "-[_ANEClient loadModel:options:qos:error:]"
    UNLOAD = "-[_ANEClient unloadModel:options:qos:error:]"
    MAKE = "+[_ANEModel modelAtURL:key:]"
    CONNECT = "+[_ANEClient sharedConnection]"

    def __init__(self, runtime: Runtime, foundation: Foundation) -> None:
        super().__init__(runtime, foundation, CLIENT)

    def load(self, stack: ExitStack, text: str, files: Mapping[str, bytes]) -> Model:
        """Compile the text of a fresh folder and load it."""
        new, methods = self.foundation, self.methods
        client = new.keep(stack, methods[self.CONNECT](), self.CONNECT, "load")
        folder = stack.enter_context(staging_folder())
        write_program(folder, MODEL, text, files)
        made = methods[self.MAKE](new.folder(folder), new.string(str(folder)))
        model = new.keep(stack, made, self.MAKE, "compile")
        options = new.strings({"kANEFModelType": "kANEFModelMIL", "kANEFNetPlistFilenameKey": MODEL})
        self.check("compile", self.COMPILE, client, model, options, QOS)
        stack.callback(methods["-[_ANEClient purgeCompiledModel:]"], client, model)
        empty = new.keep(stack, new.dictionary({}), "+[NSDictionary dictionaryWithObjects:forKeys:count:]", "load")
        self.check_twice(self.LOAD, client, model, empty, QOS)
        stack.callback(self.unload, self.UNLOAD, client, model, empty, QOS)
        return ClientModel(new, methods, client, model, empty)


class ClientModel(Model):
    """A program that the client loaded."""

    EVALUATE = "-[_ANEClient evaluateWithModel:options:request:qos:error:]"

    def __init__(
        self, foundation: Foundation, methods: Mapping[str, Any], client: int, model: int, options: int
    ) -> None:
        super().__init__(foundation)
        self._attributes = methods["-[_ANEModel modelAttributes]"].to(model)
        self._evaluate = methods[self.EVALUATE].to(client, model, options)

    def attributes(self) -> Any:
        """See Model."""
        return self.foundation.python(self._attributes())

    def evaluate(self, request: int) -> None:
        """See Model."""
        error = ctypes.c_void_p()
        if not self._evaluate(request, QOS, ctypes.byref(error)):
            raise self.foundation.error("execute", self.EVALUATE, error.value)


class InMemoryWay(Way):
    """``_ANEInMemoryModel`` (maderix/ANE and its descendants)."""

    name = "_ANEInMemoryModel"
    DESCRIBE = "+[_ANEInMemoryModelDescriptor modelWithMILText:weights:optionsPlist:]"
    MAKE = "+[_ANEInMemoryModel inMemoryModelWithDescriptor:]"
    IDENTIFY = "-[_ANEInMemoryModel hexStringIdentifier]"
    COMPILE = "-[_ANEInMemoryModel compileWithQoS:options:error:]"
    LOAD = "-[_ANEInMemoryModel loadWithQoS:options:error:]"
    UNLOAD = "-[_ANEInMemoryModel unloadWithQoS:error:]"

    def __init__(self, runtime: Runtime, foundation: Foundation) -> None:
        super().__init__(runtime, foundation, IN_MEMORY)
        self._temporary = runtime.function("NSTemporaryDirectory", ctypes.c_void_p)

    def load(self, stack: ExitStack, text: str, files: Mapping[str, bytes]) -> Model:
        """Compile in the folder that the wrapper looks into: its identifier, in the folder for temporary files."""
        new, methods = self.foundation, self.methods
        described = methods[self.DESCRIBE](new.data(text.encode()), self._weights(files), None)
        if not described:
            raise FrameworkError("compile", self.DESCRIBE, "objc", 0, "no object came back", "the text is not MIL")
        model = new.keep(stack, methods[self.MAKE](described), self.MAKE, "compile")
        identity = new.python(methods[self.IDENTIFY](model))
        if not identity:
            raise FrameworkError("compile", self.IDENTIFY, "objc", 0, "no object came back")
        folder = stack.enter_context(owned_folder(Path(new.python(self._temporary()) or "/tmp", identity)))
        write_program(folder, MODEL, text, files)
        empty = new.keep(stack, new.dictionary({}), "+[NSDictionary dictionaryWithObjects:forKeys:count:]", "load")
        self.check("compile", self.COMPILE, model, QOS, empty)
        self.check_twice(self.LOAD, model, QOS, empty)
        stack.callback(self.unload, self.UNLOAD, model, QOS)
        return InMemoryModel(new, methods, model, empty)

    def _weights(self, files: Mapping[str, bytes]) -> int:
        """Weight files as the descriptor takes them; an empty dictionary, not nil, where there are none."""
        new = self.foundation
        entry = {
            path: new.dictionary({new.string("offset"): new.number(0), new.string("data"): new.data(content)})
            for path, content in files.items()
        }
        return new.dictionary({new.string(path): weights for path, weights in entry.items()})


class InMemoryModel(Model):
    """A program that the wrapper loaded."""

    EVALUATE = "-[_ANEInMemoryModel evaluateWithQoS:options:request:error:]"

    def __init__(self, foundation: Foundation, methods: Mapping[str, Any], model: int, options: int) -> None:
        super().__init__(foundation)
        self._attributes = methods["-[_ANEInMemoryModel modelAttributes]"].to(model)
        self._evaluate = methods[self.EVALUATE].to(model, QOS, options)

    def attributes(self) -> Any:
        """See Model."""
        return self.foundation.python(self._attributes())

    def evaluate(self, request: int) -> None:
        """See Model."""
        error = ctypes.c_void_p()
        if not self._evaluate(request, ctypes.byref(error)):
            raise self.foundation.error("execute", self.EVALUATE, error.value)
