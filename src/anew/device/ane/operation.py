"""One instance of a program: its buffers by port name, run over their surfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from anew.device.ane.surfaces import Surface
from anew.device.base import DeviceError, Operation, in_order

if TYPE_CHECKING:
    from anew.device.ane.engine import AneProgram, Request

#: Requests that an operation keeps: training leases the same sets of buffers over and over, one for each layer.
KEPT = 256


class AneOperation(Operation):
    """Runs a program over buffers that are bound by name.

    Two ports that are given one buffer share it: state that a program reads and writes stays in place.
    """

    program: AneProgram

    def __init__(self, program: AneProgram) -> None:
        super().__init__(program)
        self._in_order = in_order(program.request_order)
        self._copies: dict[str, Tensor] = {}
        self._requests: dict[tuple[int, ...], Request] = {}

    def _execute(self) -> None:
        places = tuple(map(Tensor.data_ptr, self._in_order(self.bindings)))
        request = self._requests.get(places)
        if request is None or self.program.loaded.released:
            request = self._prepare(places)
        request.run()

    def _prepare(self, places: tuple[int, ...]) -> Request:
        """The request over surfaces at these addresses, kept for the next run over them."""
        find, names = self.program.device.buffers.surfaces.get, self.program.request_order
        found = [find(place) for place in places]
        request = self.program.request([s or self._copied(name) for s, name in zip(found, names, strict=True)])
        if None not in found:  # what is copied has to be copied at each run
            if len(self._requests) == KEPT:
                del self._requests[next(iter(self._requests))]
            self._requests[places] = request
        return request

    def _copied(self, name: str) -> Surface:
        """The surface of a buffer of the operation's own, with what an input in other memory holds."""
        if name in self.program.procedure.outputs.names:
            raise DeviceError("bind", f"output port '{name}' is bound to memory of others; lease it from the device")
        pool, buffer = self.program.device.buffers, self.bindings[name]
        if name not in self._copies:
            self._copies[name] = pool.lease(tuple(buffer.shape), buffer.dtype)
        return pool.surfaces[self._copies[name].copy_(buffer).data_ptr()]
