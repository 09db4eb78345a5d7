"""A run's metrics on their way to the tracker: JSON lines that outlive a killed worker and a dead server."""

import json
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import flush

_METRIC_NAME = re.compile(r"[A-Za-z0-9_\-. /]{1,250}")  # what MLflow takes


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
        for name in metrics:
            if not _METRIC_NAME.fullmatch(name) or name.startswith("/") or name != os.path.normpath(name):
                raise ValueError(f"{name!r} is no metric name: use letters, digits and _-. / (at most 250)")
        values = {name: _to_json(float(value)) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time_ms": time.time_ns() // 1_000_000, "metrics": values}, allow_nan=False)
        with self._path.open("ab") as file:
            file.write(line.encode() + b"\n")
        self._last = step
        return True

    def flush(self) -> None:
        """Returns when all that was written would outlive a loss of power: what is written on top of it comes after."""
        flush(self._path)


def read_spool(path: Path, offset: int = 0) -> tuple[list[Line], int]:
    """The whole lines from byte `offset` on, and the offset after them. A missing file has no lines.

    Raises:
        DamagedSpool: a line in the middle is damaged; names the file and the byte.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    lines: list[Line] = []
    for raw in whole.split(b"\n") if newline else []:
        line = _parse(raw, offset + len(raw) + 1)
        if line is None:
            raise DamagedSpool(
                f"{path}: damaged at byte {offset}: found {raw[:60]!r}, expected a line of metrics as JSON. "
                "Remove the trial's folder and run it again.",
                lines,
            )
        lines.append(line)
        offset = line.end
    return lines, offset


def _cut_torn_line(path: Path) -> int:
    """Leaves whole lines only; returns the last step, or -1."""
    if not path.exists():
        return -1
    raw = path.read_bytes()
    keep = raw.rfind(b"\n") + 1
    last = raw[:keep].rstrip(b"\n").rpartition(b"\n")[2]
    if keep and _parse(last, keep) is None:  # a crash of the machine may leave a line of zeros
        keep -= len(last) + 1
    if keep < len(raw):
        os.truncate(path, keep)
    lines, _ = read_spool(path)
    return max((line.step for line in lines), default=-1)


def _parse(raw: bytes, end: int) -> Line | None:
    try:
        value = json.loads(raw)
        metrics = {str(name): float(number) for name, number in value["metrics"].items()}
        return Line(int(value["step"]), int(value["time_ms"]), metrics, end)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
