"""Times a few steps of each kind of trial, each in a process of its own, as many side by side as would run at once."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pipeline.errors import UserError
from pipeline.planning.calibration_worker import PARTS, Measured
from pipeline.planning.forecast import Kind
from pipeline.settings.config import Experiment

MOST_TIMED = 12  # kinds; the others are reckoned from the nearest of these
_LIMIT_S = 600.0


def timed(kinds: Sequence[Kind], data: Path, side_by_side: int, tell: Callable[[int, int], None]) -> tuple[Kind, ...]:
    """The kinds with what was measured of each; `tell` is called with (parts done, parts in all).

    Workers that run at once slow each other down, by the memory that they share if by nothing else. So that many are
    timed at once: where there are fewer kinds, some more than once, of which the slowest counts.

    Raises:
        UserError: a process failed; says how.
    """
    chosen = _spread(kinds)
    jobs = list(range(len(chosen)))
    jobs += [jobs[place % len(jobs)] for place in range(-len(jobs) % side_by_side)]
    done = 0
    lock = threading.Lock()

    def one_more() -> None:
        nonlocal done
        with lock:
            done += 1
            tell(done, len(jobs) * PARTS)

    running: set[subprocess.Popen[str]] = set()
    try:
        with ThreadPoolExecutor(side_by_side) as pool:
            try:
                timings = list(pool.map(lambda job: _time(chosen[job].example, data, one_more, running), jobs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(running):
                    process.kill()
                raise
    finally:
        for process in running:
            process.kill()
    slowest: dict[int, Measured] = {}
    for job, measured in zip(jobs, timings, strict=True):
        if job not in slowest or measured.seconds_per_token > slowest[job].seconds_per_token:
            slowest[job] = measured
    there = {chosen[job].trials[0].key: (chosen[job], measured) for job, measured in slowest.items()}
    return tuple(_with_time(kind, there) for kind in kinds)


def _spread(kinds: Sequence[Kind]) -> list[Kind]:
    """At most MOST_TIMED of the kinds, every size between the smallest and the largest."""
    if len(kinds) <= MOST_TIMED:
        return list(kinds)
    by_size = sorted(kinds, key=lambda kind: (kind.example.training.arm, kind.parameters))
    return [by_size[round(place * (len(by_size) - 1) / (MOST_TIMED - 1))] for place in range(MOST_TIMED)]


def _with_time(kind: Kind, there: dict[str, tuple[Kind, Measured]]) -> Kind:
    if kind.trials[0].key in there:
        return replace(kind, measured=there[kind.trials[0].key][1])

    def distance(other: Kind) -> tuple[bool, float]:
        return other.example.training.arm != kind.example.training.arm, abs(
            math.log(other.parameters / kind.parameters)
        )

    near, measured = min(there.values(), key=lambda pair: distance(pair[0]))
    factor = kind.parameters / near.parameters
    return replace(
        kind,
        measured=replace(
            measured,
            parameters=kind.parameters,
            seconds_per_token=measured.seconds_per_token * factor,
            evaluate_seconds=measured.evaluate_seconds * factor,
            evaluation_seconds=measured.evaluation_seconds * factor,
            decode_seconds=measured.decode_seconds * factor,
            peak_bytes=round(measured.built_bytes + (measured.peak_bytes - measured.built_bytes) * max(1.0, factor)),
        ),
    )


def _time(
    experiment: Experiment, data: Path, one_more: Callable[[], None], running: set["subprocess.Popen[str]"]
) -> Measured:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.planning.calibration_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    running.add(process)
    limit = threading.Timer(_LIMIT_S, process.kill)
    limit.start()
    messages: list[str] = []
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    listener = threading.Thread(target=lambda: messages.append(process.stderr.read()), daemon=True)  # type: ignore[union-attr]
    listener.start()
    try:
        process.stdin.write(json.dumps({"experiment": experiment.model_dump(mode="json"), "data": str(data)}))
        process.stdin.close()
        last: dict[str, object] = {}
        for line in process.stdout:
            last = json.loads(line)
            if "did" in last:
                one_more()
        code = process.wait()
        listener.join()
    finally:
        limit.cancel()
        running.discard(process)
    if code or "parameters" not in last:
        why = "it was killed; it may have run out of memory" if code < 0 else (messages or [""])[0].strip()[-1000:]
        raise UserError(
            f"A few steps of {experiment.training.arm} with hidden={experiment.model.hidden}, "
            f"layers={experiment.model.layers} could not be timed: {why}. Use --no-calibration to plan without."
        )
    return Measured(**last)  # type: ignore[arg-type]
