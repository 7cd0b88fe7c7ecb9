"""What goes wrong inside a private framework, as a typed error: the call, its domain and code, what is known of it."""

from __future__ import annotations

from typing import Any

from anew.device.base import DeviceError


class FrameworkError(DeviceError):
    """A call into a private framework failed.

    Attributes:
        stage: ``compile``, ``load``, ``bind`` or ``execute``.
        call: the C function or the method that failed.
        domain: whose code it is, such as ``e5rt`` or the domain of an NSError.
        code: the number it gave.
        said: what the framework says of it; empty when it says nothing.
        known: what is known of the code, with its source; empty when nothing is.
    """

    def __init__(self, stage: str, call: str, domain: str, code: int, said: str = "", known: str = "") -> None:
        parts = [f"{call} failed with {domain} code {code}", f'"{said}"' if said else "", known]
        super().__init__(stage, "; ".join(part for part in parts if part))
        self.call = call
        self.domain = domain
        self.code = code
        self.said = said
        self.known = known

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.call, self.domain, self.code, self.said, self.known)


class FrameworkWarning(UserWarning):
    """A private framework did less than asked; what was lost is named."""
