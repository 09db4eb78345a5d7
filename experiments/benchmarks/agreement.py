"""How far do engine and number of workers change a run? The same arm on the same global batches, in every way."""

import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.benchmarks.report import Progress, Result
from experiments.benchmarks.workers import WorkerGroup
from pipeline.data.batch import IGNORED, Batch
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.shards import open_prepared, prepare
from pipeline.settings.config import Experiment, replace
from pipeline.training.build import arm_of, build_dynamics, build_model, set_learning_rates
from pipeline.training.step import train_step
from tiny_onn.distributed import distribute

WORKERS = 2  # whose shards make up every global batch, in one process or in two
Way = tuple[str, int]  # engine, workers


class Run:
    """One way of training, in each of its processes: `shards` of each global batch to a process."""

    def __init__(self, settings: dict[str, Any], engine: str, folder: str) -> None:
        experiment = replace(Experiment.model_validate_json(settings["json"]), {"training.engine": engine}, "bench")
        self._training = experiment.training
        self._model = build_model(experiment)
        self._dynamics = build_dynamics(self._model, experiment.training)
        self._wrapped = distribute(self._model, router_in_backward=self._dynamics.router_in_backward)
        size, rank = dist.get_world_size(), dist.get_rank()
        prepared = open_prepared(Path(folder), task=experiment.data.task)
        loaders = [
            Loader(prepared, "train", self._training.batch_tokens, self._training.seed, shard, WORKERS)
            for shard in range(WORKERS)
            if size == 1 or shard == rank
        ]
        self._streams = [loader.stream() for loader in loaders]

    def train(self, steps: int) -> tuple[list[float], list[float], list[Tensor]]:
        """(task losses, seconds of each step, parameters at the end)."""
        losses, seconds = [], []
        for step in range(steps):
            batch = joined([next(stream)[1] for stream in self._streams])
            set_learning_rates(self._dynamics, self._training, step)
            began = time.perf_counter()
            report = train_step(self._wrapped, batch, self._dynamics)
            losses.append(float(report.task_loss))
            seconds.append(time.perf_counter() - began)
        return losses, seconds, [p.detach() for p in self._model.parameters()]


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, padded to the longest."""
    length = max(batch.tokens.shape[1] for batch in batches)

    def pad(tensors: Iterable[Tensor], value: int | bool) -> Tensor:
        padded = [torch.nn.functional.pad(t, (0, length - t.shape[1]), value=value) for t in tensors]
        return torch.cat(padded)

    return Batch(
        tokens=pad((batch.tokens for batch in batches), 0),
        coordinates=tuple(pad(axes, 0) for axes in zip(*(batch.coordinates for batch in batches), strict=True)),
        labels=pad((batch.labels for batch in batches), IGNORED),
        valid=pad((batch.valid for batch in batches), False),
        task_ids=tuple(name for batch in batches for name in batch.task_ids),
    )


def ways(experiment: Experiment) -> tuple[Way, ...]:
    """What an arm can be trained in; the first is what the others are compared with."""
    engines = ("hooks",) if arm_of(experiment.training).measures_layers else ("hooks", "fused")
    return tuple((engine, workers) for workers in (WORKERS, 1) for engine in engines)


def run(experiment: Experiment, arms: Sequence[str], steps: int, progress: Progress) -> Result:
    """The answer for each arm."""
    experiments = {arm: replace(experiment, _changes(arm, steps), "bench agreement") for arm in arms}
    rows, measured = [], []
    progress.begin("training", sum(len(ways(each)) for each in experiments.values()))
    with tempfile.TemporaryDirectory(prefix="tiny-onn-bench-") as root:
        prepared = prepare(experiment.data, Path(root))
        for arm, each in experiments.items():
            trained = {way: _train(each, way, steps, prepared, progress) for way in ways(each)}
            reference = trained[ways(each)[0]]
            for (engine, workers), (losses, seconds, parameters) in trained.items():
                entry = {
                    "arm": arm,
                    "engine": engine,
                    "workers": workers,
                    "steps": steps,
                    "last_loss": losses[-1],
                    "largest_loss_difference": max(abs(a - b) for a, b in zip(losses, reference[0], strict=True)),
                    "parameter_difference": _distance(parameters, reference[2]),
                    "step_seconds": statistics.median(seconds),
                    "time": statistics.median(seconds) / statistics.median(reference[1]),
                }
                measured.append(entry)
                rows.append(
                    [
                        f"{arm}, {engine}, {workers} worker{'s' if workers > 1 else ''}",
                        f"{entry['last_loss']:.6f}",
                        f"{entry['largest_loss_difference']:.1e}",
                        f"{entry['parameter_difference']:.1e}",
                        f"{entry['time']:.2f}",
                    ]
                )
    training = experiment.training
    return Result(
        question="agreement",
        title=f"{steps} steps on the same global batches, {training.precision}, hidden {experiment.model.hidden}",
        columns=["variant", "last loss (nats)", "largest difference of a loss", "of the parameters", "time of a step"],
        rows=rows,
        plot_label="time of a step, against hooks with two workers",
        places="",
        series={row[0]: {"": float(row[-1])} for row in rows},
        data={"measured": measured, "precision": training.precision, "steps": steps},
        notes=[
            "Against the first row of each arm. Of the parameters: ||difference|| / ||parameters||. Differences are of "
            "rounding, which training amplifies: in float64 they are smaller by the ratio of the precisions."
        ],
    )


def _changes(arm: str, steps: int) -> dict[str, Any]:
    return {
        "training.arm": arm,
        "training.steps": max(steps, 2),
        "training.warmup_steps": 1,
        "workers.count": WORKERS,
        "sweep": None,
        "study": None,
    }


def _train(
    experiment: Experiment, way: Way, steps: int, prepared: Prepared, progress: Progress
) -> tuple[list[float], list[float], list[Tensor]]:
    engine, workers = way
    progress.step(f"{experiment.training.arm}, {engine}, {workers} workers")
    settings = {"json": experiment.model_dump_json()}
    with WorkerGroup(workers, Run, (settings, engine, str(prepared.folder)), threads=max(1, 2 // workers)) as group:
        answers: list[tuple[list[float], list[float], list[Tensor]]] = group.call("train", steps)
    return answers[0]


def _distance(parameters: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    pairs = list(zip(parameters, truth, strict=True))
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return (apart / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5
