"""The files of a folder that may hold tasks."""

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.data.arc_json import RefusedTask, printable
from pipeline.data.sources.found import File, is_named_as_data
from pipeline.data.sources.packed import LARGEST_FILE, files_in_zip, is_zip


def files_below(root: Path, refused: list[str]) -> Iterator[File]:
    """In order; zip archives are looked into, hidden files and folders left out."""
    if not root.is_dir():
        yield from _opened(root, (root.name,), refused)
        return
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to where we have been
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(filter(is_named_as_data, names)):
            path = Path(folder, name)
            yield from _opened(path, path.relative_to(root).parts, refused)


def _raise(error: OSError) -> None:
    raise error


def _opened(path: Path, parts: tuple[str, ...], refused: list[str]) -> Iterator[File]:
    name = printable(path)
    if name != str(path):
        refused.append(f"{name}: the file's name, which is the task's id, is not UTF-8")
        return
    try:
        packed = _is_regular(path) and is_zip(_head(path))
        yield from files_in_zip(path, name, parts) if packed else [File(name, parts, partial(_read, path))]
    except (OSError, RefusedTask) as error:
        refused.append(str(error) if isinstance(error, RefusedTask) else f"{name}: cannot be read ({error})")


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.stat().st_mode)  # a pipe would be waited for


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _read(path: Path) -> bytes:
    try:
        if not _is_regular(path):
            raise RefusedTask(f"{path}: is no file; expected ARC tasks")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise RefusedTask(f"{path}: cannot be read ({error})") from error
    if len(data) > LARGEST_FILE:
        raise RefusedTask(f"{path}: has more than {LARGEST_FILE} bytes; expected ARC tasks")
    return data
