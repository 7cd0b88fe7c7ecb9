"""Where a run computes: plain PyTorch, or the decoder layers on an engine through anew.compile."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from anew.device.machine import default_chip


class Where(Protocol):
    """Whatever says where to compute: :class:`Place`, or the settings of a run."""

    @property
    def device(self) -> str:
        """As for anew.compile, or ``cpu``."""

    @property
    def chip(self) -> str:
        """The chip to compile for."""

    @property
    def numerics(self) -> str:
        """``fast`` or ``exact``."""

    @property
    def recheck(self) -> int:
        """Every so many runs of a program on the engine are compared with the emulator; 0: none."""

    @property
    def worker(self) -> bool:
        """Whether a process of its own drives the device."""


@dataclass(frozen=True)
class Place:
    """Where to compute, and nothing else."""

    device: str = "auto"
    chip: str = field(default_factory=default_chip)
    numerics: str = "fast"
    recheck: int = 0
    worker: bool = False


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
    why: str = ""
    seconds: float = 0.0


def place(model: nn.Module, config: Where) -> nn.Module:
    """Prepare the model for the chosen device and return it; `cpu` leaves it as it is."""
    if config.device == "cpu":
        return model
    import anew

    return anew.compile(
        model,
        device=config.device,
        chip=config.chip,
        numerics=config.numerics,
        recheck=config.recheck,
        worker=config.worker,
        base_bits=getattr(config, "base_bits", 0),  # a setting of fine-tuning alone
    )


def check_baked(model: nn.Module, config: Where) -> None:
    """Find frozen weights that changed since they were compiled as constants; there are none on `cpu`."""
    if config.device != "cpu":
        import anew

        anew.check_baked(model)


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
