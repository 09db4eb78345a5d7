"""What an experiment is: frozen settings that refuse unknown keys and are validated whole before anything starts."""

import difflib
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.yaml_file import read_yaml
from tiny_onn.learning_cost import can_be_fused, learning_cost_names

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Dataset = Literal["arc-agi-1", "arc-agi-2", "folder"]


class Settings(BaseModel):
    """A frozen, strict group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(Settings):
    """Which tasks, how they become sequences, and which part is held out."""

    dataset: Dataset = "arc-agi-2"
    folder: str | None = Field(None, description="with dataset: folder, a folder of ARC JSON files")
    max_tokens: Annotated[int, Field(ge=16, le=65536)] = Field(512, description="longer tasks are counted, not used")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="part of the training tasks held out")
    dihedral_views: Annotated[int, Field(ge=1, le=8)] = Field(8, description="rotations and reflections of a task")
    colour_permutations: Annotated[int, Field(ge=1, le=64)] = Field(1, description="colourings of each view, 0 fixed")
    seed: NonNegative = 0
    rows_per_group: Count = Field(16, description="rows of a Parquet row group, the unit that ranks share out")
    rows_per_shard: Count = Field(4096, description="rows of a Parquet file")

    @model_validator(mode="after")
    def _folder_goes_with_dataset(self) -> "DataConfig":
        if (self.dataset == "folder") != (self.folder is not None):
            raise ValueError("`folder` names a path exactly when `dataset` is 'folder'")
        return self


class ModelConfig(Settings):
    """The size of the transformer."""

    hidden: Count = 64
    layers: Count = 6
    heads: Count = 2
    gain: Rate = 1.0

    @model_validator(mode="after")
    def _heads_are_even(self) -> "ModelConfig":
        multiple = 2 * self.heads
        if self.hidden % multiple:
            below = self.hidden // multiple * multiple
            near = " or ".join(str(n) for n in (below, below + multiple) if n)
            raise ValueError(
                f"hidden={self.hidden} cannot be cut into {self.heads} heads of even width, as RoPE needs; "
                f"nearest: hidden={near}"
            )
        return self


class TrainingConfig(Settings):
    """One training run: which arm, for how long, how fast."""

    arm: str = Field("per_token", description="the learning cost: " + ", ".join(learning_cost_names()))
    seed: NonNegative = 0
    steps: Count = 300
    batch_tokens: Count = Field(1536, description="tokens a step, padding included, over all workers")
    learning_rate: Rate = 3e-3
    router_learning_rate: Rate = 3e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup_steps: NonNegative = 30
    clip_norm: Rate = 1.0
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a loss or gradient that is not finite: stop with evidence, or skip the step and count it"
    )
    precision: Literal["float64", "float32", "bfloat16"] = "float32"
    engine: Literal["auto", "fused", "hooks"] = Field(
        "auto", description="auto: fused, a single backward pass, for costs a token and the control; else hooks"
    )
    compile: Literal["auto", "eager", "elementwise", "blocks"] = Field(
        "auto", description="by torch.compile; auto: elementwise where there is a compiler. blocks: faster, if compiled"
    )
    log_every: Count = 10
    evaluate_every: Count = 100
    checkpoint_every: Count = 100
    keep_checkpoints: Count = 2
    check_replicas_every: NonNegative = Field(100, description="steps between comparisons of the workers; 0 for never")
    prototype_snapshots: NonNegative = Field(4, description="prototype distributions kept over the course of a run")
    generate_tasks: NonNegative = Field(16, description="held-out tasks decoded greedily at the end; 0 for none")

    @model_validator(mode="after")
    def _arm_is_known(self) -> "TrainingConfig":
        names = learning_cost_names()
        if self.arm not in names and ":" not in self.arm:
            raise ValueError(f"unknown arm {self.arm!r}{did_you_mean(self.arm, names)}; there are: {', '.join(names)}")
        if self.engine == "fused" and self.arm in names and not can_be_fused(self.arm):
            raise ValueError(f"engine: fused cannot run arm {self.arm!r}, a cost of a whole layer; use engine: auto")
        if self.compile == "blocks" and self.arm in names and not can_be_fused(self.arm):
            raise ValueError(f"compile: blocks cannot run arm {self.arm!r}, which needs hooks; use compile: auto")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be smaller than steps={self.steps}")
        return self


class WorkersConfig(Settings):
    """What one trial asks of the cluster."""

    count: Count = 1
    cpus: Annotated[float, Field(gt=0, le=1024)] = Field(1.0, description="CPUs a worker; a fraction shares a core")
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    timeout_s: Annotated[int, Field(ge=10, le=86400)] = Field(120, description="a collective's time limit")
    max_failures: NonNegative = Field(1, description="how often a trial is taken up again after a worker's death")


class SweepConfig(Settings):
    """Arms x seeds x any other field, by its dotted name."""

    arms: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    grid: dict[str, tuple[Any, ...]] = Field({}, description="for example {model.layers: [4, 6, 8]}")
    max_concurrent: Count | None = Field(None, description="trials at once; as many as fit by default")

    @model_validator(mode="after")
    def _no_repeats(self) -> "SweepConfig":
        for field, values in (("arms", self.arms), ("seeds", self.seeds), *self.grid.items()):
            if len({json.dumps(v) for v in values}) != len(values):
                raise ValueError(f"{field} names a value twice: {list(values)}")
            if not values:
                raise ValueError(f"grid.{field} is empty")
        return self


class Experiment(Settings):
    """One training run, whole: what `tiny-onn train` runs and what each trial of a sweep is."""

    name: Name
    description: str = ""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()
    sweep: SweepConfig | None = None

    @model_validator(mode="after")
    def _a_sequence_fits_a_batch(self) -> "Experiment":
        share = self.training.batch_tokens // self.workers.count
        if share < self.data.max_tokens:
            raise ValueError(
                f"training.batch_tokens={self.training.batch_tokens} over workers.count={self.workers.count} leaves "
                f"{share} tokens a worker, fewer than data.max_tokens={self.data.max_tokens}; "
                f"use batch_tokens >= {self.data.max_tokens * self.workers.count}"
            )
        return self

    def digest(self) -> str:
        """Sixteen hex digits that change with any setting."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Trial(Settings):
    """One cell of a sweep. `key` is unique in the sweep and safe as a folder's name."""

    key: Name
    experiment: Experiment


def did_you_mean(found: str, names: Any) -> str:
    """` (did you mean 'x'?)` for the nearest of `names`, or nothing."""
    near = difflib.get_close_matches(found, list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def read_experiment(path: Path) -> Experiment:
    """The experiment in a YAML file, with every problem found named at once.

    Raises:
        UserError: names file, field, what was found and what was expected.
    """
    return validate_experiment(read_yaml(path), str(path))


def validate_experiment(values: dict[str, Any], source: str) -> Experiment:
    """`values` as an Experiment; `source` is named in the error."""
    try:
        experiment = Experiment.model_validate_json(json.dumps(values))
    except (ValidationError, ValueError, TypeError) as error:
        raise UserError(_explain(error, values, source)) from error
    if experiment.sweep is not None:
        trials_of(experiment, source)
    return experiment


def trials_of(experiment: Experiment, source: str = "sweep") -> tuple[Trial, ...]:
    """Every trial of the sweep, seeds outermost, so that a whole comparison is there as early as can be.

    A trial is the experiment with fields replaced and without its `sweep`: within a seed, all arms share everything
    but the arm.
    """
    sweep = experiment.sweep
    if sweep is None:
        raise UserError(f"{source}: has no `sweep` section. Add one with `arms` and `seeds`, or use `tiny-onn train`.")
    fields = list(sweep.grid)
    trials = []
    for seed, cell, arm in itertools.product(sweep.seeds, itertools.product(*sweep.grid.values()), sweep.arms):
        changes = {**dict(zip(fields, cell, strict=True)), "training.arm": arm, "training.seed": seed, "sweep": None}
        cell_name = [f"{field.split('.')[-1]}_{value}" for field, value in zip(fields, cell, strict=True)]
        key = "-".join([arm, f"s{seed}", *cell_name])
        trials.append(Trial(key=_safe(key), experiment=replace(experiment, changes, source)))
    return tuple(trials)


def replace(experiment: Experiment, changes: dict[str, Any], source: str) -> Experiment:
    """`experiment` with fields, named by dots, replaced and validated anew."""
    values = experiment.model_dump(mode="json")
    for field, value in changes.items():
        *groups, last = field.split(".")
        place: Any = values
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise UserError(f"{source}: {field!r} is no setting{did_you_mean(field, setting_names())}")
        place[last] = value
    try:
        return Experiment.model_validate_json(json.dumps(values))
    except (ValidationError, ValueError, TypeError) as error:
        raise UserError(_explain(error, values, f"{source}, with {changes}")) from error


def setting_names(model: type[BaseModel] = Experiment, prefix: str = "") -> list[str]:
    """Every setting's dotted name."""
    names = []
    for name, info in model.model_fields.items():
        kinds = [k for k in (info.annotation, *get_args(info.annotation)) if isinstance(k, type)]
        group = next((k for k in kinds if issubclass(k, BaseModel)), None)
        names.append(prefix + name)
        if group:
            names += setting_names(group, f"{prefix}{name}.")
    return names


def _safe(key: str) -> str:
    cleaned = "".join(c if c.isalnum() or c in "._-" else "_" for c in key)
    if len(cleaned) <= 64:
        return cleaned
    return f"{cleaned[:55]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _explain(error: Exception, values: Any, source: str) -> str:
    if not isinstance(error, ValidationError):
        return f"{source}: {error}"
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        found = problem["input"]
        if problem["type"] == "extra_forbidden":
            lines.append(f"{place}: no such setting{did_you_mean(place, setting_names())}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: is missing")
        elif problem["type"] == "value_error":
            lines.append(f"{place + ': ' if place else ''}{problem['ctx']['error']}")
        else:
            shown = "not a finite number" if isinstance(found, float) and not math.isfinite(found) else repr(found)
            lines.append(f"{place}: found {shown}; {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return f"{source}:\n" + "\n".join(f"  {line}" for line in lines)
