"""Where a run computes: plain PyTorch, or the decoder layers on an engine through anew.compile."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


class Where(Protocol):
    """Whatever says where to compute: :class:`Place`, or the settings of a run."""

    @property
    def device(self) -> str:
        """``auto`` or ``emulator``, as for anew.compile, or ``cpu``."""

    @property
    def chip(self) -> str:
        """The chip to compile for."""

    @property
    def numerics(self) -> str:
        """``fast`` or ``exact``."""


@dataclass(frozen=True)
class Place:
    """Where to compute, and nothing else."""

    device: str = "auto"
    chip: str = "m4"
    numerics: str = "fast"


@dataclass(frozen=True)
class PlainStatistics:
    """What anew.statistics would say of a model that stays in plain PyTorch."""

    device: str = "cpu"
    emulated: bool = False
    chip: str = ""
    numerics: str = "fp32"
    programs: int = 0
    dispatches: int = 0
    rescaled: int = 0
    calibrations: int = 0


def place(model: nn.Module, config: Where) -> nn.Module:
    """Prepare the model for the chosen device and return it; `cpu` leaves it as it is."""
    if config.device == "cpu":
        return model
    import anew

    return anew.compile(model, device=config.device, chip=config.chip, numerics=config.numerics)


def statistics(model: nn.Module, config: Where) -> Any:
    """Return the device's counters so far: anew.Statistics, or PlainStatistics for `cpu`."""
    if config.device == "cpu":
        return PlainStatistics()
    import anew

    return anew.statistics(model)


def describe_device(counters: Any) -> str:
    """Return where the run computes, and that it is emulated if it is, in a few words."""
    if counters.device == "cpu":
        return "cpu, plain PyTorch in fp32: no engine is used"
    engine = "emulated engine" if counters.emulated else f"engine ({counters.device})"
    return f"{engine}, chip {counters.chip}, numerics {counters.numerics}"
