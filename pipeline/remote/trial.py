"""One trial in a storage: what each of its attempts has put there, and which of them counts.

An attempt has files of its own and an index of them, which is put last and by which alone they are found. What the
index names is one state of the trial, whole: a checkpoint, and at least the metrics up to it. The trial is what the
index of its last attempt says, or that of the one before while the last has none. So a worker that has been overtaken
and does not know it can spoil nothing: what it puts is not refused, but nobody looks there any more.

Metrics lie in pieces of whole lines, `metrics/<offset>.jsonl`, so that what is put after a log stays small however long
the run; the last piece grows, and the index says how much of it counts. Each file's sha256 is in the index and checked
on the way back. Whoever can write to the storage can write an index: what is read back has one of the names and sizes
that an attempt writes, or is refused; see `pipeline.remote.index`.

In the sweep's folder `trials`, for the trial KEY:

    KEY~attempt-003.json  which command has begun attempt 3, created by one driver alone; later why it failed
    KEY~attempt.json      the same of the last attempt, by an older version; read where there is no other
    KEY~003.json          the index of attempt 3
    KEY~prune.json        the request that the trial ends early
    KEY/003/...           the files of attempt 3; segments/... are parts of its index that change no more
    KEY/attempts.jsonl, KEY/evidence/..., KEY/absent-003/rank-0
"""

import re
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.remote.attempt import Overtaken, RemoteAttempt
from pipeline.remote.attempt_record import (
    MOST_ATTEMPTS,
    MOST_RECORD_BYTES,
    attempt_bytes,
    last_attempts,
    parse_attempt,
)
from pipeline.remote.index import Index
from pipeline.storage.creating import NoConditionalPut, create
from pipeline.storage.storage import Storage

_MOST_NOTES_BYTES = 16 * 2**20


@dataclass(frozen=True)
class RemoteTrial:
    """The trial `key` among the trials of one sweep, which lie in `trials`."""

    trials: Storage
    key: str

    @property
    def files(self) -> Storage:
        """The folder of its attempts' files, and of what is the trial's own."""
        return self.trials / self.key

    def attempt_file(self, number: int) -> Storage:
        """Of an attempt, as JSON: {"attempt": int, "session": str, "failure": str or null, "token": str}. Number 0: the
        last attempt, as an older version wrote it."""
        return self.trials / (f"{self.key}~attempt-{number:03d}.json" if number else f"{self.key}~attempt.json")

    @property
    def attempts_file(self) -> Storage:
        """A line for every attempt; see `TrialFolder.attempts`."""
        return self.files / "attempts.jsonl"

    @property
    def prune_file(self) -> Storage:
        """Where it is, the trial is to end early; its workers obey at a logged step soon after."""
        return self.trials / f"{self.key}~prune.json"

    def part(self, attempt: int) -> "RemoteAttempt":
        """What an attempt has put, or is to put."""
        return RemoteAttempt(self, attempt)

    def attempt(self, last: int | None = None) -> dict[str, Any] | None:
        """The last attempt: its number, session and failure; None when there is none.

        Args:
            last: its number, where a listing has shown it already; else one is made.

        Raises:
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        number = last_attempts(self.trials.files()).get(self.key, 0) if last is None else last
        file = self.attempt_file(number)
        try:
            raw = file.read_bytes(MOST_RECORD_BYTES)
        except FileNotFoundError:
            return None
        record = parse_attempt(raw, file, self.key)
        return {**record, "attempt": number or record["attempt"]}

    def take_attempt(self, session: str, after: int, token: str) -> int:
        """Begins the attempt that follows attempt `after`, and returns its number. No earlier attempt puts anything
        from now on.

        Its file is created by a conditional put: of several drivers that all saw `after` as the last attempt one
        alone begins the next. A storage that knows no such put takes the file of each.

        Args:
            token: of this attempt alone, and the same where the call is repeated.

        Raises:
            Overtaken: another driver has begun it.
            UserError: there can be no more attempts.
            StorageError: the storage is away.
        """
        number = after + 1
        if number > MOST_ATTEMPTS:
            raise UserError(
                f"{self.attempt_file(after)}: is attempt {after:,}; expected at most {MOST_ATTEMPTS:,}. Remove all "
                f"that begins with {self.key}~ beside it to start this trial anew."
            )
        try:
            if not create(self.attempt_file(number), attempt_bytes(number, session, None, token)):
                raise Overtaken(f"attempt {number} was begun by another driver at the same moment; it continues there")
        except NoConditionalPut:
            self.put_attempt(number, session, token=token)
        return number

    def put_attempt(self, number: int, session: str, failure: str | None = None, token: str = "") -> None:
        """Writes the file of an attempt that this driver has begun: why it has failed."""
        self.attempt_file(number).write_bytes(attempt_bytes(number, session, failure, token))

    def noted(self) -> str | None:
        """What is in `attempts_file`; None when there is none.

        Raises:
            StorageError: the storage is away.
        """
        try:
            return self.attempts_file.read_text(_MOST_NOTES_BYTES)
        except FileNotFoundError:
            return None

    def newest(self, attempt: dict[str, Any] | None) -> tuple["RemoteAttempt", Index]:
        """The last attempt that has an index, and that; attempt 0 and an empty one when there is none yet.

        Args:
            attempt: `attempt()`.

        Raises:
            UserError, StorageError: as RemoteAttempt.index.
        """
        last = attempt["attempt"] if attempt else 0
        if last and (index := self.part(last).index()) is not None:
            return self.part(last), index
        for number in sorted(self.indexed(last - 1), reverse=True):
            if (index := self.part(number).index()) is not None:
                return self.part(number), index
        return self.part(0), {}

    def indexed(self, last: int) -> set[int]:
        """The attempts up to `last` that have an index, by one listing: a number may be large.

        Raises:
            StorageError: the storage is away.
        """
        shape = re.compile(re.escape(self.key) + r"~([0-9]{3,4})\.json")
        names = self.trials.files() if last > 0 else ()
        return {n for name in names if (match := shape.fullmatch(name)) and 0 < (n := int(match[1])) <= last}

    def index(self) -> Index:
        """What there is, its segments opened; empty when nothing has been put yet.

        Raises:
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        part, index = self.newest(self.attempt())
        return part.opened(index, {})
