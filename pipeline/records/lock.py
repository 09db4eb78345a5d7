"""One sweep at a time in a folder."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import append_to, read_json


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds `folder`/lock, which names this process. The kernel lets go of it when the process ends, however it ends.

    Raises:
        UserError: another process holds it; names its pid and host. Or the folder cannot be written to, or
            its file system knows no locks.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = append_to(path)
    except OSError as error:
        if error.errno == errno.ELOOP or path.is_symlink():
            raise UserError(f"{path}: is a link, and is not written through. Remove it.") from error
        raise UserError(
            f"{path}: cannot be written ({error.strerror}). Expected a folder that can be written to; name another "
            "with --output."
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = read_json(path)
            owner = found if isinstance(found, dict) else {}
            raise UserError(
                f"{folder}: in use by process {owner.get('pid', '?')} on {owner.get('host', '?')}. "
                "Wait until it ends, stop it with Ctrl-C, or use another --output."
            ) from error
        except OSError as error:
            raise UserError(
                f"{path}: cannot be locked ({error.strerror}), so that two commands could use the folder at once. "
                "Expected a file system with locks (flock); name a folder of another with --output."
            ) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
