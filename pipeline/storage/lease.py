"""One sweep at a time in a storage: whoever holds the lease keeps writing that it does."""

import json
import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import UserError
from pipeline.foreign_json import DamagedJson, integer, parse_object, text
from pipeline.storage.creating import NoConditionalPut, create
from pipeline.storage.storage import Storage, StorageError

BEAT_S = 5.0
LAPSE_S = 4 * BEAT_S  # a holder silent for so long can be taken over
_MOST_BYTES = 2**16
_CLAIM = re.compile(r"[0-9]{6}\.json")
_LARGEST_PID = 2**31


class Lease:
    """Held between entering and leaving. A dead holder is recognised by missing heartbeats: no clocks are compared.

    Two files say who holds it. `file` is the heartbeat: its holder writes it anew every `beat_s`. A claim is a numbered
    file in the folder `<file>-claims`, which is created, never replaced: of several drivers that find the lease free at
    the same moment one alone creates the next claim. Where the storage has no conditional put there are no
    claims; then each driver writes the heartbeat and, a second later, looks whose it is, so that of two whose writes
    lie further apart than that both go on until the next beat.

    One that was silent for too long and lives on, on a machine that slept or lost its network, finds another's name in
    its place: `lost` then says whose, and it writes no more. So it is when the thread that writes the heartbeat ends by
    an error.

    Raises:
        UserError: on entering: another process holds it (names its pid and host), or what says so is damaged.
        StorageError: on entering: the storage is away.
    """

    def __init__(self, file: Storage, beat_s: float = BEAT_S, lapse_s: float = LAPSE_S) -> None:
        self._file, self._beat_s, self._lapse_s = file, beat_s, lapse_s
        self._claims = file.beside(f"{file.name}-claims")
        self._claim: str | None = None
        self._me: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "among": _processes_here(),
            "beats": 0,
        }
        self._lost: str | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._guard, name="lease", daemon=True)

    def __enter__(self) -> Self:
        newest = self._wait_for_silence()
        self._take(newest)
        self._write()
        time.sleep(min(1.0, self._beat_s))  # of two that saw nobody at the same time, the later one has it
        holder = self._read(self._file)
        if holder and holder["token"] != self._me["token"]:
            raise self._taken(holder)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()
        with suppress(StorageError, UserError):  # then it lapses
            if self._lost is None and (holder := self._read(self._file)) and holder["token"] == self._me["token"]:
                self._file.remove()
                for name in self._claimed():
                    (self._claims / name).remove()

    @property
    def lost(self) -> str | None:
        """Why this process does not have it any longer, as the end of a sentence about what it guards; else None."""
        return self._lost

    def _wait_for_silence(self) -> str | None:
        """Returns the newest claim once the heartbeat and the claims have stayed unchanged for the lapse time."""
        deadline = time.monotonic() + self._lapse_s
        first: Any = None
        while True:
            claim = max(self._claimed(), default=None)
            holders = [self._read(self._file), self._read(self._claims / claim) if claim else None]
            now = (claim, *holders)
            if first is not None and now != first and any(holders):
                raise self._taken(next(holder for holder in reversed(holders) if holder))
            if all(holder is None or _is_dead(holder) for holder in holders) or time.monotonic() > deadline:
                return claim
            first = now
            time.sleep(min(1.0, self._beat_s / 2))

    def _take(self, newest: str | None) -> None:
        """Creates the claim after `newest`."""
        name = f"{int(newest.partition('.')[0]) + 1 if newest else 1:06d}.json"
        try:
            if not create(self._claims / name, json.dumps(self._me).encode()):
                raise self._taken(self._read(self._claims / name) or {})
            self._claim = name
        except NoConditionalPut:
            self._claim = None

    def _guard(self) -> None:
        """Beats. However that ends, `lost` says so: what a lease without a guard guards must stop."""
        try:
            while not self._left.wait(self._beat_s):
                with suppress(StorageError):  # other calls to the storage report it
                    if (holder := self._other()) is not None:
                        self._lost = (
                            f"was taken over by {_holder(holder)}, because this command was silent for too long. The "
                            "sweep continues there."
                        )
                        return
                    self._write()
        except Exception as error:
            self._lost = (
                f"cannot be known to be this command's alone any longer: renewing {self._file} failed "
                f"({type(error).__name__}: {error!s:.300})."
            )

    def _other(self) -> dict[str, Any] | None:
        """Who else has it."""
        holder = self._read(self._file)
        if holder and holder["token"] != self._me["token"]:
            return holder
        newest = max(self._claimed(), default=None) if self._claim else None
        if newest == self._claim:
            return None
        return (self._read(self._claims / newest) if newest else None) or {}

    def _claimed(self) -> list[str]:
        return [name for name in self._claims.files() if _CLAIM.fullmatch(name)]

    def _write(self) -> None:
        self._me["beats"] = self._me["beats"] + 1
        self._file.write_bytes(json.dumps(self._me).encode())

    def _read(self, file: Storage) -> dict[str, Any] | None:
        try:
            raw = file.read_bytes(_MOST_BYTES)
        except FileNotFoundError:
            return None
        return parse_holder(raw, file)

    def _taken(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{self._file}: in use by {_holder(owner)}. Wait until it ends, stop it with Ctrl-C, or use another "
            "--storage."
        )


def parse_holder(raw: bytes, source: object) -> dict[str, Any]:
    """What the holder of a lease wrote: {"token": text, "pid": int, "host": text, "among": text or None, "beats": int}.

    Raises:
        UserError: it is something else.
    """
    try:
        record = parse_object(raw, source, _MOST_BYTES)
        return {
            "token": text(record.get("token"), 100),
            "pid": integer(record.get("pid"), 1, _LARGEST_PID),
            "host": "".join(each if each.isprintable() else "?" for each in text(record.get("host"), 255)),
            "among": None if record.get("among") is None else text(record["among"], 200),
            "beats": integer(record.get("beats")),
        }
    except (DamagedJson, ValueError) as error:
        raise UserError(
            f"{source}: does not say which command holds the sweep ({error}). Make sure that no command works on it, "
            "and remove that file."
        ) from None


def _holder(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"


def _is_dead(owner: dict[str, Any]) -> bool:
    """Known for sure only of a process that this one could see if it lived."""
    here = _processes_here()
    return here is not None and owner.get("among") == here and not Path(f"/proc/{owner.get('pid')}").exists()


def _processes_here() -> str | None:
    """Boot id and PID namespace, within which a pid names one process; None if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
