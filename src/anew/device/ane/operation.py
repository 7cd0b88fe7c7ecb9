"""One instance of a program: its buffers by port name, run over their surfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

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
        bindings, find = self.bindings, self.program.device.buffers.surfaces.get
        inputs = [find(bindings[name].data_ptr()) or self._copy(name) for name in self.program.procedure.inputs.names]
        outputs = [find(bindings[name].data_ptr()) or _refuse(name) for name in self.program.procedure.outputs.names]
        surfaces = dict.fromkeys((*inputs, *outputs))  # state has one surface for two ports
        try:
            for surface in surfaces:
                surface.unlock()
            self.program.run(inputs, outputs)
        finally:
            for surface in surfaces:
                surface.lock()

    def _copy(self, name: str) -> Surface:
        """The surface of a buffer of the operation's own, with what an input in other memory holds."""
        pool, buffer = self.program.device.buffers, self.bindings[name]
        if name not in self._copies:
            self._copies[name] = pool.lease(tuple(buffer.shape), buffer.dtype)
        return pool.surfaces[self._copies[name].copy_(buffer).data_ptr()]


def _refuse(name: str) -> NoReturn:
    raise DeviceError("bind", f"output port '{name}' is bound to memory of others; lease it from the device")
