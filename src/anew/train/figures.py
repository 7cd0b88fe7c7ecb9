"""What the last steps came to, in the lines under a live progress bar."""

from __future__ import annotations

from collections import deque

from rich.text import Text

from anew.train.metrics import Record

#: Weight of a step in the smoothed loss and speed.
NEW = 0.1
BARS = "▁▂▃▄▅▆▇█"
#: Losses that the sparkline is made of, and its length.
KEPT, WIDEST = 512, 64


class Figures:
    """Figures of a run as its steps come in."""

    def __init__(self) -> None:
        self.val_loss: float | None = None
        self._losses: deque[float] = deque(maxlen=KEPT)
        self._last: Record | None = None
        self._loss = self._speed = 0.0

    def add(self, record: Record) -> None:
        """Take in a step."""
        if record.train_loss is None or record.tokens_per_second is None:
            return
        first = self._last is None
        self._loss = record.train_loss if first else self._loss + NEW * (record.train_loss - self._loss)
        speed = record.tokens_per_second
        self._speed = speed if first else self._speed + NEW * (speed - self._speed)
        self._losses.append(self._loss)
        self._last = record

    def lines(self, width: int, device: str) -> list[Text]:
        """Return lines of at most `width` characters; the last one names the device."""
        last = self._last
        if last is None:
            return [Text(line, no_wrap=True, overflow="ellipsis") for line in ("validating the model as it is", device)]
        val = "" if self.val_loss is None else f"  val {self.val_loss:.3f}"
        losses = f"loss {last.train_loss:.3f}  smoothed {self._loss:.3f}{val}  "
        rate = "" if last.learning_rate is None else f"  lr {last.learning_rate:.1e}"
        rest = (
            f"{self._speed:,.0f} tok/s{rate}  loss scale {last.loss_scale:g}  calls run again {last.rescaled}  "
            f"{last.peak_memory:.2f} GB"
        )
        curve = sparkline(list(self._losses), min(width - len(losses), WIDEST))
        return [Text(line, no_wrap=True, overflow="ellipsis") for line in (losses + curve, rest, device)]


def sparkline(values: list[float], width: int) -> str:
    """Return at most `width` characters whose heights follow the values: each is the mean of as many of them."""
    if width <= 0 or not values:
        return ""
    size = -(-len(values) // width)
    means = [sum(part) / len(part) for part in (values[at : at + size] for at in range(0, len(values), size))]
    low, high = min(means), max(means)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((mean - low) / step)] for mean in means)
