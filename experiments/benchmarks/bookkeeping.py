"""What a logged step costs besides training, in a run that has logged few steps and in one that has logged a million.

Synthetic: the files of a run are made as long as asked, and then what a worker, its storage and the driver do for one
more logged step is timed, part by part. Nothing is trained.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from experiments.benchmarks.report import Progress, Result
from pipeline.layout import TrialFolder
from pipeline.records.spool import Spool, read_spool
from pipeline.remote.index import Index, metrics_in, piece_start
from pipeline.remote.pusher import PIECE_BYTES, push_once
from pipeline.remote.sweep import take_in
from pipeline.remote.trial import RemoteTrial
from pipeline.storage.opening import open_storage
from pipeline.training.distributions import STEPS_A_PIECE, DistributionPieces, pieces_in
from tiny_onn.routing_health import Health, routing_health

METRICS = {f"activation_rate/L{layer}": 0.041234 for layer in range(6)} | {"train/task_loss": 1.7, "train/epoch": 3.0}
_CHUNK = 10_000  # lines that are written together
PARTS = ("spool", "distributions", "put", "index bytes", "driver reads", "driver takes in")


@dataclass
class Run:
    """A run with so many logged steps behind it, all of them in the storage and seen by the driver."""

    worker: TrialFolder
    driver: TrialFolder
    remote: RemoteTrial
    step: int
    index: Index = field(default_factory=dict)
    put: dict[str, tuple[int, int]] = field(default_factory=dict)
    have: Index = field(default_factory=dict)


def made(root: Path, steps: int, evaluate_every: int) -> Run:
    """The run, its files written in bulk."""
    worker, driver = TrialFolder(root / "worker"), TrialFolder(root / "driver")
    remote = RemoteTrial(open_storage(str(root / "storage")), "per_token-s0")
    worker.root.mkdir(parents=True)
    with worker.spool.open("w") as file:
        for start in range(1, steps + 1, _CHUNK):
            some = range(start, min(steps, start + _CHUNK - 1) + 1)
            file.writelines(
                json.dumps({"step": step, "time_ms": 1_700_000_000_000 + step, "metrics": METRICS}) + "\n"
                for step in some
            )
    _distributions(worker.distributions, range(evaluate_every, steps + 1, evaluate_every))
    run = Run(worker, driver, remote, steps)
    remote.put_attempt(1, "now")
    push_once(remote.part(1), worker, run.index, run.put)
    _fill_last_piece(run)
    _take_in(run)
    return run


def _fill_last_piece(run: Run) -> None:
    """Logs until a new piece begins, so that runs of all lengths are measured from the same point on."""
    missing = piece_start(metrics_in(run.index)[-1]) + PIECE_BYTES - run.worker.spool.stat().st_size
    with run.worker.spool.open("a") as file:
        while missing > 0:
            run.step += 1
            line = json.dumps({"step": run.step, "time_ms": 1_700_000_000_000 + run.step, "metrics": METRICS}) + "\n"
            file.write(line)
            missing -= len(line)
    push_once(run.remote.part(1), run.worker, run.index, run.put)


def step_seconds(run: Run, repeats: int, evaluates: bool) -> dict[str, float]:
    """Medians over `repeats` further steps, by part; of the index its bytes."""
    spool, pieces, health = Spool(run.worker.spool), DistributionPieces(run.worker.distributions), _health()
    _, offset = read_spool(run.worker.spool, run.worker.spool.stat().st_size)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(STEPS_A_PIECE):  # the first one looks where the others were; and so that a new piece begins
        run.step += 1
        pieces.add(run.step, {layer: [health] for layer in range(6)})
        if len(json.loads(pieces_in(run.worker.distributions)[-1].read_text())["steps"]) == STEPS_A_PIECE:
            break
    for _ in range(repeats):
        run.step += 2
        step = run.step
        seconds["spool"].append(_timed(lambda step=step: spool.write(step, METRICS)))  # type: ignore[misc]
        if evaluates:
            each = {layer: [health] for layer in range(6)}
            seconds["distributions"].append(_timed(lambda step=step, each=each: pieces.add(step, each)))  # type: ignore[misc]
        seconds["put"].append(_timed(lambda: push_once(run.remote.part(1), run.worker, run.index, run.put)))
        seconds["index bytes"].append(float(len(run.remote.part(1).index_file.read_bytes())))
        at = offset
        seconds["driver reads"].append(_timed(lambda at=at: read_spool(run.worker.spool, at)))  # type: ignore[misc]
        offset = run.worker.spool.stat().st_size
        seconds["driver takes in"].append(_timed(lambda: _take_in(run)))
    return {part: statistics.median(values) for part, values in seconds.items() if values}


def run(steps: Sequence[int], evaluate_every: int, repeats: int, progress: Progress) -> Result:
    """For each length, all parts; and how much longer they take in the longest run than in the shortest."""
    progress.begin("bookkeeping", len(steps))
    measured: dict[int, dict[str, float]] = {}
    for length in steps:
        progress.step(f"{length:,} logged steps")
        with tempfile.TemporaryDirectory(prefix="tiny-onn-bench-") as root:
            measured[length] = step_seconds(made(Path(root), length, evaluate_every), repeats, evaluates=True)
    times = [part for part in PARTS if part != "index bytes"]
    rows = []
    for length, parts in measured.items():
        whole = sum(parts[part] for part in times)
        shown = [f"{1e3 * parts[part]:.2f}" for part in times]
        rows.append([f"{length:,}", *shown, f"{1e3 * whole:.2f}", f"{parts['index bytes'] / 1024:.1f}"])
    return Result(
        question="bookkeeping",
        title="What a logged and evaluated step costs besides training (ms), by steps logged before",
        columns=["steps", *times, "all", "index KiB"],
        rows=rows,
        plot_label="ms a step",
        places="logged steps before",
        series={part: {f"{n:,}": 1e3 * parts[part] for n, parts in measured.items()} for part in times},
        data={"evaluate_every": evaluate_every, "repeats": repeats, "steps": measured},
    )


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _take_in(run: Run) -> None:
    part, index = run.remote.newest(run.remote.attempt())
    take_in(part, run.driver, index, run.have)
    run.have = index


def _health() -> Health:
    weights = torch.rand(64, 16)
    return routing_health(weights, weights, (weights, weights, weights))


def _distributions(folder: Path, steps: Sequence[int]) -> None:
    """Pieces as training writes them: one is made, and the others are it with other steps."""
    if not steps:
        return
    DistributionPieces(folder).add(steps[0], {layer: [_health()] for layer in range(6)})
    (first,) = pieces_in(folder)
    value = json.loads(first.read_text())
    entry = value["steps"][0]
    for start in range(0, len(steps), STEPS_A_PIECE):
        some = steps[start : start + STEPS_A_PIECE]
        (folder / f"step-{some[0]:06d}.json").write_text(
            json.dumps({**value, "steps": [{**entry, "step": step} for step in some]})
        )
