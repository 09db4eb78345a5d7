"""Puts a trial's files into a storage from a thread of its own, so that a slow storage holds up no training."""

import hashlib
import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.layout import TrialFolder
from pipeline.remote.attempt import RemoteAttempt
from pipeline.remote.index import (
    Index,
    Stored,
    checkpoints_in,
    is_allowed,
    metrics_in,
    next_segment,
    piece_name,
    piece_start,
    to_seal,
    written,
)
from pipeline.storage.storage import StorageError
from pipeline.training.checkpoint import checkpoints

AWAY_LIMIT_S = 300.0
PIECE_BYTES = 2**16  # a piece of the metrics that is as long as this grows no further
_MOST_WORD_BYTES = 2**16
_READ_BYTES = 2**22  # of the metrics, taken into memory together
_RETRY_S = 2.0


class Pusher:
    """Keeps what an attempt has put up to date with a worker's folder, whose only writer this process is.

    The attempt has put nothing yet: the first push puts all that is in the folder, and removes what earlier attempts
    have put. While the storage is away training goes on; what was not put goes with a later push. The request that the
    trial is to end early comes the other way, and so does that another attempt has begun.

    Args:
        limit_s: how long the storage may be away.
    """

    def __init__(self, remote: RemoteAttempt, folder: TrialFolder, limit_s: float = AWAY_LIMIT_S) -> None:
        self._remote, self._folder, self._limit_s = remote, folder, limit_s
        self._index: Index = {}
        self._alone = False  # whether nothing of earlier attempts is left
        self._put: dict[str, tuple[int, int]] = {}  # size and time of what was put, by name
        self._wanted, self._closing = threading.Event(), threading.Event()
        self._away_since: float | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="pusher", daemon=True)
        self._thread.start()

    def push(self) -> None:
        """There is something new. Returns at once.

        Raises:
            StorageError: nothing could be put for longer than the limit.
            Overtaken: another attempt has begun, and nothing has been put since that was seen.
        """
        self._check()
        self._wanted.set()

    def close(self) -> None:
        """Puts what is left, and ends.

        Raises:
            StorageError: it could not be put within the limit.
            Overtaken: as `push`.
        """
        self._closing.set()
        self._wanted.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while self._error is None:
                self._wanted.wait()
                self._wanted.clear()
                last = self._closing.is_set()
                while not self._round() and self._error is None:
                    self._closing.wait(_RETRY_S) if not last else time.sleep(_RETRY_S)
                    last = self._closing.is_set()
                if last:
                    return
        except BaseException as error:  # or training would go on, and nothing be put any more
            self._error = StorageError(f"uploads to the storage were ended by an error ({error!r})")

    def _round(self) -> bool:
        """Puts what is new; False when the storage is away."""
        try:
            push_once(self._remote, self._folder, self._index, self._put)
            if self._index and not self._alone:
                self._remote.remove_earlier()
                self._alone = True
            word = self._remote.trial.prune_file
            if not self._folder.prune.exists() and word.is_file():
                word.download(self._folder.prune, _MOST_WORD_BYTES)
        except StorageError as error:
            now = time.monotonic()
            self._away_since = self._away_since or now
            away = now - self._away_since
            if away >= self._limit_s:
                self._error = StorageError(f"no upload to the storage has succeeded for {away:.0f} s: {error}")
            return False
        except Exception as error:  # of the disk, or that this attempt is overtaken: raised in training by `push`
            self._error = error
            return False
        self._away_since = None
        return True


def push_once(remote: RemoteAttempt, folder: TrialFolder, index: Index, put: dict[str, tuple[int, int]]) -> None:
    """Puts what has changed in `folder`, and then the index; what the index no longer names is removed.

    The metrics go with or before the checkpoints that they lead up to, because the index names both.

    Args:
        index: what this attempt has put; brought up to date when the storage is.
        put: size and time of the files that were put; brought up to date too.

    Raises:
        StorageError: the storage is away. What it has is what it had.
        Overtaken: another attempt has begun. What counts is what counted.
    """
    remote.check_ours()
    sealed = put.keys() - index.keys()
    paths = files_to_put(folder, sealed)  # first: what is written meanwhile goes with the next push
    new = {**index, **_put_metrics(remote, folder, index)}
    torn: set[str] = set()
    for path in paths:
        name = path.relative_to(folder.root).as_posix()
        try:
            version = _version(path)
            if put.get(name) != version:
                new[name] = Stored(*(remote.files / name).upload(path))
                put[name] = version
        except FileNotFoundError:  # a checkpoint that was removed meanwhile
            torn.add(path.parent.name)
    gone = _gone(new, here={path.parent.name for path in paths}, torn=torn)
    for name in gone:
        del new[name]
        put.pop(name, None)
    _seal(remote, new)
    if new == index:
        return
    remote.check_ours()
    remote.put_index(new)
    index.clear()
    index.update(new)
    for name in gone:
        (remote.files / name).remove()


def _gone(index: Index, here: set[str], torn: set[str]) -> list[str]:
    """The files of checkpoints that the folder no longer has, and of those that were not put whole.

    Where none of the folder's could be put whole before it was replaced, the newest of the others stays.
    """
    steps = [step for step in checkpoints_in(index) if step not in torn]
    kept = [step for step in steps if step in here] or steps[-1:]
    return [name for step, names in checkpoints_in(index).items() if step not in kept for name in names]


def _seal(remote: RemoteAttempt, index: Index) -> None:
    """Puts what changes no more into segments, and names those in place of it."""
    while names := to_seal(index):
        raw = written({name: index[name] for name in names})
        segment = next_segment(index)
        (remote.files / segment).write_bytes(raw)
        for name in names:
            del index[name]
        index[segment] = Stored(len(raw), hashlib.sha256(raw).hexdigest())


def _put_metrics(remote: RemoteAttempt, folder: TrialFolder, index: Index) -> Index:
    if not folder.spool.exists():
        return {}
    start = piece_start(last[-1]) if (last := metrics_in(index)) else 0
    new: Index = {}
    with folder.spool.open("rb") as file:
        while True:
            file.seek(start)
            raw = file.read(_READ_BYTES)
            pieces = cut_in_pieces(raw, start)
            for begin, piece in pieces.items():
                name, stored = piece_name(begin), Stored(len(piece), hashlib.sha256(piece).hexdigest())
                if index.get(name) != stored:
                    (remote.files / name).write_bytes(piece)
                    new[name] = stored
            if len(raw) < _READ_BYTES or len(pieces) < 2:
                return new
            start = max(pieces)  # the last one was cut where the reading ended, not at its own end


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def files_to_put(folder: TrialFolder, sealed: Collection[str] = ()) -> list[Path]:
    """What of a worker's folder goes into the storage beside the metrics. What is half written begins with a dot.

    Args:
        sealed: names of files that change no more and are there already; they are not looked at again.
    """
    elsewhere = {path.name for path in (folder.spool, folder.prune, folder.evidence, folder.checkpoints)}
    paths = list(_below(folder.root, "", sealed, elsewhere))
    for checkpoint in checkpoints(folder.checkpoints):
        paths += _below(checkpoint, f"{folder.checkpoints.name}/{checkpoint.name}/", sealed)
    return paths


def _below(place: Path, before: str, sealed: Collection[str], elsewhere: Collection[str] = ()) -> Iterator[Path]:
    """The files below `place` whose names, which `before` precedes, may be put."""
    with suppress(FileNotFoundError), os.scandir(place) as entries:
        for entry in entries:
            name = before + entry.name
            if entry.name.startswith(".") or entry.name in elsewhere or name in sealed:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path), f"{name}/", sealed)
            elif is_allowed(name) and entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def cut_in_pieces(raw: bytes, start: int) -> dict[int, bytes]:
    """The metrics from byte `start` of the spool on, in pieces of whole lines; a last half line is left out."""
    pieces = {}
    raw = raw[: raw.rfind(b"\n") + 1]
    while raw:
        end = raw.find(b"\n", PIECE_BYTES - 1) + 1 or len(raw)
        pieces[start] = raw[:end]
        raw, start = raw[end:], start + end
    return pieces
