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
    KEY~prune.json        the word that the trial is to end early
    KEY/003/...           the files of attempt 3; segments/... are parts of its index that change no more
    KEY/attempts.jsonl, KEY/evidence/..., KEY/absent-003/rank-0
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.files import append_to
from pipeline.foreign_json import DamagedJson, integer, parse_object, text
from pipeline.foreign_names import inside
from pipeline.layout import TrialFolder
from pipeline.remote.index import (
    MOST_INDEX_BYTES,
    Index,
    Stored,
    is_inner,
    metrics_in,
    parse_index,
    piece_start,
    segments_in,
    written,
)
from pipeline.storage.creating import NoConditionalPut, create
from pipeline.storage.storage import Storage, TooLarge

MOST_ATTEMPTS = 9_999
MOST_OPENED = 10_000_000  # files that an index and its segments name
_MOST_NOTE_BYTES = 2**20  # of what a driver says of an attempt
_MOST_REASON = 100_000  # characters
_MOST_NOTES_BYTES = 16 * 2**20
_ATTEMPT = re.compile(r"(.+)~attempt(?:-([0-9]{3,4}))?\.json")


class Changed(Exception):
    """A file is not what the index says: it has been replaced meanwhile, or it is damaged."""


class Overtaken(Exception):
    """Another attempt has begun, and this one is to write no more."""


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
            raw = file.read_bytes(_MOST_NOTE_BYTES)
        except FileNotFoundError:
            return None
        found = parse_attempt(raw, file, self.key)
        return {**found, "attempt": number or found["attempt"]}

    def take_attempt(self, session: str, after: int, token: str) -> int:
        """Begins the attempt that follows attempt `after`, and returns its number. No earlier attempt puts anything
        from now on.

        Its file is created by a put on a condition: of several drivers that all saw `after` as the last attempt one
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
            if not create(self.attempt_file(number), _attempt_bytes(number, session, None, token)):
                raise Overtaken(f"attempt {number} was begun by another driver at the same moment; it continues there")
        except NoConditionalPut:
            self.put_attempt(number, session, token=token)
        return number

    def put_attempt(self, number: int, session: str, failure: str | None = None, token: str = "") -> None:
        """Writes the file of an attempt that this driver has begun: why it has failed."""
        self.attempt_file(number).write_bytes(_attempt_bytes(number, session, failure, token))

    def noted(self) -> str | None:
        """What is in `attempts_file`; None when there is none.

        Raises:
            StorageError: the storage is away.
        """
        try:
            return self.attempts_file.read_text(_MOST_NOTES_BYTES)
        except FileNotFoundError:
            return None

    def newest(self, found: dict[str, Any] | None) -> tuple["RemoteAttempt", Index]:
        """The last attempt that has an index, and that; attempt 0 and an empty one when there is none yet.

        Args:
            found: `attempt()`.

        Raises:
            UserError, StorageError: as RemoteAttempt.index.
        """
        last = found["attempt"] if found else 0
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
        return {n for name in names if (found := shape.fullmatch(name)) and 0 < (n := int(found[1])) <= last}

    def index(self) -> Index:
        """What there is, its segments opened; empty when nothing has been put yet.

        Raises:
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        part, index = self.newest(self.attempt())
        return part.opened(index, {})


@dataclass(frozen=True)
class RemoteAttempt:
    """What the attempt `number` of a trial puts."""

    trial: RemoteTrial
    number: int

    @property
    def files(self) -> Storage:
        """The folder of its files."""
        return self.trial.files / f"{self.number:03d}"

    @property
    def index_file(self) -> Storage:
        """Its index, as JSON."""
        return self.trial.trials / f"{self.trial.key}~{self.number:03d}.json"

    @property
    def marks(self) -> Storage:
        """Where its workers leave their marks when they have lost each other; see `naming_missing_ranks`."""
        return self.trial.files / f"absent-{self.number:03d}"

    def index(self) -> Index | None:
        """What it has put; None when it has not.

        Raises:
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        try:
            raw = self.index_file.read_bytes(MOST_INDEX_BYTES)
        except FileNotFoundError:
            return None
        return parse_index(raw, self.index_file)

    def opened(self, index: Index, have: Index) -> Index:
        """`index` with the files in its segments; segments that `have`, an earlier index, names too stay as they are.

        Raises:
            Changed: a segment is not what the index says.
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        found, left = dict(index), [name for name in segments_in(index) if have.get(name) != index[name]]
        while left:
            segment = left.pop()
            inner = parse_index(self._read(segment, found[segment]), self.files / segment)
            for name, stored in inner.items():
                if not is_inner(name, segment) or name in found or len(found) >= MOST_OPENED:
                    raise UserError(f"{self.files / segment}: is no index of a trial (it names {name}). Remove it.")
                found[name] = stored
                if name in segments_in(inner) and have.get(name) != stored:
                    left.append(name)
        return found

    def put_index(self, index: Index) -> None:
        """Makes `index` what there is.

        Raises:
            StorageError: the storage is away.
        """
        self.index_file.write_bytes(written(index))

    def check_ours(self) -> None:
        """Looks whether this is still the trial's last attempt: numbers are taken one after the other.

        A moment is left between this look and the put that follows it. An index that is put in that moment is one that
        the next attempt may go on from or not; should its workers go on from one each, the comparison of replicas
        tells. What later attempts put lies elsewhere.

        Raises:
            Overtaken: it is not.
            UserError, StorageError: as RemoteTrial.attempt.
        """
        if self.trial.attempt_file(self.number + 1).is_file():
            found = self.trial.attempt() or {}
            last = found.get("attempt", self.number + 1)
            raise Overtaken(f"attempt {self.number} has been overtaken: attempt {last} is at work")

    def remove_earlier(self) -> None:
        """Removes what earlier attempts have put; for when this one has an index.

        Raises:
            StorageError: the storage is away.
        """
        shape = re.compile(r"[0-9]{3,4}")
        folders = {int(name) for name in self.trial.files.folders() if shape.fullmatch(name)}
        for number in sorted(folders | self.trial.indexed(self.number - 1)):
            if 0 < number < self.number:
                self.trial.part(number).index_file.remove()
                self.trial.part(number).files.remove_folder()

    def get(self, name: str, stored: Stored, folder: TrialFolder) -> None:
        """Writes one file into the trial's folder, checked; `metrics/...` are taken by `get_metrics`.

        Raises:
            Changed: it is not what the index says.
            StorageError: the storage is away.
        """
        target = inside(folder.root, name)
        aside = inside(folder.root, f"{name.rpartition('/')[0]}/.{target.name}.pulled".lstrip("/"))
        try:
            found = (self.files / name).download(aside, stored.size)
        except (FileNotFoundError, TooLarge) as error:
            raise Changed(str(error)) from error
        if found != (stored.size, stored.sha256):
            aside.unlink(missing_ok=True)
            raise Changed(
                f"{self.files / name}: found {found[0]} bytes, sha256 {found[1][:12]}; the index says "
                f"{stored.size}, {stored.sha256[:12]}"
            )
        aside.replace(target)

    def _read(self, name: str, stored: Stored) -> bytes:
        """A small file's bytes, checked. A piece of the metrics may have grown since: what is beyond does not count.

        Raises:
            Changed, StorageError: as `get`.
        """
        try:
            raw = (self.files / name).read_bytes(2 * MOST_INDEX_BYTES)[: stored.size]
        except (FileNotFoundError, TooLarge) as error:
            raise Changed(str(error)) from error
        if Stored(len(raw), hashlib.sha256(raw).hexdigest()) != stored:
            raise Changed(f"{self.files / name}: is not what the index says")
        return raw

    def get_metrics(self, index: Index, folder: TrialFolder, have: Index) -> None:
        """Appends to the spool what it lacks; `have` is the index by which it was written, empty to write it anew.

        Args:
            index: with its segments opened, but for those that `have` has too.
            have: likewise, as it was given the last time.

        Raises:
            Changed, StorageError: as `get`.
        """
        spool = inside(folder.root, folder.spool.name)
        size = spool.stat().st_size if have and spool.exists() else 0
        end: int | None = None
        new: list[str] = []
        for name in metrics_in(index):
            start = piece_start(name)
            expected = min(start, size) if end is None else end
            if start != expected:
                raise Changed(f"{self.files / name}: expected a piece of the metrics at byte {expected}")
            end = start + index[name].size
            if have.get(name) != index[name]:
                new.append(name)
        if not have:
            spool.unlink(missing_ok=True)
        if not new:
            return
        folder.root.mkdir(parents=True, exist_ok=True)
        with append_to(spool) as file:
            for name in new:  # one at a time: of a long run they fill no memory
                raw = self._read(name, index[name])
                file.write(raw[max(0, file.seek(0, 2) - piece_start(name)) :])


def parse_attempt(raw: bytes, source: object, key: str) -> dict[str, Any]:
    """What `RemoteTrial.put_attempt` wrote.

    Raises:
        UserError: it is something else.
    """
    try:
        found = parse_object(raw, source, _MOST_NOTE_BYTES)
        failure = found["failure"]
        return {
            "attempt": integer(found["attempt"], 1, MOST_ATTEMPTS),
            "session": text(found["session"], 100),
            "failure": None if failure is None else text(failure, _MOST_REASON),
        }
    except (DamagedJson, ValueError, KeyError) as error:
        raise UserError(
            f"{source}: is no record of an attempt ({error!r:.300}). Remove all that begins with "
            f"{key}~ beside it to start this trial anew."
        ) from error


def last_attempts(names: Iterable[str]) -> dict[str, int]:
    """The number of the last attempt of each trial, by the trial's key, among the files of a sweep's folder `trials`;
    0 where only an older version has written of one."""
    found: dict[str, int] = {}
    for name in names:
        if named := _ATTEMPT.fullmatch(name):
            found[named[1]] = max(int(named[2] or 0), found.get(named[1], 0))
    return found


def _attempt_bytes(number: int, session: str, failure: str | None, token: str) -> bytes:
    found = {"attempt": number, "session": session, "failure": failure and failure[:_MOST_REASON], "token": token}
    return json.dumps(found).encode()


def key_of(name: str) -> str:
    """The key of the trial that a file directly in the sweep's folder is of."""
    return name.partition("~")[0]
