"""A run's metrics on their way to the tracker: JSON lines that outlive a killed worker and a dead server."""

import json
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import append_to, flush
from pipeline.foreign_json import DamagedJson, integer, parse_object

LONGEST_LINE = 2**21  # bytes: ten thousand metrics of one step
_METRIC_NAME = re.compile(r"[A-Za-z0-9_\-. /]{1,250}")  # what MLflow takes
_NOT_FINITE = ("NaN", "inf", "-inf")
_LARGEST = 2**53  # that a step or a time may be


class DamagedSpool(UserError):
    """A line in the middle of a spool cannot be read. `before` are the lines up to there."""

    def __init__(self, message: str, before: "list[Line]") -> None:
        super().__init__(message)
        self.before = before


@dataclass(frozen=True)
class Line:
    """The metrics of one step. `time_ms` is Unix time in milliseconds, `end` the byte after the line."""

    step: int
    time_ms: int
    metrics: dict[str, float]
    end: int


class Spool:
    """Appends metrics, one line a step, from one process.

    A run taken up from a checkpoint repeats some steps: those that the file already has are not written again.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates `path` and cuts off a last line that a killed process left half-written."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._inherited = _cut_torn_line(path)
        self._last = self._inherited

    @property
    def last_step(self) -> int:
        """The last step in the file; -1 when there is none."""
        return self._last

    def write(self, step: int, metrics: dict[str, float]) -> bool:
        """Appends a step's metrics. False when an earlier process has already written this step.

        Raises:
            ValueError: the step does not follow the last one that this process wrote (all metrics of a step belong in
                one call), or the tracker would refuse a metric's name.
        """
        if step <= self._inherited:
            return False
        if step <= self._last:
            raise ValueError(f"step {step} comes after step {self._last}; write a step once, with all its metrics")
        values = {_metric_name(name): _to_json(float(value)) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time_ms": time.time_ns() // 1_000_000, "metrics": values}, allow_nan=False)
        with append_to(self._path) as file:
            file.write(line.encode() + b"\n")
        self._last = step
        return True

    def flush(self) -> None:
        """Returns when all that was written would outlive a loss of power: what is written on top of it comes after."""
        flush(self._path)


class SpoolReader:
    """Reads a spool from byte `offset` on, each line once. `damage` ends it for good, where a line is damaged."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path, self.offset = path, offset
        self.damage: DamagedSpool | None = None

    def read(self, most_bytes: int | None = None) -> list[Line]:
        """The whole lines that have been added since; those before the damage, where there is some.

        Args:
            most_bytes: no more lines are read once they have so many; the next call goes on after them.
        """
        if self.damage is not None:
            return []
        try:
            lines, self.offset = read_spool(self._path, self.offset, most_bytes)
        except DamagedSpool as error:
            self.damage, lines = error, error.before
            self.offset = lines[-1].end if lines else self.offset
        return lines


def read_spool(path: Path, offset: int = 0, most_bytes: int | None = None) -> tuple[list[Line], int]:
    """The whole lines from byte `offset` on, and the offset after them. A missing file has no lines.

    Args:
        most_bytes: no more lines are read once they have so many; the next call goes on after them.

    Raises:
        DamagedSpool: a line in the middle is damaged; names the file and the byte.
    """
    lines: list[Line] = []
    try:
        for line in spool_lines(path, offset):
            lines.append(line)
            if most_bytes is not None and line.end - offset >= most_bytes:
                break
    except DamagedSpool as error:
        raise DamagedSpool(str(error), lines) from None
    return lines, lines[-1].end if lines else offset


def spool_lines(path: Path, offset: int = 0) -> Iterator[Line]:
    """The whole lines from byte `offset` on, one after the other: of a long spool they fill no memory.

    Raises:
        DamagedSpool: a line in the middle is damaged, or longer than LONGEST_LINE; `before` is empty.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        while raw := file.readline(LONGEST_LINE + 1):
            if not raw.endswith(b"\n") and len(raw) <= LONGEST_LINE:
                return  # a half line, still being written
            line = _parse(raw.removesuffix(b"\n"), offset + len(raw), path)
            if line is None or len(raw) > LONGEST_LINE:
                raise DamagedSpool(
                    f"{path}: damaged at byte {offset}: found {raw[:60]!r}, expected a line of metrics as JSON. "
                    "Remove the trial's folder and run it again.",
                    [],
                )
            yield line
            offset = line.end


def _cut_torn_line(path: Path) -> int:
    """Leaves whole lines only; returns the last step, or -1."""
    if not path.exists():
        return -1
    size = path.stat().st_size
    with path.open("rb") as file:
        start = max(0, size - 2 * LONGEST_LINE)
        file.seek(start)
        tail = file.read()
    keep = start + tail.rfind(b"\n") + 1
    last = tail[: keep - start].rstrip(b"\n").rpartition(b"\n")[2]
    if keep > start and _parse(last, keep, path) is None:  # a crash of the machine may leave a line of zeros
        keep -= len(last) + 1
    if keep < size and not (keep == start and start > 0):
        os.truncate(path, keep)
    return max((line.step for line in spool_lines(path)), default=-1)


def _parse(raw: bytes, end: int, path: Path) -> Line | None:
    try:
        value = parse_object(raw, path, LONGEST_LINE)
        metrics = {_metric_name(name): _number(number) for name, number in value["metrics"].items()}
        return Line(integer(value["step"], most=_LARGEST), integer(value["time_ms"], most=_LARGEST), metrics, end)
    except (DamagedJson, ValueError, KeyError, AttributeError):
        return None


@lru_cache(10_000)  # a run has few names, and says each of them at every step
def _metric_name(name: str) -> str:
    if not _METRIC_NAME.fullmatch(name) or name.startswith("/") or name != os.path.normpath(name):
        raise ValueError(f"{name!r} is not a metric name; use letters, digits and _-. / (at most 250)")
    return name


def _number(value: Any) -> float:
    if value in _NOT_FINITE or type(value) in (int, float):
        return float(value)
    raise ValueError("expected a number, NaN, inf or -inf")


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
