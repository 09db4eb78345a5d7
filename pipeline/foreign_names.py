"""The one place where a file name that somebody else wrote is joined to a folder of ours."""

import os
import stat
from pathlib import Path

from pipeline.errors import UserError

_LONGEST_PART = 200  # bytes: file systems take 255, and what is written aside has a longer name
_DEEPEST = 16


class ForeignName(UserError):
    """The name could lead out of its folder, or cannot be a file's."""


def checked_name(name: object) -> str:
    """`name` where it is a relative path of plain parts, as `metrics/000.jsonl`.

    Refused: absolute paths, `.` and `..`, empty parts, backslashes, drive letters, control characters, names that are
    no UTF-8, too long or too deep.

    Raises:
        ForeignName: says why.
    """
    if not isinstance(name, str) or not name:
        raise ForeignName(f"file name {name!r:.80}: expected text")
    shown = repr(name)[:80]
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ForeignName(f"file name {shown}: leads out of its folder; expected a relative path without `..`")
    if "\\" in name or ":" in parts[0] or not name.isprintable():
        raise ForeignName(f"file name {shown}: expected no backslash, drive or control character")
    try:
        longest = max(len(part.encode("utf-8")) for part in parts)
    except UnicodeEncodeError:
        raise ForeignName(f"file name {shown}: is not UTF-8") from None
    if longest > _LONGEST_PART or len(parts) > _DEEPEST:
        raise ForeignName(f"file name {shown}: is too long, or has too many folders in it")
    return name


def inside(folder: Path, name: object) -> Path:
    """`folder`/`name`, checked as `checked_name` does; nothing on the way below `folder` may be a link.

    The folder itself is the caller's own, and may be one.

    Raises:
        ForeignName: the name is refused, or there is a link, or a file where a folder must be.
    """
    path = folder
    parts = checked_name(name).split("/")
    for place, part in enumerate(parts):
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            raise ForeignName(f"{path}: a file stands where a folder is expected") from None
        if stat.S_ISLNK(mode):
            raise ForeignName(f"{path}: is a link, which is not followed. Remove it.")
        wanted = stat.S_ISREG if place == len(parts) - 1 else stat.S_ISDIR
        if not wanted(mode):
            raise ForeignName(f"{path}: is not a {'file' if place == len(parts) - 1 else 'folder'}. Remove it.")
    return path
