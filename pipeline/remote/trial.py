"""One trial in a storage: what each of its attempts has put there, and which of them counts.

An attempt has files of its own and an index of them, which is put last and by which alone they are found. What the
index names is one state of the trial, whole: a checkpoint, and at least the metrics up to it. The trial is what the
index of its last attempt says, or that of the one before while the last has none. So a worker that has been overtaken
and does not know it can spoil nothing: what it puts is not refused, but nobody looks there any more.

Metrics lie in pieces of whole lines, `metrics/<offset>.jsonl`, so that what is put after a log stays small however long
the run; the last piece grows, and the index says how much of it counts. Each file's sha256 is in the index and checked
on the way back.

In the sweep's folder `trials`, for the trial KEY:

    KEY~attempt.json    what the driver of the trial says of its last attempt
    KEY~003.json        the index of attempt 3
    KEY~prune.json      the word that the trial is to end early
    KEY/003/...         the files of attempt 3
    KEY/attempts.jsonl, KEY/evidence/..., KEY/absent-003/rank-0
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.remote.index import Index, Stored, metrics_in, piece_start
from pipeline.storage.storage import Storage


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

    @property
    def attempt_file(self) -> Storage:
        """The last attempt, as JSON: {"attempt": int, "session": str, "failure": str or null}."""
        return self.trials / f"{self.key}~attempt.json"

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

    def attempt(self) -> dict[str, Any] | None:
        """What the trial's driver last put; None when it has not.

        Raises:
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        try:
            found = json.loads(self.attempt_file.read_bytes())
            return {"attempt": int(found["attempt"]), "session": found["session"], "failure": found["failure"]}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.attempt_file}: is no record of an attempt ({error!r}). Remove all that begins with "
                f"{self.key}~ beside it to start this trial anew."
            ) from error

    def put_attempt(self, number: int, session: str, failure: str | None = None) -> None:
        """Says that an attempt has begun: from now on, no earlier one puts an index. Or why it has failed."""
        self.attempt_file.write_bytes(json.dumps({"attempt": number, "session": session, "failure": failure}).encode())

    def noted(self) -> str | None:
        """What is in `attempts_file`; None when there is none.

        Raises:
            StorageError: the storage is away.
        """
        try:
            return self.attempts_file.read_text()
        except FileNotFoundError:
            return None

    def newest(self, said: dict[str, Any] | None) -> tuple["RemoteAttempt", Index]:
        """The last attempt that has an index, and that; attempt 0 and an empty one when there is none yet.

        Args:
            said: `attempt()`.

        Raises:
            UserError, StorageError: as RemoteAttempt.index.
        """
        for number in range(said["attempt"] if said else 0, 0, -1):
            index = self.part(number).index()
            if index is not None:
                return self.part(number), index
        return self.part(0), {}

    def index(self) -> Index:
        """What there is; empty when nothing has been put yet.

        Raises:
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        return self.newest(self.attempt())[1]


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
        """Where its workers leave their marks when they have lost each other; see `naming_the_absent`."""
        return self.trial.files / f"absent-{self.number:03d}"

    def index(self) -> Index | None:
        """What it has put; None when it has not.

        Raises:
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        try:
            found = json.loads(self.index_file.read_bytes())
            return {name: Stored(int(size), str(sha256)) for name, (size, sha256) in found.items()}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self.index_file}: is no index of a trial ({error}). Remove it to start anew.") from error

    def put_index(self, index: Index) -> None:
        """Makes `index` what there is.

        Raises:
            StorageError: the storage is away.
        """
        self.index_file.write_bytes(json.dumps({name: (s.size, s.sha256) for name, s in index.items()}).encode())

    def check_ours(self) -> None:
        """Looks whether this is still the trial's last attempt.

        pyarrow's filesystems know no put on a condition, so a moment is left between this look and the put that
        follows it. An index that is put in that moment is one that the next attempt may go on from or not; should its
        workers go on from one each, the comparison of replicas tells. What later attempts put lies elsewhere.

        Raises:
            Overtaken: it is not.
            UserError, StorageError: as RemoteTrial.attempt.
        """
        said = self.trial.attempt()
        if said is not None and said["attempt"] != self.number:
            raise Overtaken(f"attempt {self.number} has been overtaken: attempt {said['attempt']} is at work")

    def remove_earlier(self) -> None:
        """Removes what earlier attempts have put; for when this one has an index.

        Raises:
            StorageError: the storage is away.
        """
        for number in range(1, self.number):
            self.trial.part(number).index_file.remove()
            self.trial.part(number).files.remove_folder()

    def get(self, name: str, stored: Stored, folder: TrialFolder) -> None:
        """Writes one file into the trial's folder, checked; `metrics/...` are taken by `get_metrics`.

        Raises:
            Changed: it is not what the index says.
            StorageError: the storage is away.
        """
        target = folder.root / name
        aside = target.with_name(f".{target.name}.pulled")
        try:
            found = (self.files / name).download(aside)
        except FileNotFoundError as error:
            raise Changed(str(error)) from error
        if found != (stored.size, stored.sha256):
            aside.unlink(missing_ok=True)
            raise Changed(
                f"{self.files / name}: found {found[0]} bytes, sha256 {found[1][:12]}; the index says "
                f"{stored.size}, {stored.sha256[:12]}"
            )
        aside.replace(target)

    def get_metrics(self, index: Index, folder: TrialFolder, have: Index) -> None:
        """Appends to the spool what it lacks; `have` is the index by which it was written, empty to write it anew.

        Raises:
            Changed, StorageError: as `get`.
        """
        pieces = {piece_start(name): (name, index[name]) for name in sorted(metrics_in(index))}
        offset = 0
        new: list[tuple[int, bytes]] = []
        for start, (name, stored) in pieces.items():
            if start != offset:
                raise Changed(f"{self.files / name}: expected a piece of the metrics at byte {offset}")
            offset += stored.size
            if have.get(name) == stored:
                continue
            try:
                raw = (self.files / name).read_bytes()[: stored.size]
            except FileNotFoundError as error:
                raise Changed(str(error)) from error
            if Stored(len(raw), hashlib.sha256(raw).hexdigest()) != stored:
                raise Changed(f"{self.files / name}: is not what the index says")
            new.append((start, raw))
        if not have:
            folder.spool.unlink(missing_ok=True)
        if not new:
            return
        folder.root.mkdir(parents=True, exist_ok=True)
        with folder.spool.open("ab") as file:
            for start, raw in new:
                file.write(raw[max(0, file.tell() - start) :])


def key_of(name: str) -> str:
    """The key of the trial that a file directly in the sweep's folder is of."""
    return name.partition("~")[0]
