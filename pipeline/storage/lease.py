"""One sweep at a time in a storage, which knows no locks: whoever holds the lease keeps writing that it does."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import UserError
from pipeline.storage.storage import Storage, StorageError

BEAT_S = 5.0
LAPSE_S = 4 * BEAT_S  # without a sign of life


class Lease:
    """Held between entering and leaving. A holder that died is found out by its silence: no clocks are compared.

    One that was silent for too long and lives on, on a machine that slept or lost its network, finds another's name in
    its place: `lost` then says whose, and it writes no more.

    Raises:
        UserError: on entering: another process holds it; names its pid and host.
        StorageError: on entering: the storage is away.
    """

    def __init__(self, file: Storage, beat_s: float = BEAT_S, lapse_s: float = LAPSE_S) -> None:
        self._file, self._beat_s, self._lapse_s = file, beat_s, lapse_s
        self._me: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "among": _processes_here(),
            "beats": 0,
        }
        self._lost: str | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._wait_for_silence()
        self._write()
        time.sleep(min(1.0, self._beat_s))  # of two that saw nobody at the same time, the later one has it
        found = self._read()
        if found and found.get("token") != self._me["token"]:
            raise self._taken(found)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # then it lapses
            found = self._read()
            if found and found.get("token") == self._me["token"]:
                self._file.remove()

    @property
    def lost(self) -> str | None:
        """Who has it now, where this process has it no longer."""
        return self._lost

    def _wait_for_silence(self) -> None:
        first = found = self._read()
        deadline = time.monotonic() + self._lapse_s
        while found is not None and not _is_dead(found):
            if found != first:
                raise self._taken(found)
            if time.monotonic() > deadline:
                return
            time.sleep(min(1.0, self._beat_s / 2))
            found = self._read()

    def _beat(self) -> None:
        while not self._left.wait(self._beat_s):
            with contextlib.suppress(StorageError):  # whoever works with the storage tells of it
                found = self._read()
                if found and found.get("token") != self._me["token"]:
                    self._lost = _holder(found)
                    return
                self._write()

    def _write(self) -> None:
        self._me["beats"] = self._me["beats"] + 1
        self._file.write_bytes(json.dumps(self._me).encode())

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._file.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _taken(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{self._file}: in use by {_holder(owner)}. Wait until it ends, stop it with Ctrl-C, or use another "
            "--storage."
        )


def _holder(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"


def _is_dead(owner: dict[str, Any]) -> bool:
    """Known for sure only of a process that this one could see if it lived."""
    here = _processes_here()
    return here is not None and owner.get("among") == here and not Path(f"/proc/{owner.get('pid')}").exists()


def _processes_here() -> str | None:
    """Those among which a number is that of one process: of a machine since its start and, there, of a container, whose
    host name may be the machine's or another container's. None where that is not known."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
