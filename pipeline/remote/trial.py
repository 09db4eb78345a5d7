"""One trial in a storage: its files, and an index of them that is put last and by which alone they are found.

What the index names is one state of the trial, whole: a checkpoint, and at least the metrics up to it. Metrics lie in
pieces of whole lines, `metrics/<offset>.jsonl`, so that what is put after a log stays small however long the run; the
last piece grows, and the index says how much of it counts. Each file's sha256 is in the index and checked on the way
back. Beside the index lies what the driver of the trial says of its last attempt.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.remote.storage import Storage
from pipeline.training.checkpoint import checkpoints, newest_whole

PIECE_BYTES = 2**16  # a piece of the metrics that is as long as this grows no further
_METRICS, _CHECKPOINTS = "metrics/", "checkpoints/"
_LAST = ("result.json", "pruned.json")


@dataclass(frozen=True)
class Stored:
    """How many bytes of a file count, and their sha256."""

    size: int
    sha256: str


Index = dict[str, Stored]
"""By the file's path in the trial's folder."""


class Changed(Exception):
    """A file is not what the index says: it has been replaced meanwhile, or it is damaged."""


@dataclass(frozen=True)
class RemoteTrial:
    """The trial `key` among the trials of one sweep, which lie in `trials`."""

    trials: Storage
    key: str

    @property
    def files(self) -> Storage:
        """The folder of its files."""
        return self.trials / self.key

    @property
    def index_file(self) -> Storage:
        """The index, as JSON."""
        return self.trials / f"{self.key}.json"

    @property
    def attempt_file(self) -> Storage:
        """The last attempt, as JSON: {"attempt": int, "session": str, "failure": str or null}."""
        return self.trials / f"{self.key}~attempt.json"

    @property
    def prune_file(self) -> Storage:
        """Where it is, the trial is to end early; its workers obey at a logged step soon after."""
        return self.trials / f"{self.key}~prune.json"

    def index(self) -> Index:
        """What there is; empty when nothing has been put yet.

        Raises:
            UserError: it is damaged.
            StorageError: the storage is away.
        """
        try:
            found = json.loads(self.index_file.read_bytes())
            return {name: Stored(int(size), str(sha256)) for name, (size, sha256) in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self.index_file}: is no index of a trial ({error}). Remove it to start anew.") from error

    def put_index(self, index: Index) -> None:
        """Makes `index` what there is.

        Raises:
            StorageError: the storage is away.
        """
        self.index_file.write_bytes(json.dumps({name: (s.size, s.sha256) for name, s in index.items()}).encode())

    def attempt(self) -> dict[str, Any] | None:
        """What the trial's driver last put; None when it has not."""
        try:
            found = json.loads(self.attempt_file.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put_attempt(self, number: int, session: str, failure: str | None) -> None:
        """Says that an attempt has begun, or why it has failed."""
        self.attempt_file.write_bytes(json.dumps({"attempt": number, "session": session, "failure": failure}).encode())

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
        pieces = {int(name[len(_METRICS) :].split(".")[0]): (name, index[name]) for name in sorted(metrics_in(index))}
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


def metrics_in(index: Mapping[str, Any]) -> list[str]:
    """The names of the pieces of the metrics."""
    return [name for name in index if name.startswith(_METRICS)]


def checkpoints_in(index: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each checkpoint, oldest first, the names of its files."""
    found: dict[str, list[str]] = {}
    for name in index:
        if name.startswith(_CHECKPOINTS):
            found.setdefault(name.split("/")[1], []).append(name)
    return dict(sorted(found.items()))


def has_ended(index: Mapping[str, Any]) -> bool:
    """Whether there is nothing left to run: the trial is finished, or pruned."""
    return any(name in index for name in _LAST)


def restore(remote: RemoteTrial, folder: TrialFolder, digest: str, everything: bool) -> Index:
    """Makes `folder` anew with what a worker goes on from: metrics, distributions, checkpoints down to a whole one.

    A checkpoint that is damaged is taken as it is: `load_newest` tells of it and passes it over.

    Args:
        everything: all that there is: for the worker that goes on writing it.

    Raises:
        UserError: the metrics, or another file that no older one stands in for, are damaged.
        StorageError: the storage is away.
    """
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.root.mkdir(parents=True)
    index = remote.index()
    try:
        remote.get_metrics(index, folder, {})
        steps = {name for names in checkpoints_in(index).values() for name in names}
        for name in set(index) - steps - set(metrics_in(index)) if everything else ():
            remote.get(name, index[name], folder)
    except Changed as error:
        raise UserError(f"{error}: it is damaged. Remove {remote.index_file} to start this trial anew.") from error
    whole = False
    for _, names in reversed(checkpoints_in(index).items()):
        if not whole or everything:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    (remote.files / name).download(folder.root / name)
            whole = whole or newest_whole(folder.checkpoints, digest) is not None
    return index


def files_to_put(folder: TrialFolder) -> list[Path]:
    """What of a worker's folder goes into the storage beside the metrics. What is half written begins with a dot."""
    elsewhere = {folder.spool, folder.prune, folder.evidence, folder.checkpoints}
    places = [path for path in folder.root.glob("[!.]*") if path not in elsewhere]
    places += checkpoints(folder.checkpoints)
    found = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    return [
        path
        for path in found
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder.root).parts)
    ]


def cut_in_pieces(raw: bytes, start: int) -> dict[int, bytes]:
    """The metrics from byte `start` of the spool on, in pieces of whole lines; a last half line is left out."""
    pieces = {}
    raw = raw[: raw.rfind(b"\n") + 1]
    while raw:
        end = raw.find(b"\n", PIECE_BYTES - 1) + 1 or len(raw)
        pieces[start] = raw[:end]
        raw, start = raw[end:], start + end
    return pieces


def piece_name(start: int) -> str:
    """The name of the piece that begins at byte `start` of the spool."""
    return f"{_METRICS}{start:015d}.jsonl"
