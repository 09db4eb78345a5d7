"""The load of a sweep on its tracker: trials that log, by their spools or by themselves, from a few processes."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.layout import TrialFolder
from pipeline.records.spool import Spool

LAYERS = 6  # of the ablation's model, whose logged steps have so many points


def metrics(step: int) -> dict[str, float]:
    """The points of one logged step."""
    layered = ("activation_rate", "good", "selectivity", "entropy", "goodness", "weights", "cost")
    by_layer = {f"{name}/L{layer}": step / (layer + 1) for name in layered for layer in range(LAYERS)}
    return {"train/task_loss": 1.0 / step, "train/meta_loss": 0.1, "train/gradient_norm": 1.0, **by_layer}


POINTS = len(metrics(1))


@dataclass(frozen=True)
class Load:
    """`trials` trials that log `steps` times each, every `every_s` seconds, from `processes` processes."""

    trials: int
    steps: int
    every_s: float
    processes: int

    @property
    def points(self) -> int:
        """How many points there are in all."""
        return self.trials * self.steps * POINTS


@dataclass(frozen=True)
class Calls:
    """Of calls to a tracker: how long each took, how long all of them, and the CPU time of those who called."""

    seconds: list[float]
    wall_s: float
    cpu_s: float


def write_spools(folders: Sequence[Path], load: Load) -> None:
    """All that the trials log, at once."""
    for folder in folders:
        spool = Spool(TrialFolder(folder).spool)
        for step in range(1, load.steps + 1):
            spool.write(step, metrics(step))


@contextmanager
def writing(folders: Sequence[Path], load: Load) -> Iterator[Any]:
    """The trials go on to log at their pace from now on; the value is ready when the last has."""
    with multiprocessing.get_context("spawn").Pool(load.processes) as pool:
        pool.map(_wake, range(load.processes))
        parts = [(list(folders[number :: load.processes]), load) for number in range(load.processes)]
        yield pool.starmap_async(_write_at_pace, parts)


def log_directly(uri: str, run_ids: Sequence[str], load: Load) -> Calls:
    """Every trial logs each step by a call of its own, as fast as the calls return."""
    with multiprocessing.get_context("spawn").Pool(load.processes) as pool:
        pool.map(_wake, range(load.processes))
        parts = [(uri, list(run_ids[number :: load.processes]), load.steps) for number in range(load.processes)]
        pool.starmap(_log, [(uri, [], 0)] * load.processes)  # imports
        began = time.monotonic()
        answers: list[tuple[list[float], float]] = pool.starmap(_log, parts)
        wall = time.monotonic() - began
        return Calls([seconds for calls, _ in answers for seconds in calls], wall, sum(cpu for _, cpu in answers))


def _wake(_: int) -> None:
    time.sleep(0.5)  # so that each process of the pool takes one


def _write_at_pace(folders: list[Path], load: Load) -> float:
    """The greatest delay behind the pace, in seconds."""
    spools = [Spool(TrialFolder(folder).spool) for folder in folders]  # each goes on where it ended
    began, late = time.monotonic(), 0.0
    for step in range(1, load.steps + 1):
        for place, spool in enumerate(spools):
            due = began + (step - 1 + place / len(spools)) * load.every_s
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            late = max(late, -wait)
            spool.write(spool.last_step + 1, metrics(step))
    return late


def _log(uri: str, run_ids: list[str], steps: int) -> tuple[list[float], float]:
    """How long each call took, and the CPU time of all."""
    from mlflow.entities import Metric

    from pipeline.tracking.store import open_store

    client: Any = open_store(uri)
    seconds, cpu = [], time.process_time()
    for step in range(1, steps + 1):
        for run_id in run_ids:
            points = [Metric(name, value, int(time.time() * 1000), step) for name, value in metrics(step).items()]
            began = time.monotonic()
            client.log_batch(run_id, metrics=points)
            seconds.append(time.monotonic() - began)
    return seconds, time.process_time() - cpu
