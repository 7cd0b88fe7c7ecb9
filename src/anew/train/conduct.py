"""What every kind of run does around its loop: the folder, going on from a checkpoint, and what is left behind."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from anew.device.power import kept_awake, power
from anew.errors import UserError
from anew.optim import settle
from anew.report import REPORT, write_report
from anew.train.checkpoint import Checkpoint, Checkpoints, step_of
from anew.train.device import describe_device, statistics
from anew.train.display import Display
from anew.train.interrupt import stop_on_interrupt
from anew.train.loop import History, Loop
from anew.train.memory import peak_memory
from anew.train.metrics import METRICS, MetricsFile, Record, read_records
from anew.train.parts import parts
from anew.train.plot import plot_losses
from anew.train.record import RUN, machine, versions, write_json
from anew.train.resume import Saver, begin
from anew.train.settings import Settings
from anew.train.trackers import Trackers


def open_folder(config: Settings, keep: int, display: Display, *, resumed: bool) -> Checkpoints:
    """Make the run's folder and return its checkpoints; raises UserError if an unfinished run is there to go on with.

    What a killed save left there is named.
    """
    flag = config.flag(config.FOLDER)
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {config.folder} for {flag}: {error.strerror}") from error
    checkpoints = Checkpoints(config.folder, keep)
    for path in checkpoints.partial():
        display.say(f"Ignored    {path}: half-written by a run that was killed; the next save removes it")
    if not resumed:
        begin(checkpoints, flag)
    return checkpoints


def records_until(saver: Saver, checkpoint: Checkpoint | None, display: Display) -> list[Record]:
    """Return the records that a run goes on after, none for a new one; UserError if its data is not what it was."""
    if checkpoint is None:
        return []
    said = saver.check(checkpoint)
    display.say(said or f"Resuming   {checkpoint.path}")
    return read_records(checkpoint.path.parent / METRICS, step_of(checkpoint.path))


def first_record(config: Settings, command: Sequence[str], checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return what run.json says of every run from its start."""
    return {
        "command": shlex.join(command),
        "status": "running",
        "config": config.as_json(),
        "resumed_from": None if checkpoint is None else step_of(checkpoint.path),
        "versions": versions(),
        "machine": machine(),
    }


def conduct(
    loop: Loop,
    records: list[Record],
    folder: Path,
    record: dict[str, Any],
    title: str,
    finish: Callable[[], None],
    trackers: Trackers,
    agree: Callable[[bool], bool] = bool,
) -> None:
    """Run a loop, which goes on after `records`, until it is done or interrupted; report it to `trackers`.

    `agree` is as for :func:`train`. `finish` is called when training has ended well. Whatever happens, metrics.jsonl,
    loss.png (under a title), run.json (from `record`, and as it is before the first step too) and report.html are
    written to the folder if the disk takes them.
    """
    started = time.perf_counter()
    with MetricsFile(folder / METRICS, records) as metrics, trackers.watching(loop.model, loop.config.steps):
        loop.metrics, loop.trackers = metrics, trackers
        try:
            write_json(folder / RUN, record)
            train(loop, agree)
            record["status"] = "interrupted" if loop.history.interrupted else "finished"
            finish()
        except BaseException as error:
            record["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # a full disk may be what went wrong
                _leave_record(loop, folder, record, title, started)
            raise
        _leave_record(loop, folder, record, title, started)


def train(loop: Loop, agree: Callable[[bool], bool] = bool) -> None:
    """Run a loop until it is done or interrupted; `agree` tells whether any process of the run was asked to stop."""
    counters = statistics(loop.model, loop.config)
    loop.display.start(loop.config.steps, ", emulated" if counters.emulated else "", describe_device(counters))
    slow = _say_what_slows(loop)
    try:
        with kept_awake(), stop_on_interrupt(loop.display.stopping) as stop:
            loop.run(lambda: agree(stop()))
    finally:
        loop.display.stop()
        with suppress(Exception):  # of two errors the first is the one to tell
            settle(loop.optimizer)
        if not slow:
            _say_what_slows(loop)  # it grew hot, or its battery low


def _say_what_slows(loop: Loop) -> str:
    """Say what slows this machine down; returns that."""
    said = str(power() or "")
    if said:
        loop.display.say(f"Power      {said}")
    return said


def _leave_record(loop: Loop, folder: Path, record: dict[str, Any], title: str, started: float) -> None:
    plot_losses(loop.history.records, title, folder / "loss.png")
    counters = statistics(loop.model, loop.config)
    record.update(_results(loop.history, counters, time.perf_counter() - started))
    record["parts"] = [dataclasses.asdict(part) for part in parts(loop.model, counters)]
    write_json(folder / RUN, record)
    write_report([folder], folder / REPORT)


def _results(history: History, counters: Any, seconds: float) -> dict[str, Any]:
    losses = history.val_losses
    return {
        "device": counters.device,
        "emulated": counters.emulated,
        "steps": history.steps,
        "first_val_loss": losses[0] if losses else None,
        "last_val_loss": losses[-1] if losses else None,
        "seconds": {
            "total": round(seconds, 3),
            "training": round(history.seconds, 3),
            **{what: round(took, 3) for what, took in sorted(history.aside.items())},
        },
        "peak_memory": peak_memory(),
        "programs": counters.programs,
        "dispatches": counters.dispatches,
        "rescaled": counters.rescaled,
        "statistics": dataclasses.asdict(counters),
    }


def describe_result(history: History, seconds: float) -> str:
    """Return how far the validation loss came, and in what time, in a line."""
    taken = f"{history.steps} steps; {history.seconds:.1f} s of training, {seconds:.1f} s in all"
    if not history.val_losses:
        return f"No validation data; {taken}"
    first, last = history.val_losses[0], history.val_losses[-1]
    if len(history.val_losses) == 1:
        return f"Validation loss {first:.3f} at first, not measured again; {taken}"
    return f"Validation loss {first:.3f} -> {last:.3f} ({100 * (last - first) / first:+.0f} %) in {taken}"
