"""Where a run computes: plain PyTorch, or the decoder layers on an engine through anew.compile."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from anew.train.config import TrainConfig


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


def place(model: nn.Module, config: TrainConfig) -> nn.Module:
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
    )


def statistics(model: nn.Module, config: TrainConfig) -> Any:
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
    why = f" ({counters.why})" if counters.why else ""
    return f"{engine}{why}, chip {counters.chip}, numerics {counters.numerics}"
