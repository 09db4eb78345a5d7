"""An index: which files there are of an attempt, and what each must be. Their names tell what they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_METRICS, _CHECKPOINTS = "metrics/", "checkpoints/"
_LAST = ("result.json", "pruned.json")


@dataclass(frozen=True)
class Stored:
    """How many bytes of a file count, and their sha256."""

    size: int
    sha256: str


Index = dict[str, Stored]
"""By the file's path in the trial's folder."""


def metrics_in(index: Mapping[str, Any]) -> list[str]:
    """The names of the pieces of the metrics."""
    return [name for name in index if name.startswith(_METRICS)]


def checkpoints_in(index: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each checkpoint, oldest first, the names of its files."""
    found: dict[str, list[str]] = {}
    for name in index:
        if name.startswith(_CHECKPOINTS):
            found.setdefault(name.split("/")[1], []).append(name)
    return dict(sorted(found.items(), key=lambda each: (len(each[0]), each[0])))  # a longer number is a later step


def has_ended(index: Mapping[str, Any]) -> bool:
    """Whether there is nothing left to run: the trial is finished, or pruned."""
    return any(name in index for name in _LAST)


def piece_name(start: int) -> str:
    """The name of the piece that begins at byte `start` of the spool."""
    return f"{_METRICS}{start:015d}.jsonl"


def piece_start(name: str) -> int:
    """At which byte of the spool the piece of this name begins."""
    return int(name.removeprefix(_METRICS).split(".")[0])
