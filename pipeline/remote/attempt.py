"""One attempt of a trial in a storage: the files that it puts there, and their index; see `pipeline.remote.trial`."""

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.files import append_to
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
from pipeline.storage.storage import Storage, TooLarge

if TYPE_CHECKING:
    from pipeline.remote.trial import RemoteTrial

MOST_OPENED = 10_000_000  # files that an index and its segments name


class Changed(Exception):
    """A file is not what the index says: it has been replaced meanwhile, or it is damaged."""


class Overtaken(Exception):
    """Another attempt has begun, and this one is to write no more."""


@dataclass(frozen=True)
class RemoteAttempt:
    """What the attempt `number` of a trial puts."""

    trial: "RemoteTrial"
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
        entries, left = dict(index), [name for name in segments_in(index) if have.get(name) != index[name]]
        while left:
            segment = left.pop()
            inner = parse_index(self._read(segment, entries[segment]), self.files / segment)
            for name, stored in inner.items():
                if not is_inner(name, segment) or name in entries or len(entries) >= MOST_OPENED:
                    raise UserError(
                        f"{self.files / segment}: is not the index of a trial (it names {name}). Remove it to "
                        "start this trial anew."
                    )
                entries[name] = stored
                if name in segments_in(inner) and have.get(name) != stored:
                    left.append(name)
        return entries

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
            record = self.trial.attempt() or {}
            last = record.get("attempt", self.number + 1)
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
            downloaded = (self.files / name).download(aside, stored.size)
        except (FileNotFoundError, TooLarge) as error:
            raise Changed(str(error)) from error
        if downloaded != (stored.size, stored.sha256):
            aside.unlink(missing_ok=True)
            raise Changed(
                f"{self.files / name}: found {downloaded[0]} bytes, sha256 {downloaded[1][:12]}; the index says "
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
