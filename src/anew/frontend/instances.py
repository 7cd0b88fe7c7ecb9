"""What belongs to one region instance, known by its parameters: layers share programs, not scales or weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class ByTensor(Generic[T]):
    """A map from tensors, by identity, that forgets a tensor when it dies."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, tensor: Tensor, make: Callable[[], T]) -> T:
        """Return the tensor's entry, made on first sight."""
        key = id(tensor)
        known = self._entries.get(key)
        if known is not None and known[0]() is tensor:
            return known[1]
        value = make()
        self.set(tensor, value)
        return value

    def find(self, tensor: Tensor) -> T | None:
        """Return the tensor's entry; None if it has none."""
        known = self._entries.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def values(self) -> list[T]:
        """The entries of all tensors that are alive."""
        return [value for reference, value in list(self._entries.values()) if reference() is not None]

    def discard(self, tensor: Tensor) -> None:
        """Forget the tensor's entry, if it has one."""
        if self.find(tensor) is not None:
            del self._entries[id(tensor)]

    def set(self, tensor: Tensor, value: T) -> None:
        """Make or replace the tensor's entry."""
        key = id(tensor)
        self._entries[key] = (weakref.ref(tensor, lambda _: self._entries.pop(key, None)), value)
