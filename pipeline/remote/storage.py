"""A folder that every machine reaches: shared, or in an object store such as S3; whatever pyarrow's filesystems speak.

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
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.settings.wrong_settings import did_you_mean
from pipeline.tracking.secrecy import mask

PATIENCE_S = 60.0  # less than the other workers wait for one in a collective
_PROBE_S = 10.0
_CHUNK = 2**22
_OBJECT_STORES = ("s3", "gcs", "abfs")
_S3_OPTIONS = ("region", "scheme", "endpoint_override", "allow_bucket_creation")
_ATTEMPTS = 3  # of a request to S3, within a few seconds; whoever can wait longer tries again
_CONNECT_S = 3.0
Result = TypeVar("Result")


class StorageError(OSError):
    """The storage could not be reached, or refused. The message names it, without secrets."""


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
        parts = urlsplit(self.uri)
        uri = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
        return Storage(self.filesystem, f"{self.path.rstrip('/')}/{name}", uri)

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

    def read_bytes(self) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the storage is away.
        """
        with self._errors(), self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of a file, as text; errors as `read_bytes`."""
        return self.read_bytes().decode(encoding)

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

    def download(self, target: Path) -> tuple[int, str]:
        """Writes this file to `target`, whole or not at all; returns its bytes and sha256.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: the storage is away.
        """
        digest, size = hashlib.sha256(), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            with aside.open("wb") as file, self._errors(), self.filesystem.open_input_stream(self.path) as stream:
                while chunk := stream.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
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
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name: Version(info.size, info.mtime_ns or 0) for info in found if info.is_file}

    def remove(self) -> None:
        """Removes this file, if it is there.

        Raises:
            StorageError: the storage is away, or refuses.
        """
        with contextlib.suppress(FileNotFoundError), self._errors():
            self.filesystem.delete_file(self.path)

    @contextlib.contextmanager
    def _putting(self) -> Iterator[Any]:
        whole = self.filesystem.type_name in _OBJECT_STORES
        folder, _, name = self.path.rpartition("/")
        place = self.path if whole else f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        with self._errors():
            if not whole:
                self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(place) as stream:
                yield stream
            if not whole:
                self.filesystem.move(place, self.path)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self}: {_in_a_line(error, self.uri)}") from None
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{self}: {_in_a_line(error, self.uri)}") from None


Place = Path | Storage
"""A folder or file here, or in a storage."""


def located(text: str) -> Place:
    """The place that `location` wrote down."""
    return open_storage(text) if "://" in text else Path(text)


def location(place: Place) -> str:
    """What another process finds the place by: an absolute path, or a URI with whatever secrets it needs."""
    return place.uri if isinstance(place, Storage) else str(place.resolve())


def parquet_source(place: Place) -> dict[str, Any]:
    """How pyarrow.parquet.ParquetFile opens the file; from a storage it reads neighbouring bytes in one request."""
    if isinstance(place, Path):
        return {"source": place}
    return {"source": place.path, "filesystem": place.filesystem, "pre_buffer": True}


def open_storage(uri: str) -> Storage:
    """The storage that `uri` names; nothing is asked of it yet. A path without a scheme is a folder of this machine.

    S3: s3://bucket/prefix?region=...&endpoint_override=host:port&scheme=http. Credentials are best left to the
    environment (AWS_ACCESS_KEY_ID, ...), to configuration files or to the machine's role; s3://key:secret@bucket works.

    Raises:
        UserError: it is no URI that pyarrow's filesystems know.
    """
    if "://" not in uri:
        uri = Path(uri).expanduser().resolve().as_uri()
    try:
        parts = urlsplit(uri)
        if parts.scheme == "s3":
            filesystem, path = _s3(uri)
        else:
            filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"--storage {mask(uri)}: cannot be used ({_in_a_line(error, uri)}). Expected a folder that all machines "
            "share, or a URI such as s3://bucket/prefix or gs://bucket/prefix."
        ) from None
    return Storage(filesystem, path.rstrip("/"), uri)


def checked_storage(uri: str | None) -> Storage | None:
    """`open_storage` and `check_storage`; None when none is named."""
    if uri is None:
        return None
    storage = open_storage(uri)
    check_storage(storage)
    return storage


def check_storage(storage: Storage) -> None:
    """Writes a small file, reads it and removes it.

    Raises:
        UserError: within about ten seconds: nothing answers, there is no such bucket, or access is refused.
    """
    problems: list[str] = [f"no answer within {_PROBE_S:.0f} s"]

    def probe() -> None:
        file, said = storage / f".probe-{uuid.uuid4().hex[:8]}", b"tiny-onn"
        try:
            file.write_bytes(said)
            found = file.read_bytes()
            file.remove()
            problems[:] = [] if found == said else [f"found {found!r} where {said!r} was written"]
        except OSError as error:
            problems[:] = [str(error).removeprefix(f"{file}: ")]

    thread = threading.Thread(target=probe, name="storage-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    if problems:
        raise UserError(
            f"--storage {storage.public}: cannot be used ({problems[0]}). Expected a place that can be written to: "
            "look at address, bucket and credentials (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
        )


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
                raise StorageError(f"nothing could be had from the storage for {waited:.0f} s: {error}") from error
            time.sleep(pause)
            pause = min(5.0, 2 * pause)


def _s3(uri: str) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(uri)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    for name in options:
        if name not in _S3_OPTIONS:
            raise ValueError(f"option {name!r}{did_you_mean(name, _S3_OPTIONS)}; there are: {', '.join(_S3_OPTIONS)}")
    if not parts.hostname:
        raise ValueError("it names no bucket")
    scheme, _, endpoint = options.get("endpoint_override", "").rpartition("://")
    if endpoint:
        options |= {"endpoint_override": endpoint.rstrip("/"), "region": options.get("region", "us-east-1")}
        options |= {"scheme": scheme} if scheme else {}
    if "allow_bucket_creation" in options:
        options["allow_bucket_creation"] = options["allow_bucket_creation"].lower() == "true"
    if parts.password is not None:
        options |= {"access_key": unquote(parts.username or ""), "secret_key": unquote(parts.password)}
    filesystem = fs.S3FileSystem(
        **options,
        connect_timeout=_CONNECT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        allow_delayed_open=True,  # one request for a small file instead of three
    )
    bucket = parts.netloc.rpartition("@")[2]
    return filesystem, f"{bucket}/{unquote(parts.path).strip('/')}"


def _in_a_line(error: BaseException, uri: str) -> str:
    line = mask(" ".join(str(error).split()), uri)
    return line if len(line) <= 300 else f"{line[:300]}…"
