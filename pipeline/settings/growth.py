"""What an experiment has more of than when it was begun: seeds, arms, values of its grid, samples, steps; or another
number of workers, for what is left of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.settings.config import Experiment, SweepConfig
from pipeline.settings.trials import every_trial

STEPS, WORKERS = "training.steps", "workers.count"
_MAY_GROW = ("sweep.arms", "sweep.seeds", "sweep.grid", "sweep.arm_settings", "sweep.search.samples", STEPS, WORKERS)


@dataclass(frozen=True)
class Growth:
    """What is new, in words; and why the trials that there are cannot be part of it, each with what to do instead."""

    added: tuple[str, ...]
    problems: tuple[str, ...]


def may_grow(field: str) -> bool:
    """Whether a setting is one of which an experiment may have more later."""
    return any(field == each or field.startswith(f"{each}.") for each in _MAY_GROW)


def growth(before: Experiment, now: Experiment) -> Growth:
    """From `before` to `now`, which differ in nothing but what `may_grow`, and in what is without effect.

    Every trial of `before` must be one of `now`, with the same settings; or with more steps, if nothing but the number
    of its steps depends on that number; or with another number of workers, among which later batches are shared out.
    """
    added: list[str] = []
    problems: list[str] = []
    if before.sweep is not None and now.sweep is not None:
        _compare_sweeps(before.sweep, now.sweep, added, problems)
    if not problems:
        _compare_trials(before, now, added, problems)
    return Growth(tuple(added), tuple(problems))


def _compare_sweeps(before: SweepConfig, now: SweepConfig, added: list[str], problems: list[str]) -> None:
    _compare_lists("sweep.arms", "arm", before.arms, now.arms, added, problems)
    _compare_lists("sweep.seeds", "seed", before.seeds, now.seeds, added, problems)
    for field in sorted(before.grid.keys() | now.grid.keys()):
        if field not in before.grid:
            problems.append(
                f"sweep.grid: {field} was not varied before, so the existing trials would get other names. Values can "
                "be added to a field of the grid; another field needs another sweep"
            )
        elif field not in now.grid:
            problems.append(f"sweep.grid: {field} was removed, but trials of its values exist. Put it back")
        else:
            _compare_lists(f"sweep.grid.{field}", field, before.grid[field], now.grid[field], added, problems)
    if before.search is not None and now.search is not None:
        then, samples = before.search.samples, now.search.samples
        if samples < then:
            problems.append(f"sweep.search.samples: {then} before, {samples} now. Use {then} or more")
        elif samples > then:
            added.append(f"samples {then + 1} to {samples}")


def _compare_lists(
    place: str, what: str, before: Sequence[Any], now: Sequence[Any], added: list[str], problems: list[str]
) -> None:
    gone = [each for each in before if _text(each) not in map(_text, now)]  # 2 and 2.0 make other names of trials
    new = [each for each in now if each not in before]
    if gone:
        whole = ", ".join(map(str, [*before, *new]))
        problems.append(f"{place}: {', '.join(map(str, gone))} was removed, but its trials exist. Use [{whole}]")
    elif new:
        added.append(f"{what} {', '.join(map(str, new))}")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _compare_trials(before: Experiment, now: Experiment, added: list[str], problems: list[str]) -> None:
    trials = {trial.key: trial.experiment for trial in every_trial(now)}
    longer: dict[tuple[int, int], list[str]] = {}
    workers: dict[tuple[int, int], list[str]] = {}
    for old in every_trial(before):
        new = trials.get(old.key)
        if new is None or _but_for_length(new) != _but_for_length(old.experiment):
            why = "sweep.arm_settings, or the order of values"
            problems.append(f"{old.key}: was begun with settings that differ from its settings now ({why})")
            continue
        if new.workers.count != old.experiment.workers.count:
            workers.setdefault((old.experiment.workers.count, new.workers.count), []).append(old.key)
        then, steps = old.experiment.training.steps, new.training.steps
        if steps < then:
            problems.append(f"{STEPS}: {then} before, {steps} now, for {old.key}. Use {then} or more")
        elif steps > then:
            longer.setdefault((then, steps), []).append(old.key)
            if problem := _why_no_more_steps(now, new):
                problems.append(f"{STEPS}: {then} before, {steps} now, but {problem}")
    problems[:] = list(dict.fromkeys(problems))
    every = len(every_trial(before))
    for (then, steps), keys in longer.items():
        added.append(f"steps {then + 1} to {steps}" + ("" if len(keys) == every else f" of {', '.join(keys)}"))
    for (then, count), keys in workers.items():
        of = "" if len(keys) == every else f" of {', '.join(keys)}"
        added.append(f"{WORKERS} {count} instead of {then} from here on{of}")


def _why_no_more_steps(sweep: Experiment, trial: Experiment) -> str | None:
    if sweep.sweep is not None and sweep.sweep.scheduler is not None:
        return "a scheduler has already compared and pruned trials up to their last step"
    if trial.training.schedule != "constant":
        return (
            f"with training.schedule={trial.training.schedule} the learning rate of every step depends on the number "
            "of steps, so a longer run must start anew, under another name. To add steps later, begin with "
            "training.schedule=constant"
        )
    if trial.data.order == "sequential":
        return (
            "with data.order=sequential every task has an equal share of the steps, so a longer run must start anew, "
            "under another name"
        )
    return None


def _but_for_length(experiment: Experiment) -> dict[str, Any]:
    values = experiment.model_dump(mode="json", exclude={"description", "scales", "study", "sweep"})
    training, workers = {**values["training"], "steps": None}, {**values["workers"], "count": None}
    return {**values, "training": training, "workers": workers}


def parsed(values: dict[str, Any]) -> Experiment | None:
    """An experiment as a record holds it; None where it cannot be one today."""
    from pipeline.settings.experiment_file import validate_experiment

    try:
        return validate_experiment(values, "")
    except UserError:
        return None
