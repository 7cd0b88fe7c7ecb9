"""Learning rates under the names and with the values of mlx's schedulers (mlx 0.32, ``optimizers/schedulers.py``)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from anew.errors import UserError
from anew.finetune.config import check_names

Schedule = Callable[[int], float]


def cosine_decay(init: float, decay_steps: int, end: float = 0.0) -> Schedule:
    """Fall from `init` to `end` as a cosine in `decay_steps` steps, then stay."""
    return lambda step: end + 0.5 * (1 + math.cos(math.pi * min(step, decay_steps) / decay_steps)) * (init - end)


def exponential_decay(init: float, decay_rate: float) -> Schedule:
    """Multiply by `decay_rate` in each step."""
    return lambda step: init * decay_rate**step


def step_decay(init: float, decay_rate: float, step_size: int) -> Schedule:
    """Multiply by `decay_rate` every `step_size` steps."""
    return lambda step: init * decay_rate ** (step // step_size)


def linear_schedule(init: float, end: float, steps: int) -> Schedule:
    """Go from `init` to `end` on a line in `steps` steps, then stay."""
    return lambda step: init + (end - init) * min(step, steps) / steps


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    function.__name__: function for function in (cosine_decay, exponential_decay, step_decay, linear_schedule)
}
_KEYS = ("name", "arguments", "warmup", "warmup_init")


def build_schedule(settings: Mapping[str, Any] | None, rate: float) -> Schedule:
    """Return the learning rate as a function of optimizer steps, counted from 0.

    Args:
        settings: the option ``lr_schedule``: ``name``, ``arguments`` and perhaps ``warmup``, the steps in which the
            rate rises on a line from ``warmup_init`` (0) to the first argument. None: the rate stays as it is.
        rate: the option ``learning_rate``, which counts without a schedule.

    Raises UserError for an unknown name and for arguments that do not fit it.
    """
    if settings is None:
        return lambda step: rate
    check_names(settings, _KEYS, "lr_schedule:")
    name, arguments = settings.get("name"), settings.get("arguments")
    check_names([name], SCHEDULES, "lr_schedule: name")
    made = _made(str(name), arguments)
    warmup, start = settings.get("warmup", 0), settings.get("warmup_init", 0.0)
    if not isinstance(warmup, int) or warmup < 0 or not isinstance(start, (int, float)):
        raise UserError("lr_schedule: 'warmup' must be a whole number of steps, 'warmup_init' a learning rate")
    if not warmup:
        return made
    rise = linear_schedule(start, arguments[0], warmup)  # type: ignore[index]
    return lambda step: rise(step) if step <= warmup else made(step - warmup - 1)


def _made(name: str, arguments: Any) -> Schedule:
    parameters = inspect.signature(SCHEDULES[name]).parameters
    wanted = ", ".join(parameters)
    numbers = isinstance(arguments, list) and all(type(x) in (int, float) for x in arguments)
    required = sum(p.default is inspect.Parameter.empty for p in parameters.values())
    if not numbers or not required <= len(arguments) <= len(parameters):
        raise UserError(f"lr_schedule: {name} takes the arguments [{wanted}], not {arguments!r}")
    for key, value in zip(parameters, arguments, strict=False):
        if "step" in key and value < 1:
            raise UserError(f"lr_schedule: '{key}' of {name} must be at least 1, not {value}")
    return SCHEDULES[name](*arguments)
