"""A sweep in a storage, seen from its driver: what the workers put there comes into the trials' folders here, and what
the driver must remember goes there. With it a sweep goes on from another machine, and an empty folder."""

import contextlib
import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.foreign_json import parse_object
from pipeline.layout import TrialFolder
from pipeline.records.attempts import Attempt, last_attempt, noted_attempts, write_attempt
from pipeline.records.delivery import OLDER_FILE
from pipeline.records.sweep_record import RECORD, read_record
from pipeline.remote.attempt import Changed, RemoteAttempt
from pipeline.remote.attempt_record import key_of, last_attempts
from pipeline.remote.index import Index, checkpoints_in, metrics_in, segments_in
from pipeline.remote.recalled import MOST_CLAIM_BYTES, MOST_TRACKED_BYTES, SUMMARY, parse_claim, parse_tracked
from pipeline.remote.trial import RemoteTrial
from pipeline.storage.lease import Lease
from pipeline.storage.storage import PATIENCE_S, Storage, StorageError, Version, patiently
from pipeline.tracking.mlflow_run import expect_run

_EVERY_S = 3.0
_REMEMBER_EVERY_S = 10.0
_AT_ONCE = 16
_CLAIM, _LEASE, _TRACKED = RECORD, "lease.json", "tracked.json"


class RemoteSweep:
    """Between entering and leaving, this process alone drives the sweep in `storage`.

    On entering, what there is comes into `folder`, so that all that is finished or begun is seen there.

    Args:
        storage: the sweep's folder in the storage.
        folder: the sweep's folder here.
        trials: the trials' folders here, by key.

    Raises:
        UserError: on entering: another process drives it, what is there is damaged, or the storage is away.
    """

    def __init__(self, storage: Storage, folder: Path, trials: dict[str, TrialFolder]) -> None:
        self.storage, self._folder = storage, folder
        self._trials = {key: (RemoteTrial(storage / "trials", key), place) for key, place in trials.items()}
        self._lease = Lease(storage / _LEASE)
        self._seen: dict[str, Version] = {}
        self._have: dict[str, Index] = {}
        self._session: str | None = None
        self._remembered: bytes = b""
        self._pruned: set[str] = set()  # whose decision to end early is in the storage
        self._broken: str | None = None
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name="remote-sweep", daemon=True)
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="remote-sweep")

    def __enter__(self) -> Self:
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._lease)
                self._recall()
                self._fetch()
                stack.pop_all()
        except StorageError as error:
            raise UserError(
                f"--storage: {error}. Nothing was started. Give the command again when the storage is reachable."
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()
        if self.taken_by is None:
            with contextlib.suppress(StorageError):  # the tracker is asked what it has when the sweep goes on
                patiently(self.remember, 10.0)
        self._lease.__exit__(None, None, None)

    @property
    def taken_by(self) -> str | None:
        """Why this process drives the sweep no longer, as the end of a sentence about the sweep: another does, because
        this one was silent for too long, or a thread that keeps it safe has ended."""
        return self._lease.lost or self._broken

    def begin(self, session: str) -> None:
        """The folder has been claimed, for the command `session`; from here on it is kept up to date.

        Before any run is opened, the storage knows by what key it will be found, however soon this process is gone.
        """
        self._session = session
        (self.storage / _CLAIM).write_bytes((self._folder / _CLAIM).read_bytes())
        for memory in (self._folder / SUMMARY, *(place.delivery for _, place in self._trials.values())):
            expect_run(memory)
        self.remember()
        self._thread.start()

    def catch_up(self, limit_s: float = PATIENCE_S) -> str | None:
        """Fetches all there is now; returns why it could not, after `limit_s`."""
        try:
            patiently(self._fetch_all, limit_s)
        except (StorageError, UserError) as error:
            return str(error)
        return None

    def remember(self) -> None:
        """Puts what a driver needs to go on in the same MLflow runs, and with what it had decided.

        Raises:
            StorageError: the storage is away.
        """
        paths = [self._folder / SUMMARY, *self._memories()]
        texts = {
            path.relative_to(self._folder).as_posix(): path.read_text(encoding="utf-8")
            for path in paths
            if path.exists()
        }
        now = json.dumps(texts).encode()
        if now != self._remembered:
            (self.storage / _TRACKED).write_bytes(now)
            self._remembered = now

    def _recall(self) -> None:
        """What an earlier driver put, where this folder has nothing of its own."""
        with contextlib.suppress(FileNotFoundError):
            file = self.storage / _CLAIM
            self._same_claim(parse_claim(file.read_text(MOST_CLAIM_BYTES), file))
        with contextlib.suppress(FileNotFoundError):
            file = self.storage / _TRACKED
            places = [place for _, place in self._trials.values()]
            known = parse_tracked(file.read_bytes(MOST_TRACKED_BYTES), file, self._folder, places)
            for path, content in known.items():
                if not path.exists():
                    write_whole(path, content)

    def _same_claim(self, text: str) -> None:
        here = self._folder / _CLAIM
        if not here.exists():
            write_whole(here, text)
            return
        mine, there = read_record(here.parent).get("id"), parse_object(text, self.storage / _CLAIM).get("id")
        if mine and mine == there:
            write_whole(here, text)  # what has been noted since, on another machine
        elif mine != there or here.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{self._folder}: holds another sweep than {self.storage}. Name another --output, which may be empty, "
                "or remove that folder."
            )

    def _memories(self) -> Iterable[Path]:
        for _, place in self._trials.values():
            yield from (place.delivery, place.delivery.with_name(OLDER_FILE), place.prune)

    def _work(self) -> None:
        remembered = time.monotonic()
        try:
            while not self._left.wait(_EVERY_S) and self.taken_by is None:
                with contextlib.suppress(OSError, UserError):  # `catch_up` says so in the end
                    self._fetch()
                    self._put_prunes()
                    if time.monotonic() - remembered > _REMEMBER_EVERY_S:
                        self.remember()
                        remembered = time.monotonic()
        except Exception as error:  # nobody would see what the trials do
            why = f"{type(error).__name__}: {error!s:.300}"
            self._broken = f"cannot be followed any longer: reading {self.storage} failed ({why})."

    def _put_prunes(self) -> None:
        for key, (remote, place) in self._trials.items():
            if key not in self._pruned and place.prune.exists():
                remote.prune_file.write_bytes(place.prune.read_bytes())
                self._pruned.add(key)

    def _fetch_all(self) -> None:
        with self._lock:
            self._seen.clear()
        self._fetch()

    def _fetch(self) -> None:
        """Takes in what has changed: by one listing, and two requests for each trial that has something new."""
        with self._lock:
            now = (self.storage / "trials").files()
            # Where times are whole seconds, what was put twice within one looks the same: look again at the newest.
            recent = max((version.mtime_ns for version in now.values()), default=0) - 2 * 10**9
            new = {key_of(name) for name, v in now.items() if self._seen.get(name) != v or v.mtime_ns >= recent}
            keys = [key for key in self._trials if key in new]
            last = last_attempts(now)
            wholes = self._pool.map(lambda key: self._take(key, last.get(key, 0)), keys)
            taken = {key for key, whole in zip(keys, wholes, strict=True) if whole}
            self._seen |= {name: version for name, version in now.items() if key_of(name) in taken}

    def _take(self, key: str, last: int) -> bool:
        remote, place = self._trials[key]
        last_attempt_there = remote.attempt(last)
        part, index = remote.newest(last_attempt_there)
        try:
            take_in(part, place, index, self._have.get(key, {}))
        except Changed:
            return False  # it is being written: the next look finds it whole
        self._have[key] = index
        if last_attempt_there is not None:
            self._take_attempt(remote, place, last_attempt_there)
        return True

    def _take_attempt(self, remote: RemoteTrial, place: TrialFolder, attempt: dict[str, Any]) -> None:
        if self._session is not None and attempt["session"] != self._session:
            return
        before = last_attempt(place)
        if self._session is not None and before is not None and before.session != self._session:
            before = None  # an earlier command's, whose number the storage may no longer have
        noted = max((each["attempt"] for each in noted_attempts(place) if type(each.get("attempt")) is int), default=0)
        if noted < attempt["attempt"]:  # on another machine
            with contextlib.suppress(FileNotFoundError):
                write_whole(place.attempts, remote.attempts_file.read_text())
        if before is None or before.number <= attempt["attempt"]:
            write_attempt(place, Attempt(attempt["attempt"], attempt["session"]))
            if attempt["failure"] is not None and not place.failure.exists():
                write_whole(place.failure, attempt["failure"])


def take_in(part: RemoteAttempt, place: TrialFolder, index: Index, have: Index) -> None:
    """Brings into `place` what a driver looks at: metrics, prototypes, predictions, and last that it has ended.

    Raises:
        Changed: not all of it is what the index says.
        StorageError: the storage is away.
    """
    if index == have:
        return
    whole = part.opened(index, have)
    part.get_metrics(whole, place, have)
    skip = {*metrics_in(whole), *segments_in(whole)}
    skip |= {name for names in checkpoints_in(whole).values() for name in names}
    wanted = [name for name in whole if name not in skip and whole[name] != have.get(name)]
    for name in sorted(wanted, key=lambda name: name in (place.result.name, place.pruned.name)):
        part.get(name, whole[name], place)
