"""Several processes of one run, as torchrun starts them: who this one is, and what it settles with the others.

Every process computes on a part of each batch with an engine of its own; DistributedDataParallel averages gradients
over gloo. The first process alone prints and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anew.errors import AnewError

#: How long a process waits for the others, which may be validating or saving. One that ends is noticed at once.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is, counted from 0; everything is settled already where it is alone."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_environment(cls) -> Ranks:
        """What torchrun says in RANK and WORLD_SIZE."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.index == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Join the other processes, and leave them at the end.

        Raises AnewError that says so when another process ends before its time or does not answer; what else goes
        wrong in a process other than the first says which one it was.
        """
        if self.count == 1:
            yield
            return
        try:
            dist.init_process_group("gloo", timeout=TIMEOUT)
            yield
        except AnewError as error:
            raise error if self.first else AnewError(f"process {self.index} of {self.count}: {error}") from error
        except RuntimeError as error:  # gloo has no type of its own
            if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
                raise
            reason = str(error).splitlines()[0]
            raise AnewError(
                f"process {self.index} of {self.count} has lost another one, which ended or did not answer for "
                f"{TIMEOUT.total_seconds() / 60:.0f} minutes ({reason}); start them all again with --resume"
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def wait(self) -> None:
        """Return once every process has come here."""
        self._sum(0.0)

    def any(self, asked: bool) -> bool:
        """Whether any process says yes."""
        return self._sum(float(asked)).item() > 0

    def sum(self, *values: float) -> list[float]:
        """The sums of values over all processes, in fp64."""
        return [float(x) for x in self._sum(*values)]

    def mean(self, value: float) -> float:
        """The mean of a value over all processes."""
        return self.sum(value)[0] / self.count

    def parallel(self, model: nn.Module) -> nn.Module:
        """What to call in training in place of a model: its gradients become the mean over all processes."""
        return model if self.count == 1 else DistributedDataParallel(model, forward_sync_buffers=False)

    def _sum(self, *values: float) -> Tensor:
        found = torch.tensor(values, dtype=torch.float64)
        if self.count > 1:
            dist.all_reduce(found)
        return found
