"""Which trials are ended early: Ray Tune's ASHA, fed with the trials' own metrics.

The decision is a file in the trial's folder, which its workers obey together at the next logged step. So a decision
outlives the process that made it, and nothing is killed.
"""

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from pipeline.data.contract import find_task, score_problem
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.ray_private import tune_trial
from pipeline.records.spool import Line, SpoolReader
from pipeline.running.progress import TrialProgress
from pipeline.settings.config import SweepConfig
from pipeline.settings.search import AshaConfig
from pipeline.settings.trials import Trial

_WORST = 1e30  # stands for what is not finite: percentiles of an infinity are not numbers


class _Measured(NamedTuple):
    """The metric that counts, at one step of a trial."""

    key: str
    step: int
    time_ms: int
    value: float


class Pruner:
    """Compares the trials of a sweep, stratum by stratum, each time that `prune` is called.

    A stratum is what competes: the drawn settings within one arm, seed and cell of the grid; all arms together where
    the sweep says `across_arms`. The best trial of a stratum is never pruned.
    """

    def __init__(self, sweep: SweepConfig, trials: Sequence[TrialProgress]) -> None:
        """Takes in what has been read of the trials' spools, what earlier commands have measured. What they let go on
        is not pruned for it in hindsight. From now on it gets each line as it is read."""
        assert sweep.scheduler is not None
        self._asha = sweep.scheduler.asha
        self._mode = mode_of(self._asha, trials[0].trial.experiment.data.task) if trials else "min"
        self._trials = {each.trial.key: each for each in trials}
        self._new: list[_Measured] = []
        self._schedulers: dict[str, Any] = {}
        self._of_trial: dict[str, Any] = {}
        strata = {key: stratum_of(each.trial, sweep) for key, each in self._trials.items()}
        longest: dict[str, int] = {}
        for key, stratum in strata.items():
            steps = self._trials[key].steps
            longest[stratum] = max(steps, longest.get(stratum, 0))
        for key, stratum in strata.items():
            if stratum not in self._schedulers:
                self._schedulers[stratum] = _scheduler(self._asha, self._mode, longest[stratum])
            self._of_trial[key] = self._schedulers[stratum]
            self._of_trial[key].on_trial_add(None, tune_trial(key))
        for key, each in self._trials.items():
            for line in SpoolReader(each.folder.spool).read(each.read_to) if each.read_to else ():
                self._take(key, line)
            each.on_line = partial(self._take, key)
        self._compare()

    def prune(self) -> list[str]:
        """Compares what has been measured since the last call, writes down which trials end, and returns their keys."""
        pruned = []
        for verdict in self._compare():
            folder = self._trials[verdict.key].folder
            if folder.ended or folder.prune.exists():
                continue
            value = verdict.value if math.isfinite(verdict.value) else None  # NaN is no JSON
            write_whole(folder.prune, json.dumps({"step": verdict.step, "metric": self._asha.metric, "value": value}))
            pruned.append(verdict.key)
        return pruned

    def _take(self, key: str, line: Line) -> None:
        value = line.metrics.get(self._asha.metric)
        if value is not None and line.step < self._trials[key].steps:
            self._new.append(_Measured(key, line.step, line.time_ms, value))

    def _compare(self) -> list[_Measured]:
        """Hands new measurements to the schedulers, in the order of their times; returns those that call for an end."""
        new, self._new = sorted(self._new, key=lambda each: each.time_ms), []
        behind = []
        for each in new:
            result = {"step": each.step, self._asha.metric: self._finite(each.value)}
            if self._of_trial[each.key].on_trial_result(None, tune_trial(each.key), result) == "STOP":
                behind.append(each)
        return behind

    def _finite(self, value: float) -> float:
        worst = _WORST if self._mode == "min" else -_WORST
        return value if math.isfinite(value) else worst


def stratum_of(trial: Trial, sweep: SweepConfig) -> str:
    """All of a trial's settings but those in which it competes: equal for the trials that are compared."""
    settings = trial.experiment.model_dump(mode="json")
    competing = list(sweep.search.space) if sweep.search else []
    if sweep.scheduler and sweep.scheduler.asha.across_arms:
        competing.append("training.arm")
    for field in competing:
        group, _, name = field.rpartition(".")
        del settings[group][name]
    return json.dumps(settings, sort_keys=True)


def mode_of(asha: AshaConfig, task: str) -> Literal["min", "max"]:
    """Which end of the metric is better; of a task's own score, the task says it.

    Raises:
        UserError: the task has no such score, or one without a better end.
    """
    if asha.mode is not None:
        return asha.mode
    score = find_task(task).score(asha.metric)
    if score is None or score.best is None:
        raise UserError(score_problem("sweep.scheduler.asha.metric", asha.metric, task))
    return "min" if score.best == "lowest" else "max"


def _scheduler(asha: AshaConfig, mode: str, steps: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler  # seconds of imports

    return ASHAScheduler(
        time_attr="step",
        metric=asha.metric,
        mode=mode,
        max_t=steps,
        grace_period=asha.grace_steps,
        reduction_factor=asha.reduction_factor,
        stop_last_trials=False,
    )
