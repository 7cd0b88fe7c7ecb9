"""Saving a run so that it goes on to the bit, and going on: which checkpoint, with which settings, what may differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anew.errors import UserError
from anew.train import snapshot
from anew.train.checkpoint import MANIFEST, Checkpoint, Checkpoints, open_checkpoint
from anew.train.record import versions
from anew.train.settings import RunSettings, Settings

if TYPE_CHECKING:
    from anew.train.loop import Loop

Config = TypeVar("Config", bound=Settings)

#: The document with a run's verb and settings and where it stood: steps taken (its position in the schedule, and with
#: batch size and seed the one in the data) of how many, SHA-256 of the tokens, loss scale, region calls repeated,
#: seconds of training, versions of the packages that decide a result.
STATE = "trainer_state"
_STATE_KEYS = ("verb", "step", "steps", "config", "tokens", "rescaled", "seconds", "versions")


def find(path: Path) -> Checkpoint:
    """Open a run's latest checkpoint, or `path` itself if it is one; raises UserError if there is none."""
    if (path / MANIFEST).exists() or path.name.startswith("checkpoint-"):
        return open_checkpoint(path)
    if not path.is_dir():
        raise UserError(f"there is no run at {path} to go on with")
    latest = Checkpoints(path).latest()
    if latest is None:
        raise UserError(f"{path} has no checkpoint to go on from: start the run again without --resume")
    return open_checkpoint(latest)


def state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the trainer_state.json of a checkpoint; raises UserError if it is another program's."""
    found = checkpoint.document(STATE)
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise UserError(f"{checkpoint.path} is not a checkpoint of a run: its {STATE}.json has no settings")
    if missing := [key for key in _STATE_KEYS if key not in found]:
        raise UserError(f"{checkpoint.path} is not a checkpoint of a run: its {STATE}.json has no '{missing[0]}'")
    return found


def settings(checkpoint: Checkpoint, choices: Mapping[str, Any], kind: type[Config]) -> Config:
    """Return the settings of the run that a checkpoint is of, with its folder as it is reached now.

    `choices` holds fields of `kind`, None where no flag was given. Those in its FREE are taken over; raises UserError
    that names every other one whose value differs from the run's, and for a run of another verb.
    """
    run, found = checkpoint.path.parent, state(checkpoint)
    if found["verb"] != kind.VERB:
        raise UserError(f"{run} is a run of anew {found['verb']}: go on with anew {found['verb']} --resume {run}")
    config = kind.from_json({**found["config"], kind.FOLDER: str(run)})
    given = {key: value for key, value in choices.items() if value is not None}
    wrong = [key for key in given if key not in kind.FREE and not _same(given[key], getattr(config, key))]
    if wrong:
        listed = ", ".join(f"{kind.flag(key)} {given[key]} (the run has {getattr(config, key)})" for key in wrong)
        raise UserError(f"--resume goes on with {run} as it was begun: leave away {listed}, or start another run")
    taken = {key: _like(getattr(config, key), value) for key, value in given.items() if key in kind.FREE}
    return replace(config, **taken)  # type: ignore[type-var]


def _like(saved: Any, given: Any) -> Any:
    return given if saved is None else type(saved)(given)


def _same(given: Any, saved: Any) -> bool:
    if isinstance(given, Path) and isinstance(saved, Path):
        return given.resolve() == saved.resolve()
    return bool(given == saved)


def begin(checkpoints: Checkpoints, folder_flag: str) -> None:
    """Make room for a new run: remove the checkpoints of a finished one; raises UserError if one is unfinished."""
    if not checkpoints.all():
        return
    folder = checkpoints.folder
    finished = False
    try:
        found = state(find(folder))
        finished = found["step"] >= found["steps"]
    except UserError:
        pass  # what cannot be read may still matter to somebody
    if not finished:
        raise UserError(
            f"{folder} holds checkpoints of a run that did not finish: go on with --resume {folder}, choose another "
            f"{folder_flag}, or delete them"
        )
    checkpoints.clear()


class Saver:
    """Saves one run and brings it back.

    Args:
        checkpoints: where to.
        config: the run's settings.
        data: what it learns from, in a few words.
        tokens: SHA-256 of its training and validation tokens.
        trained_only: leave out weights that do not train; else transformers loads the checkpoint as a model.
        writes: False in a process beside the one that writes.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: RunSettings,
        data: str,
        tokens: str,
        *,
        trained_only: bool = False,
        writes: bool = True,
    ) -> None:
        self.checkpoints = checkpoints
        self.config = config
        self.data = data
        self.tokens = tokens
        self.trained_only = trained_only
        self.writes = writes
        self.saved: Path | None = None

    def save(self, loop: Loop) -> None:
        """Save a loop between two steps, metrics first; raises UserError if the disk does not take it."""
        if not self.writes:
            self.saved = self.checkpoints.folder / f"checkpoint-{loop.history.steps}"
            return
        tensors, documents = snapshot.take(loop.model, loop.optimizer, trained_only=self.trained_only)
        documents[STATE] = {
            "verb": self.config.VERB,
            "step": loop.history.steps,
            "steps": loop.config.steps,
            "config": self.config.as_json(),
            "tokens": self.tokens,
            "loss_scale": loop.history.records[-1].loss_scale,
            "rescaled": loop.history.records[-1].rescaled,
            "seconds": loop.history.seconds,
            "versions": versions(),
        }
        if not self.trained_only:
            model: Any = loop.model
            documents["config"] = model.config.to_dict()  # with it transformers loads the folder
        if loop.metrics is not None:
            loop.metrics.sync()
        self.saved = self.checkpoints.save(loop.history.steps, tensors, documents)

    def check(self, checkpoint: Checkpoint) -> str | None:
        """Raise UserError if a checkpoint saw other data; return a sentence if other versions may change last bits."""
        found = state(checkpoint)
        if found["tokens"] != self.tokens:
            raise UserError(f"{self.data} or its tokenizer is not what the run in {self.config.folder} began with")
        then, now = found["versions"], versions()
        changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
        return f"Versions   {', '.join(changed)}: the last bits may differ" if changed else None

    def restore(self, loop: Loop, checkpoint: Checkpoint) -> None:
        """Bring a loop, whose history holds the records up to the checkpoint, to where it was saved."""
        snapshot.restore(checkpoint, loop.model, loop.optimizer)
        loop.rescaled_before = state(checkpoint)["rescaled"]
        loop.history.seconds = state(checkpoint)["seconds"]
        self.saved = checkpoint.path
