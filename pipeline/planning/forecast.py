"""What a sweep would run and what it would take: counted from its settings, timed by a few steps of each kind."""

import heapq
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.manifest import Prepared
from pipeline.data.sequential import open_loader
from pipeline.planning.calibration_worker import Measured
from pipeline.planning.preflight import checkpoint_bytes, parameters_of
from pipeline.running.cluster import Resources, fit
from pipeline.settings import cadence
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.training.optimizers import state_per_parameter

# Both on a machine of two cores, from the ablation's twelve trials, two at a time: the median from a trial's beginning
# to its worker's (Ray's processes, the import of torch); Ray's own start, and the report at the end.
TRIAL_START_S = 6.0
SWEEP_START_S = 25.0
_RECORDS_BYTES = 2e6  # of a trial: spool, prototypes, figures


@dataclass(frozen=True)
class Kind:
    """Trials that take the same time and memory: alike but for seed and rates. `measured` is None if none was timed."""

    trials: tuple[Trial, ...]
    parameters: int
    tokens_per_step: float  # padding included, over all workers
    epochs: float
    disk_bytes: float
    state_per_parameter: float = 2.0  # numbers that the optimizer keeps for each of a parameter
    measured: Measured | None = None

    @property
    def example(self) -> Experiment:
        """One of them."""
        return self.trials[0].experiment

    @property
    def tokens(self) -> float:
        """That one trial trains on, padding included."""
        return self.tokens_per_step * self.example.training.steps

    @property
    def state_bytes(self) -> int:
        """Parameters, their gradients and the optimizer's state, of one worker."""
        width = 8 if self.example.training.precision == "float64" else 4
        return math.ceil((2 + self.state_per_parameter) * self.parameters * width)

    @property
    def worker_bytes(self) -> int | None:
        """One worker's memory at its most; None if it was not measured."""
        return None if self.measured is None else self.measured.peak_bytes

    @property
    def seconds(self) -> float | None:
        """One trial, from its beginning to its end, as the machine is now; None if it was not measured."""
        return self._seconds(1.0)

    @property
    def alone_seconds(self) -> float | None:
        """The same, if workers had the cores to themselves that they ask for."""
        return self._seconds(self.measured.core_share if self.measured else 1.0)

    def _seconds(self, core_share: float) -> float | None:
        timing, training, count = self.measured, self.example.training, self.example.workers.count
        if timing is None:
            return None
        evaluations = cadence.evaluations(training)
        scored = {"always": evaluations, "end": 1, "never": 0}[training.score_evaluation]
        return TRIAL_START_S + core_share * (
            timing.prepare_seconds
            + timing.compile_seconds
            + training.steps * timing.seconds_per_token * self.tokens_per_step / count
            + len(cadence.logged_steps(training)) * timing.observe_seconds
            + evaluations * timing.evaluate_seconds
            + scored * timing.evaluation_seconds
            + (evaluations + 1) * timing.forgetting_seconds  # once in all right after each task
            + cadence.saves(training) * timing.checkpoint_seconds
            + timing.decode_seconds
        )


@dataclass(frozen=True)
class Forecast:
    """What would run. `ended` trials are done already and not counted in anything else."""

    name: str
    kinds: tuple[Kind, ...] = field(repr=False)
    order: tuple[str, ...] = field(repr=False)  # the keys of the trials that are left to run
    ended: int
    at_once: int
    nodes: tuple[Resources, ...]
    free_disk_bytes: float
    prunes: bool

    @property
    def trials(self) -> int:
        """How many are left to run."""
        return sum(len(kind.trials) for kind in self.kinds)

    @property
    def tokens(self) -> float:
        """All trials' tokens, padding included."""
        return sum(kind.tokens * len(kind.trials) for kind in self.kinds)

    @property
    def disk_bytes(self) -> float:
        """What all trials may write at most."""
        return sum(kind.disk_bytes * len(kind.trials) for kind in self.kinds)

    @property
    def seconds(self) -> float | None:
        """The whole sweep, `at_once` trials at a time in their order; None if a kind was not measured."""
        return self._makespan({trial.key: kind.seconds for kind in self.kinds for trial in kind.trials})

    @property
    def alone_seconds(self) -> float | None:
        """The same, on a machine that does nothing else."""
        return self._makespan({trial.key: kind.alone_seconds for kind in self.kinds for trial in kind.trials})

    def _makespan(self, lengths: dict[str, float | None]) -> float | None:
        ends = [0.0] * self.at_once
        for key in self.order:
            length = lengths[key]
            if length is None:
                return None
            heapq.heapreplace(ends, ends[0] + length)
        return SWEEP_START_S + max(ends) if self.order else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything, for --json."""
        return {
            "name": self.name,
            "trials": self.trials,
            "ended_before": self.ended,
            "trials_at_once": self.at_once,
            "machines": [{"cpus": node.cpus, "gpus": node.gpus} for node in self.nodes],
            "tokens": self.tokens,
            "disk_bytes": self.disk_bytes,
            "free_disk_bytes": self.free_disk_bytes,
            "seconds": self.seconds,
            "alone_seconds": self.alone_seconds,
            "seconds_of_start": {"trial": TRIAL_START_S, "sweep": SWEEP_START_S},
            "seconds_are_the_most": self.prunes,
            "kinds": [
                {
                    "trials": [trial.key for trial in kind.trials],
                    "arm": kind.example.training.arm,
                    "model": kind.example.model.model_dump(),
                    "workers": kind.example.workers.model_dump(),
                    "steps": kind.example.training.steps,
                    "parameters": kind.parameters,
                    "tokens_per_step": kind.tokens_per_step,
                    "epochs": kind.epochs,
                    "state_bytes": kind.state_bytes,
                    "worker_bytes": kind.worker_bytes,
                    "seconds": kind.seconds,
                    "alone_seconds": kind.alone_seconds,
                    "measured": None if kind.measured is None else vars(kind.measured),
                }
                for kind in self.kinds
            ],
        }


# Settings that change neither time nor memory.
ALIKE: dict[str, Any] = {
    "seed": 0,
    "learning_rate": 1.0,
    "router_learning_rate": 1.0,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "gain": 1.0,
}


def kinds_of(trials: Sequence[Trial], prepared: Prepared) -> tuple[Kind, ...]:
    """The trials, those alike together, in the order of their first ones."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        experiment = trial.experiment
        model, training = (
            group.model_copy(update={name: value for name, value in ALIKE.items() if name in type(group).model_fields})
            for group in (experiment.model, experiment.training)
        )
        groups.setdefault(f"{model} {training} {experiment.workers} {experiment.data.order}", []).append(trial)
    return tuple(_kind(tuple(group), prepared) for group in groups.values())


def at_once(trials: Sequence[Trial], nodes: Sequence[Resources], most: int | None) -> int:
    """How many trials would run at once.

    Raises:
        UserError: a trial does not fit; names the field.
    """
    wanted = min(most or len(trials), len(trials))
    return min((fit(trial.experiment.workers, nodes, wanted) for trial in trials), default=1)


def free_disk(output: Path) -> float:
    """Bytes."""
    return float(shutil.disk_usage(output).free)


def _kind(trials: tuple[Trial, ...], prepared: Prepared) -> Kind:
    experiment = trials[0].experiment
    training, count = experiment.training, experiment.workers.count
    checkpoints = checkpoint_bytes(experiment)
    tokens, epochs = open_loader(experiment, prepared, 0, count).expected(training.steps)
    return Kind(
        trials=trials,
        parameters=parameters_of(experiment),
        tokens_per_step=count * tokens,
        epochs=epochs,
        disk_bytes=checkpoints + _RECORDS_BYTES,
        state_per_parameter=state_per_parameter(training),
    )
