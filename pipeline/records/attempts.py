"""How often a trial has been taken up, and by which command."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.files import create_mark, make_private, read_json, write_whole
from pipeline.foreign_json import DamagedJson, integer, parse_object, read_bounded, text
from pipeline.layout import TrialFolder

_MOST_BYTES, _LONGEST_LINE = 64 * 2**20, 2**20
_TAKEN = re.compile(r"taken-([0-9]{3,9})")


class AttemptTaken(Exception):
    """Another process has begun the attempt of this number at the same moment."""


@dataclass(frozen=True)
class Attempt:
    """The last time that a trial was taken up: its number, from 1, and the session that did it."""

    number: int
    session: str


def last_attempt(folder: TrialFolder) -> Attempt | None:
    """None when the trial has never been taken up, or what says so is damaged."""
    record = read_json(folder.ray / "attempt.json")
    try:
        return Attempt(integer(record["attempt"]), text(record["session"], 100))
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
    records = []
    for line in lines.splitlines():
        with suppress(DamagedJson):
            records.append(parse_object(line, "attempts.jsonl", _LONGEST_LINE))
    return records


def write_failure(folder: TrialFolder, session: str, reason: str) -> None:
    """Records why a trial ended in `session` that could not record it itself."""
    before = last_attempt(folder)
    write_attempt(folder, Attempt(before.number if before else 0, session))
    write_whole(folder.failure, reason)


def take_attempt(folder: TrialFolder, session: str, after: int | None = None) -> Attempt:
    """Takes the next number for an attempt: of several processes that try at once one alone gets it.

    Each number is taken by creating a file, `ray/taken-003`. A process that died before it could write the attempt
    leaves its number unused.

    Args:
        after: the attempt that this one repeats; None: the last that there is.

    Raises:
        AttemptTaken: another process has taken the number between our look at the folder and our own try.
    """
    make_private(folder.ray)
    before = last_attempt(folder)
    taken = [int(match[1]) for path in folder.ray.glob("taken-*") if (match := _TAKEN.fullmatch(path.name))]
    attempt = Attempt(1 + (max([before.number if before else 0, *taken]) if after is None else after), session)
    if not create_mark(folder.ray / f"taken-{attempt.number:03d}"):
        raise AttemptTaken(f"attempt {attempt.number} was begun by another process at the same moment; it continues")
    write_attempt(folder, attempt)
    return attempt


def write_attempt(folder: TrialFolder, attempt: Attempt) -> None:
    """Says that a trial is taken up."""
    make_private(folder.ray)
    write_whole(folder.ray / "attempt.json", json.dumps({"attempt": attempt.number, "session": attempt.session}))
