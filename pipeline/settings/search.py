"""Searching beyond the grid: settings that are sampled from a space, and trials that are ended early (pruned).

The words are Ray Tune's, and mean what they mean there. The sampling is our own: a value depends on the seed, the
number of the sample and the field's name alone, so that a resumed sweep has the same trials on every machine, every arm
and seed gets the same settings, and a longer search begins with the shorter one's.
"""

import hashlib
import json
import math
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline import measures
from pipeline.settings.settings import Count, NonNegative, Settings
from pipeline.settings.wrong_settings import did_you_mean

_MOST = 10**12
Whole = Annotated[int, Field(ge=-_MOST, le=_MOST)]
Number = Whole | Annotated[float, Field(ge=-_MOST, le=_MOST, allow_inf_nan=False)]
_Listed = Field(strict=False)  # a list, as YAML has it, serves as a tuple; what is in it stays strict
_DIGITS = 4  # of a sampled number: as many as anybody reads
_NARROW = 100  # how many times its width a domain's numbers are, from where on so few digits do not tell them apart
_TRIES = 1000  # for each sample, until one comes that is not there yet
COMPARED: dict[str, Literal["min", "max"]] = {
    measures.HELD_OUT_LOSS: "min",
    measures.TASK_LOSS: "min",
    measures.HELD_OUT_TOKEN_ACCURACY: "max",
}
_NO_PBT = (
    "population based training copies one trial's weights to another and changes settings on the way: no trial would "
    "then be one experiment, and the arms no longer paired. Use asha"
)


class Domain(Settings):
    """Where a setting's value is sampled from: exactly one of these."""

    # [low, high]; loguniform evenly in the logarithm; quniform the multiples of a third number; randint without high
    uniform: Annotated[tuple[Number, Number], _Listed] | None = None
    loguniform: Annotated[tuple[Number, Number], _Listed] | None = None
    quniform: Annotated[tuple[Number, Number, Number], _Listed] | None = None
    randint: Annotated[tuple[Whole, Whole], _Listed] | None = None
    choice: Annotated[tuple[Any, ...], _Listed] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_one_that_there_is(cls, values: Any) -> Any:
        names = list(cls.model_fields)
        if not isinstance(values, dict) or not values:
            raise ValueError(f": found {values!r}; expected one of {', '.join(names)}, as in {{uniform: [low, high]}}")
        keys = list(values)
        for name in keys:
            if name not in names:
                near = did_you_mean(str(name), names)
                raise ValueError(f"{name}: no such domain{near}; there are {', '.join(names)}")
        if len([name for name in keys if values[name] is not None]) != 1:
            raise ValueError(f"{keys[0]}: expected exactly one of {', '.join(names)}")
        return values

    @model_validator(mode="after")
    def _holds_a_value(self) -> "Domain":
        kind = self.kind
        if self.choice is not None:
            written = [json.dumps(value, sort_keys=True) for value in self.choice]
            if not written or len(set(written)) != len(written):
                raise ValueError(f"choice: expected different values, at least one; found {list(self.choice)}")
            return self
        low, high, *q = getattr(self, kind)
        if not low < high:
            raise ValueError(f"{kind}: expected low < high; found {low} and {high}")
        if kind == "loguniform" and low <= 0:
            raise ValueError(f"loguniform: expected low > 0; found {low}")
        if q and not (q[0] > 0 and high - low <= _MOST * q[0] and _holds_a_multiple(low, high, q[0])):
            raise ValueError(f"quniform: expected q > 0 with a multiple between {low} and {high}; found {q[0]}")
        return self

    @property
    def kind(self) -> str:
        """Which of the domains this is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1) of the domain, every value being as likely as its share of the places."""
        if self.choice is not None:
            return self.choice[int(place * len(self.choice))]
        if self.randint is not None:
            return self.randint[0] + int(place * (self.randint[1] - self.randint[0]))
        if self.quniform is not None:
            first, last = _multiples(*self.quniform)
            value = (first + int(place * (last - first + 1))) * self.quniform[2]
            return value if isinstance(value, int) else float(f"{value:.12g}")
        if self.loguniform is not None:
            low, high = self.loguniform
            return _rounded(math.exp(math.log(low) + place * (math.log(high) - math.log(low))), low, high)
        assert self.uniform is not None
        low, high = self.uniform
        return _rounded(low + (high - low) * place, low, high)

    def ends(self) -> tuple[Any, ...]:
        """The values that any sampled one lies between; for a choice, all."""
        return self.choice if self.choice is not None else (self.at(0.0), self.at(1.0 - 1e-12))


class SearchConfig(Settings):
    """How many samples there are, and of what space. All arms and seeds are run with each."""

    samples: Annotated[int, Field(ge=1, le=10_000)] = Field(
        description="number of samples of the space; every arm and seed runs each"
    )
    seed: NonNegative = Field(0, description="seed of the samples; with more samples, the first ones stay the same")
    space: Annotated[dict[str, Domain], Field(min_length=1)] = Field(
        description="for example {training.learning_rate: {loguniform: [1e-4, 1e-2]}, model.layers: {choice: [4, 6]}}"
    )


class AshaConfig(Settings):
    """Asynchronous successive halving: at grace_steps, grace_steps * reduction_factor, ... a trial whose metric is not
    among the best 1/reduction_factor of those that came as far is pruned.

    Only samples compete with each other: the arm, the seed and the cell of the grid are what is being compared.
    """

    metric: str = Field(
        "held_out/loss",
        description="metric by which trials are compared: "
        + ", ".join(COMPARED)
        + ", or a score of the task that has a "
        "better end, as held_out/bits_per_byte of text",
    )
    grace_steps: Count = Field(description="no trial is pruned before this step")
    reduction_factor: Annotated[float, Field(gt=1, le=1000)] = Field(3.0, description="one of so many trials continues")
    across_arms: bool = Field(False, description="compare trials of different arms, so that whole arms may be pruned")

    @field_validator("metric", mode="before")
    @classmethod
    def _by_its_name_today(cls, value: Any) -> Any:
        return measures.current_name(value) if isinstance(value, str) else value

    @field_validator("metric")
    @classmethod
    def _is_measured_along_the_way(cls, value: str) -> str:
        if value not in COMPARED and not measures.score_of(value):
            near = did_you_mean(value, COMPARED)
            raise ValueError(
                f": found {value!r}{near}; expected one of {', '.join(COMPARED)}, or held_out/NAME, a score of the task"
            )
        return value

    @property
    def mode(self) -> Literal["min", "max"] | None:
        """Which end of the metric is better; None of a task's own score, of which the task says it."""
        return COMPARED.get(self.metric)


class SchedulerConfig(Settings):
    """What prunes trials."""

    asha: AshaConfig

    @model_validator(mode="before")
    @classmethod
    def _is_not_pbt(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if str(name).lower() in ("pbt", "pb2", "population_based_training"):
                raise ValueError(f"{name}: {_NO_PBT}")
        return values


def search_problem(grid: Collection[str], search: SearchConfig | None, scheduler: SchedulerConfig | None) -> str | None:
    """What is wrong with a sweep's search; begins with the name of a setting. None where nothing is."""
    space = search.space if search else {}
    for field in space:
        if field in grid:
            return f"search.space: {field} stands in grid too; a setting is either listed or sampled"
    if scheduler is None:
        return None
    if search is None and not scheduler.asha.across_arms:
        return (
            "scheduler: prunes samples, but there is no search; arms, seeds and the grid are what is being compared. "
            "Add a search (search: {samples: ..., space: ...}), or let arms compete (across_arms: true)"
        )
    if "training.steps" in space:
        return (
            "search.space: training.steps cannot be sampled beside a scheduler, which compares trials at a step: their "
            "learning rates would stand at different points of their schedules. Put it into grid"
        )
    return None


def sample(search: SearchConfig) -> tuple[dict[str, Any], ...]:
    """The settings of every sample, by field; no two samples are alike.

    Raises:
        ValueError: the space does not hold so many; names the field `samples`.
    """
    samples: dict[str, dict[str, Any]] = {}
    for sample in range(search.samples):
        for again in range(_TRIES):
            values = {
                field: domain.at(_place(search.seed, sample, again, field)) for field, domain in search.space.items()
            }
            key = json.dumps(values, sort_keys=True)
            if key not in samples:
                samples[key] = values
                break
        else:
            raise ValueError(
                f"samples: found {search.samples}, but the space has only about {len(samples)} different ones. Ask for "
                "fewer, widen the space, or put the values into `grid`."
            )
    return tuple(samples.values())


def _place(seed: int, sample: int, again: int, field: str) -> float:
    """Evenly spread over [0, 1), and the same for ever."""
    digest = hashlib.sha256(f"{seed}/{sample}/{again}/{field}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def _multiples(low: float, high: float, q: float) -> tuple[int, int]:
    """The first and the last multiple of q in [low, high], divided by q."""
    slack = 1e-9
    return math.ceil(low / q - slack), math.floor(high / q + slack)


def _holds_a_multiple(low: float, high: float, q: float) -> bool:
    first, last = _multiples(low, high, q)
    return first <= last


def _rounded(value: float, low: float, high: float) -> float:
    size = max(abs(low), abs(high)) / (high - low)
    digits = _DIGITS + (math.ceil(math.log10(size)) if size > _NARROW else 0)  # or all samples would be of a few values
    return float(min(max(float(f"{value:.{digits}g}"), low), high))
