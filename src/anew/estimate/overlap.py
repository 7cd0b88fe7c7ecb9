"""Host work that runs beside the engine: the optimizer, while the next step's forward pass follows it.

A layer starts its forward once its weights are new, and a tile of the loss once its part of the head's table is. Both
sides read and write one memory, so however they are laid out they take at least as long as that memory needs for the
bytes of both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Equal links of two chains: ``first`` and ``then`` are the seconds of all of its links of each."""

    links: int
    first: float
    then: float


@dataclass(frozen=True)
class Beside:
    """Two chains of equally many links, the second following the first.

    Attributes:
        stages: one after the other. size: bytes that both move.
        bytes_per_second: of the memory that both share.
    """

    stages: tuple[Stage, ...]
    size: float
    bytes_per_second: float

    @property
    def apart(self) -> float:
        """Seconds of both, one after the other."""
        return sum(stage.first + stage.then for stage in self.stages)

    @property
    def pipelined(self) -> float:
        """Seconds of both if each had the memory for itself: each link of the second waits for that of the first.

        One link is where the second chain waits for the last time: up to it the first goes on, from it the second. In
        a stage of equal links that is its first or its last one.
        """
        ends = [0.0]
        for number, stage in enumerate(self.stages):
            before = sum(earlier.first for earlier in self.stages[:number])
            after = sum(later.then for later in self.stages[number + 1 :])
            longest, shortest = max(stage.first, stage.then), min(stage.first, stage.then)
            ends.append(before + longest + shortest / stage.links + after)
        return max(ends)

    @property
    def shared(self) -> float:
        """Seconds that the memory needs for the bytes of both."""
        return self.size / self.bytes_per_second

    @property
    def seconds(self) -> float:
        """Of both; never more than one after the other."""
        return min(self.apart, max(self.pipelined, self.shared))

    @property
    def saved(self) -> float:
        """Seconds less than one after the other."""
        return self.apart - self.seconds
