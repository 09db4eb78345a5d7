"""How often a trial has been taken up, and by which command."""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.files import make_private, read_json, write_whole
from pipeline.foreign_json import DamagedJson, integer, parse_object, read_bounded, text
from pipeline.layout import TrialFolder

_MOST_BYTES, _LONGEST_LINE = 64 * 2**20, 2**20


@dataclass(frozen=True)
class Attempt:
    """The last time that a trial was taken up: its number, from 1, and the session that did it."""

    number: int
    session: str


def last_attempt(folder: TrialFolder) -> Attempt | None:
    """None when the trial has never been taken up, or what says so is damaged."""
    found = read_json(folder.ray / "attempt.json")
    try:
        return Attempt(integer(found["attempt"]), text(found["session"], 100))
    except (TypeError, KeyError, ValueError):
        return None


def noted_attempts(folder: TrialFolder) -> list[dict[str, Any]]:
    """All that is noted of a trial's attempts, the oldest first; what is no JSON is left out."""
    if not folder.attempts.exists():
        return []
    raw = read_bounded(folder.attempts, _MOST_BYTES)
    return parsed_attempts(raw.decode("utf-8", errors="replace"))


def parsed_attempts(lines: str) -> list[dict[str, Any]]:
    """The lines of `TrialFolder.attempts` that are whole."""
    found = []
    for line in lines.splitlines():
        with suppress(DamagedJson):
            found.append(parse_object(line, "attempts.jsonl", _LONGEST_LINE))
    return found


def write_failure(folder: TrialFolder, session: str, reason: str) -> None:
    """Says for a trial that could not say so itself why it ended in `session`."""
    before = last_attempt(folder)
    write_attempt(folder, Attempt(before.number if before else 0, session))
    write_whole(folder.failure, reason)


def write_attempt(folder: TrialFolder, attempt: Attempt) -> None:
    """Says that a trial is taken up."""
    make_private(folder.ray)
    write_whole(folder.ray / "attempt.json", json.dumps({"attempt": attempt.number, "session": attempt.session}))
