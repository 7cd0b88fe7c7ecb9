"""What a run shows: a live progress line on a terminal, mlx-lm's log lines on a pipe."""

import sys
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from anew.train.metrics import Record

REPORT_EVERY = 10


class Display(Protocol):
    """Where a run reports to."""

    def say(self, text: str | Text = "") -> None:
        """Show a line, or several."""

    def start(self, steps: int, label: str = "") -> None:
        """Training begins."""

    def stepped(self, record: Record) -> None:
        """A step was taken."""

    def validated(self, iteration: int, loss: float, seconds: float) -> None:
        """A validation loss was measured after `iteration` steps."""

    def stop(self) -> None:
        """Training is over."""


class PlainDisplay:
    """Lines that scripts can read: a report every so many steps, in the form that mlx-lm made known.

    Args:
        report_every: steps between reports.
    """

    def __init__(self, report_every: int = REPORT_EVERY) -> None:
        self._report_every = report_every
        self._label = ""
        self._steps = 0
        self._window: list[Record] = []

    def say(self, text: str | Text = "") -> None:
        """Print at once, also into a pipe."""
        print(text, flush=True)

    def start(self, steps: int, label: str = "") -> None:
        """Print how many steps are to come; every report ends with the label."""
        self._steps, self._label = steps, label
        self.say(f"Starting training..., iters: {steps}")

    def stepped(self, record: Record) -> None:
        """When a report is due, and at the last step, print the mean loss and rates since the report before."""
        self._window.append(record)
        if record.iteration % self._report_every and record.iteration != self._steps:
            return
        losses = [r.train_loss for r in self._window if r.train_loss is not None]
        timed = [(r.seconds, r.tokens_per_second) for r in self._window if r.seconds and r.tokens_per_second]
        seconds = sum(took for took, _ in timed)
        self.say(
            f"Iter {record.iteration}: Train loss {sum(losses) / len(losses):.3f}, "
            f"Learning Rate {record.learning_rate:.3e}, "
            f"It/sec {len(timed) / seconds:.3f}, "
            f"Tokens/sec {sum(took * rate for took, rate in timed) / seconds:.3f}, "
            f"Trained Tokens {record.trained_tokens}, "
            f"Peak mem {record.peak_memory:.3f} GB{_energy(self._window)}{self._label}"
        )
        self._window.clear()

    def validated(self, iteration: int, loss: float, seconds: float) -> None:
        """Print the validation loss."""
        self.say(f"Iter {iteration}: Val loss {loss:.3f}, Val took {seconds:.3f}s")

    def stop(self) -> None:
        """Leave the lines as they are."""


class NoDisplay:
    """Nothing, for processes that work beside the one that speaks."""

    def say(self, text: str | Text = "") -> None:
        """Show nothing."""

    def start(self, steps: int, label: str = "") -> None:
        """Show nothing."""

    def stepped(self, record: Record) -> None:
        """Show nothing."""

    def validated(self, iteration: int, loss: float, seconds: float) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


def _energy(window: list[Record]) -> str:
    """Joules of a step over a window, of the rails that could be read; nothing where none could."""
    taken = [[j for j in r.joules.values() if j is not None] for r in window if r.joules]
    return f", J/step {sum(map(sum, taken)) / len(taken):.3g}" if taken else ""


class LiveDisplay:
    """A progress line that redraws itself: losses, speed, learning rate, time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._task = self._progress.add_task("", total=None, visible=False)
        self._val_loss = float("nan")

    def say(self, text: str | Text = "") -> None:
        """Print above the progress line, as it is: text may hold brackets, which mean nothing here."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, steps: int, label: str = "") -> None:
        """Show the line."""
        self._progress.update(self._task, total=steps, visible=True, description="validating")
        self._progress.start()

    def stepped(self, record: Record) -> None:
        """Move the line on."""
        described = (
            f"loss [bold]{record.train_loss:.3f}[/]  val [bold]{self._val_loss:.3f}[/]  "
            f"{record.tokens_per_second:,.0f} tok/s  lr {record.learning_rate:.1e} "
        )
        self._progress.update(self._task, completed=record.iteration, description=described)

    def validated(self, iteration: int, loss: float, seconds: float) -> None:
        """Show the loss with the next step."""
        self._val_loss = loss

    def stop(self) -> None:
        """Leave the line as it stands."""
        self._progress.stop()


def make_display(plain: bool, report_every: int = REPORT_EVERY) -> Display:
    """Return a live display if standard output is a terminal and `plain` is not asked for, else a plain one."""
    if plain or not sys.stdout.isatty():
        return PlainDisplay(report_every)
    return LiveDisplay(Console())
