"""Host work that runs beside the engine: the optimizer, layer by layer, while the next step's forward follows it.

Layer ``l`` starts its forward once its weights are new. Both sides read and write one memory, so however they are laid
out they take at least as long as that memory needs for the bytes of both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Beside:
    """Two chains of equally many links, the second following the first.

    Attributes:
        links: of each, the layers. first, then: seconds of all links of each. size: bytes that both move.
        bytes_per_second: of the memory that both share.
    """

    links: int
    first: float
    then: float
    size: float
    bytes_per_second: float

    @property
    def pipelined(self) -> float:
        """Seconds of both if each had the memory for itself: each link of the second waits for that of the first."""
        longest, shortest = max(self.first, self.then), min(self.first, self.then)
        return longest + shortest / max(self.links, 1)

    @property
    def shared(self) -> float:
        """Seconds that the memory needs for the bytes of both."""
        return self.size / self.bytes_per_second

    @property
    def seconds(self) -> float:
        """Of both; never more than one after the other."""
        return min(self.first + self.then, max(self.pipelined, self.shared))

    @property
    def saved(self) -> float:
        """Seconds less than one after the other."""
        return self.first + self.then - self.seconds
