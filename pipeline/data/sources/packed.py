"""gzip and zip, read within bounds: what is packed small may be large, lie about its size, or name outer folders."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.data.arc_json import RefusedTask
from pipeline.data.sources.found import File, is_named_as_data

LARGEST_FILE = 64_000_000  # bytes, unpacked: some ten thousand tasks; a file that is larger is something else
_LARGEST_ARCHIVE = 512_000_000  # bytes of all its files, unpacked
_MOST_FILES = 100_000


def is_gzip(head: bytes) -> bool:
    """Whether bytes begin as gzip's do."""
    return head[:2] == b"\x1f\x8b"


def is_zip(head: bytes) -> bool:
    """Whether bytes begin as a zip archive's do."""
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def gunzip(data: bytes, place: str) -> bytes:
    """What was packed.

    Raises:
        RefusedTask: it is damaged, or larger than LARGEST_FILE.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RefusedTask(f"{place}: cannot be unpacked ({error}); expected gzip") from error
    if len(unpacked) > LARGEST_FILE:
        raise RefusedTask(f"{place}: has more than {LARGEST_FILE} bytes when unpacked; expected ARC tasks")
    return unpacked


def files_in_zip(source: Path | bytes, place: str, parts: tuple[str, ...]) -> Iterator[File]:
    """The files of an archive that may hold tasks; nothing is written to the disk.

    Raises:
        RefusedTask: it is damaged or encrypted, a name in it leads out of it, or it is larger than the limits.
    """
    try:
        archive = zipfile.ZipFile(source if isinstance(source, Path) else io.BytesIO(source))
        members = archive.infolist()
    except Exception as error:  # zipfile raises whatever damaged bytes lead it to
        raise RefusedTask(f"{place}: cannot be read ({_one_line(error)}); expected a zip archive") from error
    if len(members) > _MOST_FILES:
        raise RefusedTask(f"{place}: holds {len(members)} files; at most {_MOST_FILES} are read")
    if sum(member.file_size for member in members) > _LARGEST_ARCHIVE:
        raise RefusedTask(f"{place}: has more than {_LARGEST_ARCHIVE} bytes when unpacked")
    for member in members:
        inner = PurePosixPath(member.filename.replace("\\", "/"))
        if inner.is_absolute() or ".." in inner.parts or (inner.parts and inner.parts[0].endswith(":")):
            raise RefusedTask(f"{place}: names {member.filename!r}, which leads out of the archive")
    for member in members:
        inner = PurePosixPath(member.filename.replace("\\", "/"))
        hidden = any(part.startswith((".", "__MACOSX")) for part in inner.parts)
        if member.filename.endswith("/") or hidden or not is_named_as_data(inner.name):
            continue
        where = f"{place}/{inner}"
        yield File(where, (*parts, *inner.parts), lambda member=member, where=where: _read(archive, member, where))  # type: ignore[misc]


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> bytes:
    try:
        with archive.open(member) as file:
            data = file.read(LARGEST_FILE + 1)  # whatever size it says it has
    except Exception as error:
        raise RefusedTask(f"{where}: cannot be read ({_one_line(error)})") from error
    if len(data) > LARGEST_FILE:
        raise RefusedTask(f"{where}: has more than {LARGEST_FILE} bytes; expected ARC tasks")
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
