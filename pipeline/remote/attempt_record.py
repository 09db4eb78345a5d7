"""The record of an attempt in a storage: which command has begun it, and why it has failed."""

import json
import re
from collections.abc import Iterable
from typing import Any

from pipeline.errors import UserError
from pipeline.foreign_json import DamagedJson, integer, parse_object, text

MOST_ATTEMPTS = 9_999
MOST_RECORD_BYTES = 2**20
_MOST_REASON = 100_000  # characters
_ATTEMPT = re.compile(r"(.+)~attempt(?:-([0-9]{3,4}))?\.json")


def parse_attempt(raw: bytes, source: object, key: str) -> dict[str, Any]:
    """What `RemoteTrial.put_attempt` wrote.

    Raises:
        UserError: it is something else.
    """
    try:
        record = parse_object(raw, source, MOST_RECORD_BYTES)
        failure = record["failure"]
        return {
            "attempt": integer(record["attempt"], 1, MOST_ATTEMPTS),
            "session": text(record["session"], 100),
            "failure": None if failure is None else text(failure, _MOST_REASON),
        }
    except (DamagedJson, ValueError, KeyError) as error:
        raise UserError(
            f"{source}: is not the record of an attempt ({error!r:.300}). Remove all that begins with "
            f"{key}~ beside it to start this trial anew."
        ) from error


def last_attempts(names: Iterable[str]) -> dict[str, int]:
    """The number of the last attempt of each trial, by the trial's key, among the files of a sweep's folder `trials`;
    0 where only an older version has written of one."""
    numbers: dict[str, int] = {}
    for name in names:
        if named := _ATTEMPT.fullmatch(name):
            numbers[named[1]] = max(int(named[2] or 0), numbers.get(named[1], 0))
    return numbers


def attempt_bytes(number: int, session: str, failure: str | None, token: str) -> bytes:
    """What `parse_attempt` reads."""
    record = {"attempt": number, "session": session, "failure": failure and failure[:_MOST_REASON], "token": token}
    return json.dumps(record).encode()


def key_of(name: str) -> str:
    """The key of the trial that a file directly in the sweep's folder is of."""
    return name.partition("~")[0]
