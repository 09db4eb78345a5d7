"""What every Ray Train worker runs: one trial's training, from its newest checkpoint to its result."""

import contextlib
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
import torch.distributed as dist
from safetensors.torch import save_file

from pipeline import measures
from pipeline.build import build_dynamics, build_model, compiling, set_learning_rates
from pipeline.checkpoint import load_newest, save_checkpoint
from pipeline.config import Experiment
from pipeline.evaluate import evaluate, exact_match, predict
from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.loader import Loader
from pipeline.shards import open_prepared, read_rows
from pipeline.spool import Spool
from pipeline.step import StepReport, train_step
from pipeline.tokens import Sequence
from tiny_onn.distributed import distribute
from tiny_onn.dynamics import LearningDynamics
from tiny_onn.layers import sparse_layers
from tiny_onn.routing_health import Health


def train_fn_per_worker(settings: dict[str, Any]) -> None:
    """Ray Train's entry: {"experiment": JSON, "folder": path, "data": path, "attempt": int}."""
    import ray.train
    import ray.train.torch

    experiment = Experiment.model_validate_json(settings["experiment"])
    # Kernels are compiled in this process: a pool of compilers beside every worker would cost more than it saves.
    torch._inductor.config.compile_threads = 1
    if experiment.workers.gpus == 0:
        torch.set_num_threads(max(1, math.floor(experiment.workers.cpus)))
    run_training(
        experiment,
        TrialFolder(Path(settings["folder"])),
        Path(settings["data"]),
        ray.train.torch.get_device() if experiment.workers.gpus else torch.device("cpu"),
        lambda step, loss: ray.train.report({"step": step, "loss": loss}),
    )


def run_training(
    experiment: Experiment, folder: TrialFolder, data: Path, device: torch.device, report: Any = None
) -> dict[str, float]:
    """Trains `experiment` in `folder` and returns its last metrics; every worker of the process group calls it.

    It goes on from the newest good checkpoint in the folder. Rank 0 alone writes: the spool, prototype snapshots,
    checkpoints, predictions, and last of all the result.

    Args:
        report: called with (step, task loss) on every worker, after every evaluation.
    """
    training = experiment.training
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    started = time.monotonic()
    prepared = open_prepared(data, hashes=rank == 0)
    held_out = read_rows(prepared, "held_out")
    loader = Loader(prepared, "train", training.batch_tokens, training.seed, rank, world_size)
    model = build_model(experiment, device)
    dynamics = build_dynamics(model, training)
    digest = experiment.digest()
    first, problems = load_newest(folder.checkpoints, dynamics, digest)
    wrapped = distribute(model, router_in_backward=dynamics.router_in_backward)
    writer = _Writer(folder, Spool(folder.spool), problems) if rank == 0 else None
    window = _Window()
    metrics: dict[str, float] = {}
    stream = loader.stream(first)
    if writer and first == 0 and training.prototype_snapshots:
        writer.prototypes(0, dynamics, None)
    for step in range(first, training.steps):
        epoch, batch = next(stream)
        done = step + 1
        logs = done % training.log_every == 0 or done == training.steps
        rates = set_learning_rates(dynamics, training, step)
        with window.step():
            outcome = train_step(
                wrapped, batch.to(device), dynamics, observe=logs, autocast=training.precision == "bfloat16"
            )
            window.valid.append(outcome.valid)
        if not logs:
            continue
        evaluates = done % training.evaluate_every < training.log_every or done == training.steps
        metrics = {measures.EPOCH: float(epoch), **_rates(rates), **_step_metrics(outcome, evaluates), **window.read()}
        if evaluates:
            metrics |= evaluate(model, held_out, training.batch_tokens // world_size, rank, world_size)
        if done == training.steps and rank == 0:
            metrics |= _predict(experiment, model, held_out, folder)
        if writer:
            writer.spool.write(done, metrics)
            if _is_snapshot(done, training.steps, training.prototype_snapshots, training.log_every):
                writer.prototypes(done, dynamics, outcome.dynamics.health)
        if done % training.checkpoint_every < training.log_every or done == training.steps:
            if writer:
                save_checkpoint(folder.checkpoints, done, dynamics, digest, training.keep_checkpoints)
            if dist.is_initialized():
                dist.barrier()
        if report:
            report(done, metrics[measures.TASK_LOSS])
    if writer:
        facts = {
            "steps": training.steps,
            "seconds": time.monotonic() - started,
            "parameters": sum(p.numel() for p in model.parameters()),
            "engine": dynamics.engine,
            "compiled": compiling(training, device),
        }
        writer.result(metrics, facts)
    return metrics


@dataclass
class _Window:
    """Times and token counts since the last log; read, and so synchronised with the device, only there."""

    seconds: list[float] = field(default_factory=list)
    valid: list[torch.Tensor] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - started)

    def read(self) -> dict[str, float]:
        tokens = float(torch.stack(self.valid).sum())
        found = {
            measures.STEP_SECONDS: statistics.median(self.seconds),
            measures.TOKENS_PER_SECOND: tokens / sum(self.seconds),
        }
        self.seconds.clear()
        self.valid.clear()
        return found


@dataclass(frozen=True)
class _Writer:
    """What rank 0 alone writes."""

    folder: TrialFolder
    spool: Spool
    problems: list[str]

    def prototypes(self, step: int, dynamics: LearningDynamics, health: dict[str, Health] | None) -> None:
        tensors = {}
        for name, layer in sparse_layers(dynamics.model).items():
            title = "L{}.{}".format(*place_of(name))
            tensors[f"{title}/prototypes"] = layer.proto_weight.detach().float().cpu().contiguous()
            if health:
                seen = health[name]
                tensors[f"{title}/activation"] = (seen.active / seen.scalars[0]).float().cpu()
                if dynamics.cost is not None:
                    tensors[f"{title}/good"] = (seen.good / seen.scalars[3]).float().cpu()
            else:  # nothing has been routed yet: all experts stand as they were initialised
                tensors[f"{title}/activation"] = torch.zeros(layer.out_features)
        self.folder.prototypes.mkdir(parents=True, exist_ok=True)
        aside = self.folder.prototypes / f".step-{step:06d}"
        save_file(tensors, aside)
        aside.rename(self.folder.prototypes / f"step-{step:06d}.safetensors")

    def result(self, metrics: dict[str, float], facts: dict[str, Any]) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        result = {"metrics": finite, **facts, "checkpoint_problems": self.problems}
        write_whole(self.folder.result, json.dumps(result, indent=1))


def place_of(name: str) -> tuple[int, str]:
    """(layer, projection) of a module of GridTransformer: (3, "q") of "blocks.3.attention.q"."""
    _, layer, _, projection = name.split(".")
    return int(layer), projection


def _is_snapshot(done: int, steps: int, wanted: int, log_every: int) -> bool:
    """Whether this logged step is among the `wanted` evenly spaced ones, the last step included."""
    return any(0 <= done - math.ceil(k * steps / wanted) < log_every for k in range(1, wanted + 1)) and wanted > 0


def _rates(rates: tuple[float, float]) -> dict[str, float]:
    return {measures.LEARNING_RATE: rates[0], measures.ROUTER_LEARNING_RATE: rates[1]}


def _step_metrics(outcome: StepReport, by_module: bool) -> dict[str, float]:
    """The step's metrics; those of single modules, most of all there are, only where asked for."""
    metrics = {
        measures.TASK_LOSS: float(outcome.task_loss),
        measures.META_LOSS: float(outcome.dynamics.meta_loss),
        measures.GRADIENT_NORM: float(outcome.dynamics.gradient_norm),
    }
    layers: dict[tuple[str, int], list[float]] = {}
    for name, health in (outcome.dynamics.health or {}).items():
        layer, projection = place_of(name)
        for measure, value in health.measures().items():
            if by_module:
                metrics[measures.by_module(measure, layer, projection)] = value
            layers.setdefault((measure, layer), []).append(value)
    for (measure, layer), values in layers.items():
        known = [value for value in values if math.isfinite(value)]
        metrics[measures.by_layer(measure, layer)] = statistics.fmean(known) if known else math.nan
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _predict(experiment: Experiment, model: Any, held_out: list[Sequence], folder: TrialFolder) -> dict[str, float]:
    """Decodes the first `generate_tasks` held-out tasks, which are the same for every trial on this data."""
    wanted = experiment.training.generate_tasks
    tasks = list(dict.fromkeys(row.task_id for row in held_out))[:wanted]
    rows = [row for row in held_out if row.task_id in set(tasks)]
    if not rows:
        return {}
    predictions = predict(model, rows, experiment.data.max_tokens)
    write_whole(folder.predictions, json.dumps([each.as_dict() for each in predictions]))
    return exact_match(predictions)
