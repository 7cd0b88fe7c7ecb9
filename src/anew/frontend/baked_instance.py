"""One instance of a region with frozen weights: what they were when they were baked, and the program that has them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor

from anew.device.base import LoadedProgram
from anew.frontend.binding import Variant
from anew.frontend.staleness import Original


class Place:
    """A loaded program of several procedures; it is released when no variant holds it."""

    def __init__(self, procedures: dict[str, LoadedProgram]) -> None:
        weakref.finalize(self, next(iter(procedures.values())).release).atexit = False


class Seen:
    """One instance: its weights, what they were when last looked at, and its program once it has one.

    Attributes:
        waits: whether a call took weights as inputs since they last were found to have changed.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = [weakref.ref(w) for w in weights]
        self.waits = False
        self.variant: Variant | None = None
        self.place: Place | None = None
        self.originals: list[Original] = []

    @property
    def ready(self) -> bool:
        """Whether it is to be baked."""
        return self.variant is None and self.waits and len(self.tensors()) == len(self.weights)

    def tensors(self) -> list[Tensor]:
        """The weights that are alive."""
        return [w for ref in self.weights if (w := ref()) is not None]

    def remember(self) -> None:
        """Note what the weights are now."""
        self.originals = [Original(w) for w in self.tensors()]

    def forget(self) -> None:
        """Go back to weights as inputs."""
        self.variant = self.place = None
        self.waits = False

    def marked(self) -> bool:
        """Whether the weights are those remembered as far as storage, version and samples tell."""
        return all(original.marked(w) for original, w in zip(self.originals, self.tensors(), strict=True))

    def rewritten(self, *, whole: bool) -> bool:
        """Whether any element of the weights is another than remembered; looks at a tenth of them, or at the whole."""
        look = Original.rewritten_anywhere if whole else Original.rewritten
        return any(look(original, w) for original, w in zip(self.originals, self.tensors(), strict=True))
