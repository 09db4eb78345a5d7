"""What a worker trains: a trial's data, model and state, its batches, and its steps."""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline import measures
from pipeline.data.batch import Batch
from pipeline.data.contract import Task
from pipeline.data.loader import Loader
from pipeline.data.prefetch import Prefetch
from pipeline.data.sequence import Sequence
from pipeline.data.sequential import SequentialLoader, open_loader
from pipeline.data.shards import open_prepared, read_rows
from pipeline.layout import TrialFolder
from pipeline.records.phases import Clock, StepTimes
from pipeline.settings.cadence import is_evaluated, is_logged
from pipeline.settings.config import Experiment, TrainingConfig
from pipeline.storage.storage import Place, patiently
from pipeline.training.build import build_dynamics, build_model, set_learning_rates
from pipeline.training.checkpoint import load_newest
from pipeline.training.evidence import stop
from pipeline.training.forgetting import Forgetting
from pipeline.training.modes import seed_step
from pipeline.training.observer import Observer, load_observer
from pipeline.training.replicas import ReplicasDiffer, check_replicas
from pipeline.training.step import StepReport, train_step
from tiny_onn.capture import CaptureError
from tiny_onn.distributed import distribute
from tiny_onn.dynamics import LearningDynamics, NonFiniteStep
from tiny_onn.model import GridTransformer

MOST_SKIPPED_IN_A_ROW = 10


@dataclass
class Skipped:
    """How many steps were not finite and so were skipped: in all, and in a row."""

    steps: int = 0
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
class Window:
    """Times and token counts since the last log entry; read, and so synchronised with the device, only there."""

    seconds: list[float] = field(default_factory=list)
    valid: list[torch.Tensor] = field(default_factory=list)
    waited: float = 0.0  # for batches
    waited_in_all: float = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts its time as spent waiting."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.waited, self.waited_in_all = self.waited + seconds, self.waited_in_all + seconds

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Counts its time as a step's."""
        started = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - started)

    def read(self) -> dict[str, float]:
        """The metrics of the window, which begins anew."""
        started = time.perf_counter()
        tokens = float(torch.stack(self.valid).sum())  # a device may still be at work on the last step
        self.waited += time.perf_counter() - started
        by_phase = {
            measures.STEP_SECONDS: statistics.median(self.seconds),
            measures.TOKENS_PER_SECOND: tokens / (sum(self.seconds) + self.waited),
        }
        self.seconds.clear()
        self.valid.clear()
        self.waited = 0.0
        return by_phase


@dataclass(frozen=True)
class OpenTrial:
    """A worker's part of a trial. `first` is the step that it goes on from, 0 at its start.

    `problems` are the checkpoints that could not be used; `skipped` counts on rank 0, whose count is
    logged, also what earlier attempts skipped. `wrapped` is the model in DDP, where there are several workers.
    `forgetting` is there where training goes task after task. `clock` says where this process's time goes.
    """

    experiment: Experiment
    folder: TrialFolder
    device: torch.device
    rank: int
    world_size: int
    loader: Loader | SequentialLoader
    held_out: list[Sequence]
    evaluation: list[Sequence]
    model: nn.Module
    wrapped: nn.Module
    dynamics: LearningDynamics
    first: int
    problems: list[str]
    started: float
    observer: Observer | None
    forgetting: Forgetting | None = None
    skipped: Skipped = field(default_factory=Skipped)
    window: Window = field(default_factory=Window)
    clock: Clock = field(default_factory=lambda: Clock("worker"))
    step_times: StepTimes = field(default_factory=StepTimes)

    @property
    def training(self) -> TrainingConfig:
        """Its settings."""
        return self.experiment.training

    @property
    def task(self) -> Task:
        """What is learnt."""
        return self.loader.task

    @property
    def digest(self) -> str:
        """Of its settings; its checkpoints carry it."""
        return self.experiment.digest()

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Those that its checkpoints may carry: it may have been begun with another number of workers."""
        return self.experiment.digests()

    @property
    def autocast(self) -> bool:
        """Whether it computes in bfloat16."""
        return self.training.precision == "bfloat16"


@dataclass
class Entry:
    """A logged step: measures fill it, records write it. `report` is of the training step itself."""

    step: int
    epoch: int
    batch: Batch
    rates: tuple[float, float]
    report: StepReport
    evaluated: bool
    last: bool
    metrics: dict[str, float] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)  # of held-out rows, as the task draws them
    figures: dict[str, bytes] = field(default_factory=dict)  # of the user's own observer, as PNG


Measure = Callable[[OpenTrial, Entry], None]
"""Adds to an entry what it measures; every worker calls it, and it may use collective operations."""


def open_trial(experiment: Experiment, folder: TrialFolder, data: Place, device: torch.device) -> OpenTrial:
    """The trial as it stands at its newest good checkpoint; every worker of the process group calls it.

    Raises:
        UserError: the data is damaged, or there are checkpoints and none is good.
        ReplicasDiffer: the workers did not go on from the same state.
    """
    started, clock, training = time.monotonic(), Clock("worker"), experiment.training
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    hashes = rank == 0 and isinstance(data, Path)
    prepared = patiently(lambda: open_prepared(data, experiment.data.task, hashes=hashes))
    held_out = patiently(lambda: read_rows(prepared, "held_out"))
    scored = training.score_evaluation != "never"
    evaluation = patiently(lambda: read_rows(prepared, "evaluation")) if scored else []
    loader = open_loader(experiment, prepared, rank, world_size)
    forgetting = Forgetting(loader, training.precision == "bfloat16") if isinstance(loader, SequentialLoader) else None
    model = build_model(experiment, device)
    dynamics = build_dynamics(model, training)
    take = {"take": forgetting.take} if forgetting else {}
    first, problems = load_newest(folder.checkpoints, dynamics, experiment.digests(), **take)
    # A model of somebody else's may have parameters that no loss depends on, which DDP would wait for.
    own = not isinstance(model, GridTransformer)
    wrapped = distribute(model, router_in_backward=dynamics.router_in_backward, find_unused_parameters=own)
    if training.check_replicas_every:
        check_replicas(dynamics, first)
    return OpenTrial(
        experiment=experiment,
        folder=folder,
        device=device,
        rank=rank,
        world_size=world_size,
        loader=loader,
        held_out=held_out,
        evaluation=evaluation,
        model=model,
        wrapped=wrapped,
        dynamics=dynamics,
        first=first,
        problems=problems,
        started=started,
        observer=load_observer(training.observer) if training.observer else None,
        forgetting=forgetting,
        clock=clock,
    )


def batches(trial: OpenTrial) -> Iterator[tuple[int, int, Batch]]:
    """(step, epoch, this worker's share of the step's batch), from the step after `first` to the last."""
    steps = trial.training.steps
    stream = Prefetch(itertools.islice(trial.loader.stream(trial.first), steps - trial.first))
    for step in range(trial.first + 1, steps + 1):
        with trial.window.waiting():
            epoch, batch = next(stream)
            batch = batch.to(trial.device)
        yield step, epoch, batch


def take_step(trial: OpenTrial, step: int, epoch: int, batch: Batch) -> Entry | None:
    """Trains on a batch; the step's entry, still empty, where it is logged.

    Raises:
        TrainingStopped: a loss or gradient is not finite, a captured call cannot be trusted, or the workers' replicas
            are out of step; with the evidence kept.
    """
    training, logs = trial.training, is_logged(trial.training, step)
    rates = set_learning_rates(trial.dynamics, training, step - 1)
    seed_step(training.seed, step, trial.rank)
    try:
        with trial.window.step():
            report = train_step(
                trial.wrapped,
                batch,
                trial.dynamics,
                observe=logs,
                autocast=trial.autocast,
                skip_nonfinite=training.on_nonfinite == "skip",
                micro_batches=training.micro_batches,
            )
            trial.window.valid.append(report.valid)
        trial.step_times.add(trial.window.seconds[-1], logs)
        trial.skipped.count(report)
        every, last = training.check_replicas_every, step == training.steps
        if every and (step % every == 0 or last):
            check_replicas(trial.dynamics, step)
    except (NonFiniteStep, CaptureError, ReplicasDiffer) as error:
        raise stop(
            trial.folder,
            step,
            batch,
            trial.dynamics,
            trial.digest,
            error,
            autocast=trial.autocast,
            micro_batches=training.micro_batches,
        ) from None
    if trial.forgetting:
        trial.forgetting.after(trial.model, step)
    return Entry(step, epoch, batch, rates, report, is_evaluated(training, step), last) if logs else None
