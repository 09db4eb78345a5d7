"""Which trials are ended early: Ray Tune's ASHA, asked about what the trials' own spools say.

The decision is a file in the trial's folder, which its workers obey together at the next logged step. So a decision
outlives the process that made it, and nothing is killed.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from pipeline.data.contract import find_task, score_problem
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.ray_private import tune_trial
from pipeline.records.spool import DamagedSpool, Line, read_spool
from pipeline.settings.config import SweepConfig
from pipeline.settings.search import AshaConfig
from pipeline.settings.trials import Trial

_WORST = 1e30  # stands for what is not finite: percentiles of an infinity are not numbers


class Pruner:
    """Compares the trials of a sweep, stratum by stratum, each time that `prune` is called.

    A stratum is what competes: the drawn settings within one arm, seed and cell of the grid; all arms together where
    the sweep says `across_arms`. The best trial of a stratum is never pruned.
    """

    def __init__(self, sweep: SweepConfig, trials: Sequence[tuple[Trial, TrialFolder]]) -> None:
        """Takes in what earlier commands have measured. What they let go on is not pruned for it in hindsight."""
        assert sweep.scheduler is not None
        self._asha = sweep.scheduler.asha
        self._mode = mode_of(self._asha, trials[0][0].experiment.data.task) if trials else "min"
        self._trials = {trial.key: (trial, folder) for trial, folder in trials}
        self._offsets = dict.fromkeys(self._trials, 0)
        self._schedulers: dict[str, Any] = {}
        self._of_trial: dict[str, Any] = {}
        strata = {key: stratum_of(trial, sweep) for key, (trial, _) in self._trials.items()}
        longest: dict[str, int] = {}
        for key, stratum in strata.items():
            steps = self._trials[key][0].experiment.training.steps
            longest[stratum] = max(steps, longest.get(stratum, 0))
        for key, stratum in strata.items():
            if stratum not in self._schedulers:
                self._schedulers[stratum] = _scheduler(self._asha, self._mode, longest[stratum])
            self._of_trial[key] = self._schedulers[stratum]
            self._of_trial[key].on_trial_add(None, tune_trial(key))
        self._measure()

    def prune(self) -> list[str]:
        """Takes in the spools' new lines, writes down which trials end, and returns their keys."""
        told = []
        for key, line in self._measure():
            folder = self._trials[key][1]
            if folder.ended or folder.prune.exists():
                continue
            metric = self._asha.metric
            value = line.metrics[metric] if math.isfinite(line.metrics[metric]) else None  # NaN is no JSON
            write_whole(folder.prune, json.dumps({"step": line.step, "metric": metric, "value": value}))
            told.append(key)
        return told

    def _measure(self) -> list[tuple[str, Line]]:
        """Hands new measurements to the schedulers, in the order of their times; returns those that call for an end."""
        new: list[tuple[str, Line]] = []
        for key in list(self._offsets):
            folder = self._trials[key][1]
            last = folder.ended
            try:
                lines, self._offsets[key] = read_spool(folder.spool, self._offsets[key])
            except DamagedSpool as error:
                lines, last = error.before, True
            new += [(key, line) for line in lines]
            if last:  # it has nothing more to say
                del self._offsets[key]
        behind = []
        for key, line in sorted(new, key=lambda each: each[1].time_ms):
            metric = self._asha.metric
            if metric not in line.metrics or line.step >= self._trials[key][0].experiment.training.steps:
                continue
            result = {"step": line.step, metric: self._finite(line.metrics[metric])}
            if self._of_trial[key].on_trial_result(None, tune_trial(key), result) == "STOP":
                behind.append((key, line))
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
