"""A lock that one process holds, and that the kernel lets go of when the process ends, however it ends."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_POLL_S = 0.05


@contextmanager
def file_lock(path: Path, timeout_s: float = -1) -> Iterator[None]:
    """Holds the file `path`, which is created if need be, whose contents stay as they are and which stays there.

    Args:
        timeout_s: how long to wait for another holder; 0 is not at all, a negative number without end.

    Raises:
        TimeoutError: another process held it all the time.
        OSError: it is a link (ELOOP) or no regular file, cannot be opened, or its file system knows no locks.
    """
    _check_regular(path)
    lock = FileLock(path, timeout=timeout_s, thread_local=False, fallback_to_soft=False, poll_interval=_POLL_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise TimeoutError(errno.ETIMEDOUT, f"another process has held it for {timeout_s:g} s", str(path)) from error
    try:
        yield
    finally:
        lock.release()


def _check_regular(path: Path) -> None:
    """filelock itself follows no link, also one that is put there after this; a pipe it would take for a file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "is a link", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
