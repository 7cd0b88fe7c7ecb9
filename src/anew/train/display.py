"""What a run shows: a live view on a terminal, mlx-lm's log lines on a pipe."""

import os
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from anew.train.figures import Figures
from anew.train.interrupt import NOTICE, write_notice
from anew.train.metrics import Record

REPORT_EVERY = 10
#: How often a second the live view is drawn.
REDRAWS = 2


class Display(Protocol):
    """Where a run reports to."""

    def say(self, text: str | Text = "") -> None:
        """Show a line, or several."""

    def start(self, steps: int, label: str = "", device: str = "") -> None:
        """Training begins."""

    def stepped(self, record: Record) -> None:
        """A step was taken."""

    def validated(self, iteration: int, loss: float, seconds: float) -> None:
        """A validation loss was measured after `iteration` steps."""

    def stopping(self) -> None:
        """The user asked to stop after the step; called in a signal handler."""

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

    def start(self, steps: int, label: str = "", device: str = "") -> None:
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

    def stopping(self) -> None:
        """Say so on standard error."""
        write_notice()

    def stop(self) -> None:
        """Leave the lines as they are."""


class NoDisplay:
    """Nothing, for processes that work beside the one that speaks."""

    def say(self, text: str | Text = "") -> None:
        """Show nothing."""

    def start(self, steps: int, label: str = "", device: str = "") -> None:
        """Show nothing."""

    def stepped(self, record: Record) -> None:
        """Show nothing."""

    def validated(self, iteration: int, loss: float, seconds: float) -> None:
        """Show nothing."""

    def stopping(self) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


def _energy(window: list[Record]) -> str:
    """Joules of a step over a window, of the rails that could be read; nothing where none could."""
    taken = [[j for j in r.joules.values() if j is not None] for r in window if r.joules]
    return f", J/step {sum(map(sum, taken)) / len(taken):.3g}" if taken else ""


class LiveDisplay:
    """A progress line that redraws itself, and under it what the last steps came to; both as wide as the terminal.

    It is drawn from a thread of rich's, so many times a second however fast the steps are, so a step pays for no more
    than keeping its record.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._task = self._progress.add_task("", total=None)
        self._figures = Figures()
        self._device = self._notice = ""
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=REDRAWS, transient=False)

    def say(self, text: str | Text = "") -> None:
        """Print above the view, as it is: text may hold brackets, which mean nothing here."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, steps: int, label: str = "", device: str = "") -> None:
        """Show the view, with the device in it."""
        self._device = device
        self._progress.update(self._task, total=steps)
        self._live.start()

    def stepped(self, record: Record) -> None:
        """Take in a step."""
        self._figures.add(record)
        self._progress.update(self._task, completed=record.iteration)

    def validated(self, iteration: int, loss: float, seconds: float) -> None:
        """Take in a validation loss."""
        self._figures.val_loss = loss

    def stopping(self) -> None:
        """Show it with the next drawing: what a signal handler writes itself, that would overwrite."""
        self._notice = NOTICE

    def stop(self) -> None:
        """Leave the view as it stands."""
        self._live.stop()

    def _render(self) -> Group:
        notice = [Text(self._notice)] if self._notice else []
        lines = self._figures.lines(self._console.width, self._device)
        return Group(self._progress.get_renderable(), *lines, *notice)


def make_display(plain: bool, report_every: int = REPORT_EVERY) -> Display:
    """Return a live display on a terminal that can redraw, else a plain one.

    A pipe, TERM=dumb, NO_COLOR set to anything, and `plain` ask for plain lines.
    """
    console = Console()
    if plain or not console.is_terminal or console.is_dumb_terminal or os.environ.get("NO_COLOR"):
        return PlainDisplay(report_every)
    return LiveDisplay(console)
