"""What every Ray Train worker runs: one trial's training, from its newest checkpoint to its result."""

import contextlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline import measures
from pipeline.data.ahead import Ahead
from pipeline.data.loader import Loader
from pipeline.data.shards import open_prepared, read_rows
from pipeline.data.tokens import Sequence
from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.records.pruned import write_pruned
from pipeline.records.spool import Spool
from pipeline.settings.config import Experiment
from pipeline.storage.storage import Place, patiently
from pipeline.training.build import build_dynamics, build_model, compiling, set_learning_rates
from pipeline.training.checkpoint import load_newest, save_checkpoint
from pipeline.training.evaluate import Prediction, evaluate, exact_match, predict, together, voting_views
from pipeline.training.evidence import agree, disk_errors, gather_json, stop
from pipeline.training.machine import environment, peak_memory_mib
from pipeline.training.model_file import save_model
from pipeline.training.replicas import ReplicasDiffer, check_replicas
from pipeline.training.step import StepReport, train_step
from pipeline.training.stopping import TrainingStopped
from pipeline.training.trial_writer import TrialWriter, is_snapshot, metrics_at, step_metrics
from tiny_onn.capture import CaptureError
from tiny_onn.distributed import distribute, gather_over_workers
from tiny_onn.dynamics import NonFiniteStep

MOST_SKIPPED_IN_A_ROW = 10


def run_training(
    experiment: Experiment,
    folder: TrialFolder,
    data: Place,
    device: torch.device,
    report: Any = None,
    check_ours: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Trains `experiment` in `folder` and returns its last metrics; every worker of the process group calls it.

    It goes on from the newest good checkpoint in the folder. Rank 0 alone writes: the spool, prototype snapshots,
    checkpoints, distributions, predictions, the model, and last of all the result. A trial that is to be pruned ends at
    the next logged step.

    Args:
        report: called with (step, task loss) on every worker, after every log.
        check_ours: called by rank 0 before it writes; raises TrainingStopped where another has taken the trial up.

    Raises:
        TrainingStopped: a loss or gradient is not finite, a captured call cannot be trusted, the workers' replicas are
            out of step, or the disk is full; on all workers in the same step.
    """
    training = experiment.training
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    started = time.monotonic()
    prepared = patiently(lambda: open_prepared(data, hashes=rank == 0 and isinstance(data, Path)))
    held_out = patiently(lambda: read_rows(prepared, "held_out"))
    scored = training.score_evaluation != "never"
    evaluation = patiently(lambda: read_rows(prepared, "evaluation")) if scored else []
    loader = Loader(prepared, "train", training.batch_tokens, training.seed, rank, world_size)
    model = build_model(experiment, device)
    dynamics = build_dynamics(model, training)
    digest = experiment.digest()
    first, problems = load_newest(folder.checkpoints, dynamics, digest)
    wrapped = distribute(model, router_in_backward=dynamics.router_in_backward)
    if training.check_replicas_every:
        check_replicas(dynamics, first)
    writer = TrialWriter(folder, Spool(folder.spool), problems) if rank == 0 else None
    window = _Window()
    metrics = metrics_at(folder, first) if writer else {}
    stream = Ahead(itertools.islice(loader.stream(first), training.steps - first))
    skipped = Skipped(int(metrics.get(measures.SKIPPED_STEPS, 0)))
    autocast = training.precision == "bfloat16"
    if writer and first == 0 and training.prototype_snapshots:
        with disk_errors(folder, "writing the first prototypes", digest):
            writer.prototypes(0, dynamics, None)
    for step in range(first, training.steps):
        with window.waiting():
            epoch, batch = next(stream)
            batch = batch.to(device)
        done = step + 1
        logs = done % training.log_every == 0 or done == training.steps
        rates = set_learning_rates(dynamics, training, step)
        try:
            with window.step():
                outcome = train_step(
                    wrapped,
                    batch,
                    dynamics,
                    observe=logs,
                    autocast=autocast,
                    skip_nonfinite=training.on_nonfinite == "skip",
                )
                window.valid.append(outcome.valid)
            skipped.count(outcome)
            every = training.check_replicas_every
            if every and (done % every == 0 or done == training.steps):
                check_replicas(dynamics, done)
        except (NonFiniteStep, CaptureError, ReplicasDiffer) as error:
            raise stop(folder, done, batch, dynamics, digest, error, autocast=autocast) from None
        if not logs:
            continue
        evaluates = done % training.evaluate_every < training.log_every or done == training.steps
        of_step = step_metrics(outcome, evaluates, has_goodness=dynamics.cost is not None)
        metrics = {**window.read(), measures.EPOCH: float(epoch), **_rates(rates), **of_step}
        if (memory := peak_memory_mib(device)) is not None:
            metrics[measures.PEAK_MEMORY_MIB] = memory
        if training.on_nonfinite == "skip":
            metrics[measures.SKIPPED_STEPS] = float(skipped.steps)
        if evaluates:
            metrics |= evaluate(
                model, held_out, loader.budget, rank, world_size, autocast=autocast, patterns=done == training.steps
            )
        if evaluation and (done == training.steps or (evaluates and training.score_evaluation == "always")):
            metrics |= evaluate(
                model, evaluation, loader.budget, rank, world_size, autocast=autocast, split="evaluation"
            )
        if done == training.steps:
            predictions = _predict(experiment, model, held_out, rank, world_size)
            metrics |= exact_match(predictions)
            metrics |= exact_match(_predict(experiment, model, evaluation, rank, world_size), "evaluation")
        stopped: TrainingStopped | None = None
        if writer:
            try:
                check_ours()
                with disk_errors(folder, f"writing what step {done} came to", digest):
                    if done == training.steps and predictions:
                        write_whole(folder.predictions, json.dumps([each.as_dict() for each in predictions]))
                    writer.spool.write(done, metrics)
                    if evaluates:
                        writer.distributions(done, outcome.dynamics.health)
                    if is_snapshot(done, training):
                        writer.prototypes(done, dynamics, outcome.dynamics.health)
                    if done % training.checkpoint_every < training.log_every or done == training.steps:
                        writer.spool.flush()  # or, after a loss of power, a run could go on from past its own metrics
                        save_checkpoint(folder.checkpoints, done, dynamics, digest, training.keep_checkpoints)
            except TrainingStopped as error:
                stopped = error
        agree(stopped, device)
        if report:
            report(done, metrics.get(measures.TASK_LOSS, math.nan))
        if done < training.steps and _is_to_end(folder, rank, device):
            if writer:
                with disk_errors(folder, "writing that it is pruned", digest):
                    write_pruned(folder, done)
            return metrics
    if writer:
        check_ours()
        facts = {
            "steps": training.steps,
            "seconds": time.monotonic() - started,
            "parameters": sum(p.numel() for p in model.parameters()),
            "engine": dynamics.engine,
            "compiled": compiling(training, device),
            "skipped_steps": skipped.steps,
            "environment": environment(device),
        }
        with disk_errors(folder, "writing the result", digest):
            save_model(folder.model, model, experiment)
            writer.result(metrics, facts)
    return metrics


def _is_to_end(folder: TrialFolder, rank: int, device: torch.device) -> bool:
    """Whether the trial is to be pruned; rank 0 looks, and all are told the same."""
    told = torch.tensor([float(rank == 0 and folder.prune.exists())], device=device)
    return bool(gather_over_workers(told)[0] > 0)


@dataclass
class Skipped:
    """How many steps were not finite and so were skipped: in all, and in a row."""

    steps: int
    in_a_row: int = 0

    def count(self, outcome: StepReport) -> None:
        """Counts the step, if it was skipped.

        Raises:
            NonFiniteStep: the step's own, where too many have failed in a row: what is left to hope for?
        """
        if outcome.failure is None:
            self.in_a_row = 0
            return
        self.steps, self.in_a_row = self.steps + 1, self.in_a_row + 1
        if self.in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise outcome.failure


@dataclass
class _Window:
    """Times and token counts since the last log; read, and so synchronised with the device, only there."""

    seconds: list[float] = field(default_factory=list)
    valid: list[torch.Tensor] = field(default_factory=list)
    waited: float = 0.0  # for batches

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - started)

    def read(self) -> dict[str, float]:
        with self.waiting():  # a device may still be at work on the last step
            tokens = float(torch.stack(self.valid).sum())
        found = {
            measures.STEP_SECONDS: statistics.median(self.seconds),
            measures.TOKENS_PER_SECOND: tokens / (sum(self.seconds) + self.waited),
        }
        self.seconds.clear()
        self.valid.clear()
        self.waited = 0.0
        return found


def _rates(rates: tuple[float, float]) -> dict[str, float]:
    return {measures.LEARNING_RATE: rates[0], measures.ROUTER_LEARNING_RATE: rates[1]}


def _predict(
    experiment: Experiment, model: Any, judged: list[Sequence], rank: int, world_size: int
) -> list[Prediction]:
    """Decodes the first `generate_tasks` of the tasks, which are the same for every trial on this data.

    Every worker takes its share, and gets all.
    """
    wanted = experiment.training.generate_tasks
    tasks = set(list(dict.fromkeys(row.task_id for row in judged))[:wanted])
    rows = [row for row in judged if row.task_id in tasks]
    device = next(model.parameters()).device
    with together(device) as alive:
        mine = predict(model, rows[rank::world_size], experiment.data.max_tokens, voting_views(experiment), alive)
    shares = gather_json([each.as_dict() for each in mine], device)
    return [Prediction(**shares[place % world_size][place // world_size]) for place in range(len(rows))]
