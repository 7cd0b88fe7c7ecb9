"""What the settings of every kind of run have in common: plain values in a dataclass, kept with each checkpoint."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from anew.errors import UserError


class Settings:
    """Base of a dataclass of settings, one field for each flag."""

    #: The verb of the command line that these are settings of.
    VERB: ClassVar[str]
    #: The field that holds the run's folder.
    FOLDER: ClassVar[str]
    #: Settings that a run may change when it goes on: none of them decides what it computes.
    FREE: ClassVar[tuple[str, ...]]

    @property
    def folder(self) -> Path:
        """Where the run leaves everything."""
        return Path(getattr(self, self.FOLDER))

    def as_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {key: str(value) if isinstance(value, Path) else value for key, value in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the settings that :meth:`as_json` gave; raises UserError if these are not all of them, and no more."""
        known = {field.name: str(field.type) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if odd := known.keys() ^ fields.keys():
            raise UserError(f"these settings are of another version of anew: '{min(odd)}' is known to one of them only")
        paths = {k: Path(v) for k, v in fields.items() if "Path" in known[k] and v is not None}
        return cls(**{**fields, **paths})

    @classmethod
    def flag(cls, field: str) -> str:
        """Return the flag of a setting."""
        return "--" + field.replace("_", "-")


class RunSettings(Protocol):
    """Settings as the parts see them that all kinds of runs share."""

    VERB: ClassVar[str]
    FOLDER: ClassVar[str]

    @property
    def folder(self) -> Path:
        """Where the run leaves everything."""

    def as_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
