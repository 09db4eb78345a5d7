"""Which settings a sweep may vary between its trials, and whether the values that it names for them can be."""

import itertools
import json
import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.settings.near_names import setting_hint
from pipeline.settings.search import AshaConfig, Domain
from pipeline.settings.wrong_settings import setting_names

if TYPE_CHECKING:
    from pipeline.settings.config import SweepConfig, TrainingConfig

MOST_TRIALS = 10_000
_LISTED_APART = ("training.arm", "training.seed")
_GROUPS = ("model.", "training.", "workers.", "data.order")  # the order says nothing of which rows there are


def check_varied(sweep: "SweepConfig", experiment: type[BaseModel], source: str) -> None:
    """Only what a trial may have to itself is varied: all trials of a sweep share one data set, one name, one folder.

    Raises:
        UserError: names the field, and what is wrong with it; or there are too many trials.
    """
    every = setting_names(experiment)
    groups = {name.rpartition(".")[0] for name in every}
    free = [name for name in every if name.startswith(_GROUPS) and name not in {*groups, *_LISTED_APART}]
    space = sweep.search.space if sweep.search else {}
    own = ((f"sweep.arm_settings.{arm}", f) for arm, settings in sweep.arm_settings.items() for f in settings)
    varied = (("sweep.grid", f) for f in sweep.grid), (("sweep.search.space", f) for f in space), own
    for place, field in itertools.chain(*varied):
        if field not in every:
            raise UserError(f"{source}: {place}: {field!r} is no setting{setting_hint(field, free)}")
        if field not in free:
            raise UserError(
                f"{source}: {place}: {field!r} cannot differ between the trials of a sweep; expected a setting of "
                "model, training or workers, or data.order. Arms and seeds have their own lists; for other data make "
                "another sweep."
            )
    for field, domain in space.items():
        _check_ends(field, domain, experiment, source)
    samples = sweep.search.samples if sweep.search else 1
    wanted = len(sweep.arms) * len(sweep.seeds) * math.prod(map(len, sweep.grid.values())) * samples
    if wanted > MOST_TRIALS:
        raise UserError(
            f"{source}: sweep: arms x seeds x grid x samples make {wanted} trials; at most {MOST_TRIALS} are possible"
        )


def check_pruning(asha: AshaConfig, training: "TrainingConfig", source: str) -> None:
    """Whether a trial can be pruned at all: its metric is measured after grace_steps and before its last step.

    Raises:
        UserError: it cannot.
    """
    intervals: tuple[int, ...] = (training.evaluate_every,)
    if asha.metric.startswith("train/"):
        intervals = (training.log_every, training.evaluate_every, training.checkpoint_every)
    every, first = min(intervals), min(_up_to_a_multiple(max(asha.grace_steps, 1), each) for each in intervals)
    if first >= training.steps:
        raise UserError(
            f"{source}: sweep.scheduler.asha.grace_steps: found {asha.grace_steps}, but with {asha.metric} measured "
            f"every {every} steps nothing could be pruned before a trial's end at step {training.steps}. Lower "
            "grace_steps, or measure more often."
        )


def _up_to_a_multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _check_ends(field: str, domain: Domain, experiment: type[BaseModel], source: str) -> None:
    """Whether the setting may be at either end of the domain, so that no refusal depends on what is sampled."""
    group, _, name = field.rpartition(".")
    info = experiment.model_fields[group].annotation.model_fields[name]  # type: ignore[union-attr]
    kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    adapter = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    for value in domain.ends():
        try:
            adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise UserError(
                f"{source}: sweep.search.space.{field}.{domain.kind}: {value!r} may be sampled; "
                f"{message[0].lower() + message[1:]}{_whole(message, domain)}"
            ) from error


def _whole(message: str, domain: Domain) -> str:
    if "valid integer" not in message or domain.kind in ("choice", "randint"):
        return ""
    return "; for whole numbers use randint: [low, high], or quniform: [low, high, q] with all three of them whole"
