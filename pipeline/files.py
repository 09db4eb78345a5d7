"""Small JSON and text files that are whole or not there."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.foreign_json import DamagedJson, read_json_file

SECRET_MODE, SECRET_FOLDER_MODE = 0o600, 0o700  # of what may hold a password or a token


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes aside, flushes to disk and renames, so that no reader ever sees half a file, and none is lost with the
    power. The folder is flushed too.

    Args:
        mode: of a file that may hold a secret SECRET_MODE; the umask applies.
    """
    write_whole_with(path, lambda file: file.write(text.encode("utf-8")), mode)


def write_whole_with(path: Path, write: Callable[[BinaryIO], object], mode: int = 0o666) -> None:
    """As `write_whole`, of what `write` writes into the open file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with create_alone(aside, mode) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # the room is needed
        raise
    flush(path.parent)


def make_private(folder: Path) -> None:
    """Makes a folder of what may hold a secret, that no other user can look into; also of one that is there.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(SECRET_FOLDER_MODE, exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a link", str(folder))
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(SECRET_FOLDER_MODE)


def create_alone(path: Path, mode: int = 0o666) -> BinaryIO:
    """Creates a file to write to. What is there, left by a killed process or planted, is removed, not written through.

    Raises:
        OSError: it cannot be created.
    """
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb")


def create_mark(path: Path) -> bool:
    """Creates an empty file, which of several processes that try at once one alone achieves; False if it is there.

    Raises:
        OSError: it cannot be created.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    except FileExistsError:
        return False
    flush(path.parent)
    return True


def append_to(path: Path, mode: int = 0o666) -> BinaryIO:
    """Opens a file of ours to be read and appended to, and never what a planted link leads to.

    Raises:
        OSError: it is a link (ELOOP) or no regular file, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # the last: a pipe is not waited for
    handle = os.open(path, flags, mode)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return os.fdopen(handle, "a+b")


def flush(path: Path) -> None:
    """Returns when what a file holds, or which files a folder holds, would outlive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """The value in `path`; None when there is no such file or `foreign_json` refuses it."""
    try:
        return read_json_file(path)
    except (OSError, DamagedJson):
        return None
