"""The worker process: opens a device, and compiles, runs and releases programs as it is asked over a connection.

``python -m anew.device.worker.serve FD`` serves the connection of that file descriptor until its other end closes.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from anew.device.base import Device, DeviceError, Operation, Port
from anew.device.worker.memory import Place, SharedFiles
from anew.errors import AnewError
from anew.mil import Weights


class Server:
    """Owns the device. Each program has one operation, over buffers of its own that are never bound anew."""

    def __init__(self) -> None:
        self.device: Device
        self.files: SharedFiles
        self.operations: dict[int, Operation] = {}

    def open(self, folder: Path, opener: Callable[[], Device]) -> tuple[str, bool, int]:
        """Open the device; returns its name, whether it is emulated, and how its rows are strided."""
        self.device = opener()
        row_bytes = self.device.buffers.row_bytes
        self.files = SharedFiles(folder, row_bytes)
        return self.device.name, self.device.emulated, row_bytes

    def compile(self, number: int, text: str, weights: Weights, function: str | None) -> tuple[list[Port], list[Port]]:
        """Compile a program and bind its buffers; returns its ports."""
        program = self.device.compile(text, weights, function)
        operation = program.operation()
        lease = self.device.buffers.lease
        operation.bind({name: lease(port.type.shape, port.dtype) for name, port in program.ports.items()})
        self.operations[number] = operation
        return program.inputs, program.outputs

    def run(self, number: int, places: dict[str, Place]) -> None:
        """Run a program over shared buffers; outputs are written once it has succeeded, so that it can be repeated."""
        operation = self.operations[number]
        program = operation.program
        shared = {name: self.files.tensor(program.ports[name], place) for name, place in places.items()}
        for port in program.inputs:
            operation.bindings[port.name].copy_(shared[port.name])
        operation.execute()
        for port in program.outputs:
            shared[port.name].copy_(operation.bindings[port.name])

    def release(self, numbers: list[int]) -> None:
        """Unload programs."""
        for number in numbers:
            self.operations.pop(number).program.release()


def serve(connection: Connection) -> None:
    """Answer requests, each a method's name and arguments, until the other end is closed."""
    server = Server()
    sys.path[:] = connection.recv()
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        answer = _answer(getattr(server, name), arguments)
        try:
            connection.send(answer)
        except BrokenPipeError:
            return  # the run was interrupted while it waited


def _answer(method: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, method(*arguments)
    except DeviceError as error:
        return False, error
    except AnewError as error:
        return False, AnewError(str(error))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process when it is done
    serve(Connection(int(sys.argv[1])))
