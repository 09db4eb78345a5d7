"""A folder that every machine reaches: shared, or in an object store such as S3; what pyarrow's filesystems support.

Files appear whole or not at all: an object store's own put sees to that, elsewhere they are written aside and renamed.
"""

import contextlib
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.files import create_alone
from pipeline.foreign_names import checked_name
from pipeline.secrecy import mask

PATIENCE_S = 60.0  # less than the other workers wait for one in a collective
MOST_READ_BYTES = 64 * 2**20
_CHUNK = 2**22
_READ_TRIES = 20
_OBJECT_STORES = ("s3", "gcs", "abfs")
Result = TypeVar("Result")


class StorageError(OSError):
    """The storage could not be reached, or refused. The message names it, without secrets."""


class TooLarge(UserError):
    """A file in the storage has more bytes than such a file may have."""


@dataclass(frozen=True)
class Version:
    """By which a file is known to have changed: bytes, and Unix time in nanoseconds, of which S3 keeps the seconds."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Storage:
    """A folder or file. `uri` opens it from another process, and may hold secrets; `str` masks them."""

    filesystem: fs.FileSystem = field(repr=False, compare=False)
    path: str
    uri: str = field(repr=False)

    def __str__(self) -> str:
        return mask(urlunsplit(urlsplit(self.uri)._replace(query="")), self.uri)

    def __truediv__(self, name: str) -> "Storage":
        """The file or folder `name` in this folder.

        Raises:
            ForeignName: it could lead out of the folder; see `checked_name`.
        """
        checked_name(name)
        parts = urlsplit(self.uri)
        uri = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
        return Storage(self.filesystem, f"{self.path.rstrip('/')}/{name}", uri)

    def beside(self, name: str) -> "Storage":
        """The file or folder `name` in the folder that this one is in."""
        parts = urlsplit(self.uri)
        above = parts._replace(path=parts.path.rstrip("/").rpartition("/")[0])
        return Storage(self.filesystem, self.path.rpartition("/")[0], urlunsplit(above)) / name

    @property
    def public(self) -> str:
        """The whole URI, with what is secret in it masked."""
        return mask(self.uri, self.uri)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def is_file(self) -> bool:
        """Whether there is a file here.

        Raises:
            StorageError: the storage is away.
        """
        with self._errors():
            return bool(self.filesystem.get_file_info(self.path).is_file)

    def read_bytes(self, most_bytes: int = MOST_READ_BYTES) -> bytes:
        """All of a file, of which no more than `most_bytes` are taken into memory.

        From an object store pyarrow asks how long a file is, and then for so many bytes: of one that was replaced by a
        longer one in between, it returns the beginning of that. What is as long as the file is now was read whole.

        Raises:
            FileNotFoundError: there is none.
            TooLarge: it is larger.
            StorageError: the storage is away, or the file is replaced faster than it can be read.
        """
        with self._errors():
            for _ in range(_READ_TRIES):
                with self.filesystem.open_input_stream(self.path) as stream:
                    data = bytes(stream.read(most_bytes + 1))
                if len(data) > most_bytes:
                    raise TooLarge(f"{self}: has more than {most_bytes:,} bytes; expected a smaller file. Remove it.")
                if len(data) == self.filesystem.get_file_info(self.path).size:
                    return data
        raise StorageError(
            f"{self}: was replaced during each of {_READ_TRIES} reads. Try again when nothing writes it."
        )

    def read_text(self, most_bytes: int = MOST_READ_BYTES) -> str:
        """All of a file, as UTF-8; errors as `read_bytes`, and UserError where it is no UTF-8."""
        try:
            return self.read_bytes(most_bytes).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self}: is not UTF-8 text ({error.reason}). Remove it.") from None

    def write_bytes(self, data: bytes) -> None:
        """Puts a file here, whole or not at all.

        Raises:
            StorageError: the storage is away, or refuses.
        """
        with self._putting() as stream:
            stream.write(data)

    def upload(self, source: Path) -> tuple[int, str]:
        """Puts a copy of `source` here, whole or not at all; returns the bytes and the sha256 of what was put.

        Raises:
            FileNotFoundError: there is no `source`.
            StorageError: the storage is away, or refuses.
        """
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as file, self._putting() as stream:
            while chunk := file.read(_CHUNK):
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def download(self, target: Path, most_bytes: int) -> tuple[int, str]:
        """Writes this file to `target`, whole or not at all; returns its bytes and sha256.

        Raises:
            FileNotFoundError: there is no such file.
            TooLarge: it has more than `most_bytes`.
            StorageError: the storage is away.
        """
        digest, size = hashlib.sha256(), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            with (
                create_alone(aside) as file,
                self._errors(),
                self.filesystem.open_input_stream(self.path) as stream,
            ):
                while chunk := stream.read(_CHUNK):
                    size += len(chunk)
                    if size > most_bytes:
                        raise TooLarge(f"{self}: has more than the expected {most_bytes:,} bytes")
                    file.write(chunk)
                    digest.update(chunk)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        return size, digest.hexdigest()

    def sha256(self) -> str:
        """Of this file; errors as `read_bytes`."""
        digest = hashlib.sha256()
        with self._errors(), self.filesystem.open_input_stream(self.path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def files(self) -> dict[str, Version]:
        """The files directly in this folder, by name; none when there is no such folder.

        Raises:
            StorageError: the storage is away.
        """
        with self._errors():
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name: Version(info.size, info.mtime_ns or 0) for info in infos if info.is_file}

    def folders(self) -> list[str]:
        """The names of the folders directly in this one; none when there is no such folder.

        Raises:
            StorageError: the storage is away.
        """
        with self._errors():
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [info.base_name for info in infos if info.type == fs.FileType.Directory]

    def remove(self) -> None:
        """Removes this file, if it is there.

        Raises:
            StorageError: the storage is away, or refuses.
        """
        with contextlib.suppress(FileNotFoundError), self._errors():
            self.filesystem.delete_file(self.path)

    def remove_folder(self) -> None:
        """Removes this folder and all that is in it, if it is there.

        Raises:
            StorageError: the storage is away, or refuses.
        """
        with contextlib.suppress(FileNotFoundError), self._errors():
            self.filesystem.delete_dir(self.path)

    @contextlib.contextmanager
    def _putting(self) -> Iterator[Any]:
        whole = self.filesystem.type_name in _OBJECT_STORES
        folder, _, name = self.path.rpartition("/")
        place = self.path if whole else f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        with self._errors():
            if not whole:
                self.filesystem.create_dir(folder, recursive=True)
            try:
                with self.filesystem.open_output_stream(place) as stream:
                    yield stream
                if not whole:
                    self.filesystem.move(place, self.path)
            except BaseException:
                if not whole:  # the room is needed
                    with contextlib.suppress(OSError):
                        self.filesystem.delete_file(place)
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self}: {in_a_line(error, self.uri)}") from None
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{self}: {in_a_line(error, self.uri)}") from None


Place = Path | Storage
"""A folder or file here, or in a storage."""


def location(place: Place) -> str:
    """What another process finds the place by: an absolute path, or a URI with whatever secrets it needs."""
    return place.uri if isinstance(place, Storage) else str(place.resolve())


def parquet_source(place: Place) -> dict[str, Any]:
    """How pyarrow.parquet.ParquetFile opens the file; from a storage it reads neighbouring bytes in one request."""
    if isinstance(place, Path):
        return {"source": place}
    return {"source": place.path, "filesystem": place.filesystem, "pre_buffer": True}


def patiently(call: Callable[[], Result], limit_s: float = PATIENCE_S) -> Result:
    """The call's value, with the call made again while the storage is away, but no longer than `limit_s`.

    Raises:
        StorageError: the storage was away all the time; says how long.
    """
    began = time.monotonic()
    pause = 0.5
    while True:
        try:
            return call()
        except StorageError as error:
            waited = time.monotonic() - began
            if waited + pause > limit_s:
                raise StorageError(f"storage unreachable for {waited:.0f} s: {error}") from error
            time.sleep(pause)
            pause = min(5.0, 2 * pause)


def in_a_line(error: BaseException, uri: str) -> str:
    """What an error says, shortened, without the secrets of `uri`."""
    line = mask(" ".join(str(error).split()), uri)
    return line if len(line) <= 300 else f"{line[:300]}…"
