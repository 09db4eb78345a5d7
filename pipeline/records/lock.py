"""One sweep at a time in a folder."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import append_to, read_json
from pipeline.locking import file_lock


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds `folder`/lock, which names this process. The kernel lets go of it when the process ends, however it ends.

    Raises:
        UserError: another process holds it; names its pid and host. Or the folder cannot be written to, or
            its file system knows no locks.
    """
    path = folder / "lock"
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            append_to(path).close()  # its error names what is wrong with the file itself
        except OSError as error:
            if error.errno == errno.ELOOP or path.is_symlink():
                raise UserError(f"{path}: is a link, and is not written through. Remove it.") from error
            raise UserError(
                f"{path}: cannot be written ({error.strerror}). Expected a folder that can be written to; name another "
                "with --output."
            ) from error
        try:
            held.enter_context(file_lock(path, timeout_s=0))
        except TimeoutError as error:
            content = read_json(path)
            owner = content if isinstance(content, dict) else {}
            raise UserError(
                f"{folder}: in use by process {owner.get('pid', '?')} on {owner.get('host', '?')}. "
                "Wait until it ends, stop it with Ctrl-C, or use another --output."
            ) from error
        except OSError as error:
            raise UserError(
                f"{path}: cannot be locked ({error.strerror}), so that two commands could use the folder at once. "
                "Expected a file system with locks (flock); name a folder of another with --output."
            ) from error
        with append_to(path) as file:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)
