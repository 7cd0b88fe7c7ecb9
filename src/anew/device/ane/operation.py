"""One instance of a program: its buffers by port name, run over their surfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from anew.device.ane.surfaces import Surface
from anew.device.base import DeviceError, Operation

if TYPE_CHECKING:
    from anew.device.ane.engine import AneProgram


class AneOperation(Operation):
    """Runs a program over buffers that are bound by name.

    Two ports that are given one buffer share it: state that a program reads and writes stays in place.
    """

    program: AneProgram

    def __init__(self, program: AneProgram) -> None:
        super().__init__(program)
        self._copies: dict[str, Tensor] = {}

    def _execute(self) -> None:
        procedure = self.program.procedure
        inputs = [self._input(name) for name in procedure.inputs.names]
        outputs = [self._output(name) for name in procedure.outputs.names]
        surfaces = dict.fromkeys((*inputs, *outputs))  # state has one surface for two ports
        try:
            for surface in surfaces:
                surface.unlock()
            self.program.run(inputs, outputs)
        finally:
            for surface in surfaces:
                surface.lock()

    def _input(self, name: str) -> Surface:
        """The surface of an input; one in other memory is copied into a buffer of the operation's own."""
        pool, buffer = self.program.device.buffers, self.bindings[name]
        found = pool.surfaces.get(buffer.data_ptr())
        if found is not None:
            return found
        if name not in self._copies:
            self._copies[name] = pool.lease(tuple(buffer.shape), buffer.dtype)
        return pool.surfaces[self._copies[name].copy_(buffer).data_ptr()]

    def _output(self, name: str) -> Surface:
        found = self.program.device.buffers.surfaces.get(self.bindings[name].data_ptr())
        if found is None:
            raise DeviceError("bind", f"output port '{name}' is bound to memory of others; lease it from the device")
        return found
