"""How often a trial has been taken up, and by which command."""

import json
from dataclasses import dataclass

from pipeline.files import read_json, write_whole
from pipeline.layout import TrialFolder


@dataclass(frozen=True)
class Attempt:
    """The last time that a trial was taken up: its number, from 1, and the session that did it."""

    number: int
    session: str


def last_attempt(folder: TrialFolder) -> Attempt | None:
    """None when the trial has never been taken up, or what says so is damaged."""
    found = read_json(folder.ray / "attempt.json")
    try:
        return Attempt(int(found["attempt"]), str(found["session"]))
    except (TypeError, KeyError, ValueError):
        return None


def write_failure(folder: TrialFolder, session: str, reason: str) -> None:
    """Says for a trial that could not say so itself why it ended in `session`."""
    before = last_attempt(folder)
    write_attempt(folder, Attempt(before.number if before else 0, session))
    write_whole(folder.failure, reason)


def write_attempt(folder: TrialFolder, attempt: Attempt) -> None:
    """Says that a trial is taken up."""
    write_whole(folder.ray / "attempt.json", json.dumps({"attempt": attempt.number, "session": attempt.session}))
