"""The trials of a sweep: arms x seeds x the cells of its grid and space."""

import hashlib
import itertools
from typing import Any

from pipeline.errors import UserError
from pipeline.settings.config import Experiment, Name, SweepConfig, replace
from pipeline.settings.search import sample
from pipeline.settings.settings import Settings
from pipeline.settings.varied import check_pruning, check_varied

_OF_THE_SWEEP: dict[str, Any] = {"sweep": None, "study": None, "scales": {}}  # and not of its trials


class Trial(Settings):
    """One cell of a sweep. `key` is unique in the sweep and safe as a folder's name."""

    key: Name
    experiment: Experiment


def trials_of(experiment: Experiment, source: str = "sweep") -> tuple[Trial, ...]:
    """Every trial of the sweep, seeds outermost, so that a whole comparison is there as early as can be.

    A trial is the experiment with fields replaced and without what is of the sweep: within a seed, all arms share
    everything but the arm.

    Raises:
        UserError: there is no sweep, or a trial of it cannot be; names the field.
    """
    sweep = check_sweep(experiment, source)
    check_varied(sweep, Experiment, source)
    cells = _cells(sweep, source)
    trials: dict[str, Trial] = {}
    for seed, (names, cell), arm in itertools.product(sweep.seeds, cells, sweep.arms):
        own = sweep.arm_settings.get(arm, {})
        if twice := sorted(own.keys() & cell.keys()):
            raise UserError(
                f"{source}: {twice[0]} is both in sweep.arm_settings.{arm} and varied by the sweep; expected once"
            )
        changes = {**cell, **own, "training.arm": arm, "training.seed": seed, **_OF_THE_SWEEP}
        key = trial_key(arm, seed, *names)
        if key in trials:  # names that differ only in what no folder's name may hold
            key = f"{key[:55]}-{_short_hash(repr((arm, cell)))}"
        trials[key] = Trial(key=key, experiment=replace(experiment, changes, f"{source}, trial {key}"))
        if sweep.scheduler:
            check_pruning(sweep.scheduler.asha, trials[key].experiment.training, source)
    return tuple(trials.values())


def check_sweep(experiment: Experiment, source: str = "sweep") -> SweepConfig:
    """The experiment's sweep.

    Raises:
        UserError: it has none.
    """
    if experiment.sweep is None:
        raise UserError(f"{source}: has no `sweep` section. Add one with `arms` and `seeds`, or use `tiny-onn train`.")
    return experiment.sweep


def every_trial(experiment: Experiment, source: str = "sweep") -> tuple[Trial, ...]:
    """`trials_of` a sweep, or the one trial of an experiment without one."""
    if experiment.sweep is not None:
        return trials_of(experiment, source)
    training = experiment.training
    return (Trial(key=trial_key(training.arm, training.seed), experiment=experiment),)


def arms_setting(experiment: Experiment) -> str:
    """The setting that names the arms of its trials."""
    return "training.arm" if experiment.sweep is None else "sweep.arms"


def _cells(sweep: SweepConfig, source: str) -> list[tuple[list[str], dict[str, Any]]]:
    """What differs between trials beside arm and seed: (names for the trial's key, values by field) of each."""
    try:
        samples = sample(sweep.search) if sweep.search else ({},)
    except ValueError as error:
        raise UserError(f"{source}: sweep.search.{error}") from error
    cells = []
    for values in itertools.product(*sweep.grid.values()):
        listed = dict(zip(sweep.grid, values, strict=True))
        names = [f"{field.split('.')[-1]}_{value}" for field, value in listed.items()]
        for number, settings in enumerate(samples, start=1):
            cells.append(([*names, f"sample_{number}"] if sweep.search else names, {**listed, **settings}))
    return cells


def trial_key(arm: str, seed: int, *cell: str) -> str:
    """What a trial's folder is called: arm, seed and, in a grid, the cell; safe as a name, at most 64 characters."""
    key = "-".join([arm, f"s{seed}", *cell])
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in key)
    if not cleaned[0].isalnum():
        cleaned = f"x{cleaned}"
    return cleaned if len(cleaned) <= 64 else f"{cleaned[:55]}-{_short_hash(key)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
