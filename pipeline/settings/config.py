"""What an experiment is: frozen settings that refuse unknown keys and are validated whole before anything starts."""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from pipeline import measures
from pipeline.errors import UserError
from pipeline.renamed import current_settings
from pipeline.settings.built_in_tasks import BUILT_IN_TASKS, DEFAULT_TASK, not_of
from pipeline.settings.changes import put
from pipeline.settings.search import COMPARED, SchedulerConfig, SearchConfig, search_problem
from pipeline.settings.settings import Count, NonNegative, Rate, Settings
from pipeline.settings.wrong_settings import (
    NAME_RULE,
    did_you_mean,
    explain,
    plain,
    setting_names,
    together,
    unknown_varied,
    why_no_setting,
)
from tiny_onn.arms import GRANULARITY, canonical

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=_NAME)]
Dataset = Literal["arc-agi-1", "arc-agi-2", "folder"]
MOST_WORKERS = 1024  # of a trial that is resumed with another number of workers
OPTIMIZERS = ("adamw", "sgd")
BEFORE: dict[str, Any] = {  # what a setting was before there was it, in digests and records that lack it
    "data.task": DEFAULT_TASK,
    "data.order": "mixed",
    "training.schedule": "linear",
    "training.micro_batches": 1,
    "training.optimizer": "adamw",
}
_IMPORTED_ARM = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
_IMPORTED = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")


def _arm_problem(arm: str) -> str | None:
    """Why `arm` cannot be one; None where it is known, or names an attribute to be imported when a run starts."""
    names = tuple(GRANULARITY)
    if canonical(arm) in names or _IMPORTED_ARM.fullmatch(arm):
        return None
    return (
        f"unknown arm {arm!r}{did_you_mean(arm, names)}; there are: {', '.join(names)}, or package.module:attribute "
        "for an arm or a cost of your own"
    )


def _named_today(arm: Any) -> Any:
    """The arm's name of today, so that a config of before means what it did."""
    return canonical(arm) if isinstance(arm, str) else arm


Arm = Annotated[str, BeforeValidator(_named_today)]


def _others_setting(group: str, settings: Settings, task: str) -> str | None:
    """Which setting of a group is that of another task, and is set; None where none is."""
    for name, other in sorted(not_of(task).items()):
        named, _, field = name.partition(".")
        if named == group and getattr(settings, field) != type(settings).model_fields[field].get_default():
            return f"{field}: found {getattr(settings, field)!r}, a setting of task: {other}, but task: {task}"
    return None


class DataConfig(Settings):
    """What is learnt, from which data, and which part is held out."""

    task: Annotated[str, Field(min_length=1)] = Field(
        DEFAULT_TASK,
        description="the task: arc, text, or package.module:attribute for your own; see docs/tasks.md",
    )
    dataset: Dataset = Field(
        "arc-agi-2",
        description="ARC only: one of the two sets of tasks that ship with the package, or the tasks in data.folder",
    )
    folder: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="for dataset: folder, a folder or file of ARC tasks; for task: text, a folder or file of "
        "UTF-8 text (default: the prose of Python's own help)",
    )
    options: dict[str, Any] = Field({}, description="settings of your own task, for example {letters: 5}")
    pairs_per_task: Annotated[int, Field(ge=2, le=64)] | None = Field(
        None,
        description="ARC only: for a file that is a list of pairs, the number of pairs per task; the last is its test",
    )
    max_tokens: Annotated[int, Field(ge=16, le=65536)] = Field(
        512, description="longest sequence; longer ARC tasks are counted and left out, text is cut into passages"
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="fraction of the training data that is held out"
    )
    held_out_for: Literal["test", "selection"] = Field(
        "test",
        description="test; or selection, to choose settings: other tasks are held out, and the test tasks are not"
        " used at all",
    )
    dihedral_views: Annotated[int, Field(ge=1, le=8)] = Field(
        8, description="ARC only: number of rotations and reflections of a task"
    )
    colour_permutations: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="ARC only: number of colourings of each view; colour 0 stays"
    )
    seed: NonNegative = Field(0, description="seed of the held-out split and of the views, the same for all trials")
    order: Literal["mixed", "sequential"] = Field(
        "mixed",
        description="mixed: rows of all tasks in every batch; sequential: task after task, in an order drawn from "
        "data.seed, each for an equal share of training.steps; see docs/tasks.md",
    )
    rows_per_group: Count = Field(
        16, description="rows per Parquet row group, the unit that is distributed over the ranks"
    )
    rows_per_shard: Count = Field(4096, description="rows per Parquet file")

    @model_validator(mode="after")
    def _settings_are_of_the_task(self) -> "DataConfig":
        if self.task not in BUILT_IN_TASKS and not _IMPORTED.fullmatch(self.task):
            raise ValueError(
                f"task: found {self.task!r}{did_you_mean(self.task, BUILT_IN_TASKS)}; expected one of "
                f"{', '.join(BUILT_IN_TASKS)}, or package.module:attribute for a task of your own"
            )
        if problem := _others_setting("data", self, self.task):
            raise ValueError(problem)
        built_in = BUILT_IN_TASKS.get(self.task)
        if built_in and (problem := built_in.problem(self)):
            raise ValueError(problem)
        return self

    def at_default(self, *names: str) -> set[str]:
        """Those of the settings that have their default."""
        return {name for name in names if getattr(self, name) == type(self).model_fields[name].get_default()}


class ModelConfig(Settings):
    """The model, and how it routes."""

    hidden: Annotated[int, Field(ge=1, le=65536)] = Field(
        64, description="width of the residual stream, and number of experts per layer; a multiple of 2 x heads"
    )
    layers: Annotated[int, Field(ge=1, le=1000)] = Field(6, description="number of transformer blocks")
    heads: Annotated[int, Field(ge=1, le=4096)] = Field(2, description="number of attention heads")
    gain: Rate = Field(1.0, description="factor on the routing logits")
    density: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="fraction of the experts that a token may use: the gate's limit, or the target of a regulation",
    )
    gate_parameter: Literal["off", "zero", "uniform", "scalar"] = Field(
        "off", description="parameter G of the routing logits; zero is the decision record's, which never moves"
    )

    build: str | None = Field(
        None,
        description="package.module:function that builds your own model from these settings; see docs/models.md",
    )
    options: dict[str, Any] = Field({}, description="settings of your own model, for example {kernel: 3}")

    @model_validator(mode="after")
    def _heads_are_even(self) -> "ModelConfig":
        if self.build is not None and not _IMPORTED.fullmatch(self.build):
            raise ValueError(f"build: found {self.build!r}; expected package.module:function")
        multiple = 2 * self.heads
        if self.build is None and self.hidden % multiple:
            below = self.hidden // multiple * multiple
            near = " or ".join(str(n) for n in (below, below + multiple) if n)
            raise ValueError(
                f"hidden={self.hidden} cannot be cut into {self.heads} heads of even width, as RoPE needs; "
                f"nearest: hidden={near}"
            )
        return self


Part = Annotated[str, Field(min_length=1)]


class PartsConfig(Settings):
    """Parts of the arm to replace, by name or as package.module:attribute; the arm's own where nothing is said."""

    gate: Part | None = Field(None, description="mas, relu, hard, open, softmax, magnitude, magnitude_ste")
    signal: Part | None = Field(None, description="goodness, signed, opening, benefit, subtractive")
    cost: Part | None = Field(None, description="per_token, relative, fisher, aggregated, metric_only, metric_max")
    objective: Part | None = Field(
        None, description="jsd, cross_entropy, entropy_of_sum, entropy_of_difference, policy, straight_through"
    )
    regulation: Part | None = Field(
        None, description="adaptive_l1, load_balance, bias, quantile, balanced, sharpness, off"
    )
    sharpness: Annotated[float, Field(gt=0, lt=100)] | None = Field(
        None, description="exponent on the target distribution of Goodness"
    )
    token_weight: Literal["uniform", "signal"] | None = Field(None, description="weight of each token in the meta-loss")
    task_weight: Annotated[float, Field(ge=0)] | None = Field(
        None, description="weight of the task loss for the router"
    )
    goodness_weight: Annotated[float, Field(ge=0)] | None = Field(
        None, description="weight of the meta-loss for the router"
    )


class TrainingConfig(Settings):
    """One training run: which arm, for how long, how fast."""

    arm: Arm = Field("per_token", description="what teaches the router, through which gate: " + ", ".join(GRANULARITY))
    parts: PartsConfig = PartsConfig()
    seed: NonNegative = Field(
        0, description="seed of the initialisation and of the order of batches; a sweep uses sweep.seeds"
    )
    steps: Count = Field(300, description="number of optimizer steps; `tiny-onn plan` shows the epochs")
    batch_tokens: Count = Field(1536, description="tokens per step over all workers, padding included")
    micro_batches: Count = Field(
        1,
        description="number of parts of a worker's batch that run one after the other: less memory, the same step"
        " up to rounding",
    )
    optimizer: str = Field(
        "adamw",
        description="optimizer of both streams: adamw, sgd (momentum 0.9), or package.module:attribute, called "
        "with parameter groups and lr",
    )
    learning_rate: Rate = Field(3e-3, description="highest learning rate of the computation parameters")
    router_learning_rate: Rate = Field(3e-3, description="highest learning rate of the router's parameters P and G")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear",
        description="of both learning rates after warm-up: linear and cosine fall to a tenth at the last step; "
        "with constant, steps can be added later",
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="weight decay of the computation parameters' matrices; other parameters have none"
    )
    warmup_steps: NonNegative = Field(
        30, description="steps over which both learning rates rise linearly; fewer than steps"
    )
    clip_norm: Rate = Field(
        1.0, description="largest gradient norm of the computation parameters; larger gradients are scaled down"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="at a loss or gradient that is not finite: stop with evidence, or skip the step and count it",
    )
    precision: Literal["float64", "float32", "bfloat16"] = Field(
        "float32", description="of the computation; with bfloat16 the forward pass uses it, and parameters stay float32"
    )
    engine: Literal["auto", "fused", "hooks"] = Field(
        "auto", description="auto: fused (one backward pass), and hooks for costs of a whole layer, which need it"
    )
    compile: Literal["auto", "eager", "elementwise", "blocks"] = Field(
        "auto",
        description="by torch.compile; auto, where there is a compiler: elementwise, or from 5,000 steps on blocks, "
        "which are faster and take half a minute to compile once; never blocks with a constant schedule",
    )
    log_every: Count = Field(10, description="steps between two log entries; evaluated and saved steps are logged, too")
    evaluate_every: Count = Field(100, description="steps between two evaluations of the held-out tasks")
    checkpoint_every: Count = Field(100, description="steps between two checkpoints; there is one more at the end")
    keep_checkpoints: Count = Field(2, description="how many of the newest checkpoints are kept; the best is kept, too")
    check_replicas_every: NonNegative = Field(
        100, description="steps between two comparisons of the workers' replicas; 0: never"
    )
    prototype_snapshots: NonNegative = Field(4, description="number of prototype distributions recorded during a run")
    decode_tasks: NonNegative = Field(
        16,
        description="number of held-out tasks, and of evaluation tasks, that are decoded greedily at the end; 0: none",
    )
    vote_views: Annotated[int, Field(ge=1, le=8)] = Field(
        8, description="ARC only: number of training views that vote for the two attempts of pass_at_2"
    )
    score_evaluation: Literal["end", "always", "never"] = Field(
        "end",
        description="when evaluation tasks are scored: at the end only, whenever the held-out tasks are, or never",
    )

    observer: str | None = Field(
        None, description="package.module:function of your own, called at each logged step; see docs/inside.md"
    )
    routing_maps: Annotated[int, Field(ge=0, le=16)] = Field(
        2, description="number of held-out tasks whose routing is drawn at each evaluation, token by token"
    )

    @model_validator(mode="after")
    def _arm_is_known(self) -> "TrainingConfig":
        problem = _arm_problem(self.arm)
        if problem:
            raise ValueError(f"arm: {problem}")
        if self.observer is not None and not _IMPORTED_ARM.fullmatch(self.observer):
            raise ValueError(f"observer: found {self.observer!r}; expected package.module:function")
        if self.optimizer not in OPTIMIZERS and not _IMPORTED_ARM.fullmatch(self.optimizer):
            near = did_you_mean(self.optimizer, OPTIMIZERS)
            raise ValueError(
                f"optimizer: found {self.optimizer!r}{near}; expected {', '.join(OPTIMIZERS)}, or "
                "package.module:attribute for one of your own"
            )
        of_a_layer = GRANULARITY.get(self.parts.cost or self.arm) == "layer"
        if self.engine == "fused" and of_a_layer:
            raise ValueError(f"engine: fused cannot run arm {self.arm!r}, a cost of a whole layer; use engine: auto")
        if self.compile == "blocks" and of_a_layer:
            raise ValueError(f"compile: blocks cannot run arm {self.arm!r}, which needs hooks; use compile: auto")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be smaller than steps={self.steps}")
        return self


class WorkersConfig(Settings):
    """What one trial asks of the cluster."""

    count: Count = Field(
        1,
        description="number of DDP workers, which share each step's batch; with another count, batches differ, in"
        " a resumed trial from there on",
    )
    cpus: Annotated[float, Field(gt=0, le=1024)] = Field(1.0, description="CPUs per worker; a fraction shares a core")
    gpus: Annotated[float, Field(ge=0, le=64)] = Field(0.0, description="GPUs per worker; 0 trains on the CPU")
    timeout_s: Annotated[int, Field(ge=10, le=86400)] = Field(120, description="timeout of a collective, in seconds")
    max_failures: NonNegative = Field(1, description="how often a trial is retried after a worker's death")


class SweepConfig(Settings):
    """Arms x seeds x any other field, by its dotted name; in a grid, or sampled from a space."""

    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = Field(description="arms to compare; see docs/arms.md")
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = Field(
        description="seeds of every arm; p-values need several"
    )
    grid: dict[str, tuple[Any, ...]] = Field({}, description="for example {model.density: [0.05, 0.2]}")
    arm_settings: dict[Arm, dict[str, Any]] = Field(
        {}, description="settings of one arm's trials, for example {top_k: {model.density: 0.05}}"
    )
    search: SearchConfig | None = Field(None, description="settings to sample, the same for all arms and seeds")
    scheduler: SchedulerConfig | None = Field(None, description="prunes samples that fall behind")
    max_concurrent: Count | None = Field(None, description="most trials at once; default: as many as fit")

    @model_validator(mode="after")
    def _arms_are_known_and_nothing_repeats(self) -> "SweepConfig":
        for problem in filter(None, map(_arm_problem, self.arms)):
            raise ValueError(f"arms: {problem}")
        for field, values in (
            ("arms", self.arms),
            ("seeds", self.seeds),
            *((f"grid.{f}", v) for f, v in self.grid.items()),
        ):
            if len({_canonical(v) for v in values}) != len(values):
                raise ValueError(f"{field}: has a value twice: {list(values)}")
            if not values:
                raise ValueError(f"{field}: is empty; expected at least one value")
        for arm in self.arm_settings:
            if arm not in self.arms:
                raise ValueError(f"arm_settings: {arm!r} is not among the arms{did_you_mean(arm, self.arms)}")
        of_the_search = search_problem(self.grid, self.search, self.scheduler)
        if of_the_search:
            raise ValueError(of_the_search)
        return self


class StudyConfig(Settings):
    """What a sweep is for, written down before it is run.

    `primary_arm` names the one comparison that is tested without correction: `primary_metric` of that arm, in the cell
    `primary_cell` of the grid, against the `reference`; or, where the metric is `excess`, against the baselines at the
    density that the arm reaches. Every other comparison is exploratory. Without it, all are.
    """

    question: str = Field(description="the question that the sweep answers")
    reference: Arm = Field(
        "per_token",
        validation_alias=AliasChoices("reference", "control"),
        description="the arm that others are compared with (formerly control)",
    )
    intervention: str = Field(description="what differs between the arms")
    primary_metric: str = Field(
        description="with primary_arm one of: "
        + ", ".join(measures.primary_metrics())
        + ", or a score of the task, as "
        "held_out/bits_per_byte of text"
    )
    primary_arm: Arm | None = Field(None, description="the arm of the one comparison that is tested uncorrected")
    primary_cell: dict[str, Any] = Field({}, description="for example {model.density: 0.05}")
    expectation: str = Field(description="what is expected, and by how much; written before the runs")

    @field_validator("primary_metric")
    @classmethod
    def _by_its_name_today(cls, value: str) -> str:
        return measures.current_name(value)

    @model_validator(mode="after")
    def _the_primary_comparison_is_whole(self) -> "StudyConfig":
        if self.primary_arm is None and self.primary_cell:
            raise ValueError("primary_cell: needs primary_arm, the arm that is compared in this cell")
        metric, known = self.primary_metric, tuple(measures.primary_metrics())
        if self.primary_arm is not None and metric not in known and not measures.score_of(metric):
            near = did_you_mean(metric, known)
            raise ValueError(f"primary_metric: found {metric!r}{near}; expected one of {', '.join(known)}")
        return self

    def problem(self, sweep: SweepConfig) -> str | None:
        """Why the study is not one of this sweep; None where it is."""
        for field, arm in (("reference", self.reference), ("primary_arm", self.primary_arm)):
            if arm is not None and arm not in sweep.arms:
                return f"study.{field}: found {arm!r}; expected one of sweep.arms: {', '.join(sweep.arms)}"
        if self.primary_arm is None:
            return None
        values = {field: {_canonical(v) for v in each} for field, each in sweep.grid.items()}
        if self.primary_cell.keys() != values.keys() or any(
            _canonical(v) not in values[field] for field, v in self.primary_cell.items()
        ):
            return (
                f"study.primary_cell: found {self.primary_cell}; expected each field of sweep.grid with one of its "
                f"values: {dict(sweep.grid)}"
            )
        if self.primary_arm == self.reference and self.primary_metric != measures.EXCESS:
            return f"study.primary_arm: found {self.primary_arm!r}, the reference itself; expected another arm"
        return None


class Experiment(Settings):
    """One training run, whole: what `tiny-onn train` runs and what each trial of a sweep is."""

    name: Name = Field(description="name of the experiment and of its folder in --output")
    description: str = Field("", description="its purpose, in one sentence; shown in MLflow")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()
    sweep: SweepConfig | None = None
    study: StudyConfig | None = None
    scales: dict[Name, dict[str, Any]] = Field(
        {}, description="named sets of changes, for example {gpu: {model.hidden: 512}}; see --scale"
    )

    @model_validator(mode="after")
    def _a_study_is_of_its_sweep(self) -> "Experiment":
        problem = self.study.problem(self.sweep) if self.study and self.sweep else None
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _training_settings_are_of_the_task(self) -> "Experiment":
        if problem := _others_setting("training", self.training, self.data.task):
            raise ValueError(f"training.{problem}")
        return self

    @model_validator(mode="after")
    def _what_is_compared_by_is_measured(self) -> "Experiment":
        for setting, metric in self.compared_by().items():
            score, built_in = measures.score_of(metric), BUILT_IN_TASKS.get(self.data.task)
            if score and built_in and metric not in built_in.scores:
                of_task = built_in.scores
                known = [*(measures.primary_metrics() if setting.startswith("study.") else COMPARED), *of_task]
                own = f"its scores are {', '.join(of_task)}" if of_task else "it has no scores of its own"
                raise ValueError(
                    f"{setting}: found {metric!r}{did_you_mean(metric, known)}, which data.task: {self.data.task} does "
                    f"not measure; {own}"
                )
            orders = self.sweep.grid.get("data.order", ()) if self.sweep else ()
            if metric.startswith("forgetting/") and "sequential" not in (self.data.order, *orders):
                raise ValueError(f"{setting}: found {metric!r}, which is only measured with data.order: sequential")
        return self

    def compared_by(self) -> dict[str, str]:
        """The metrics that a conclusion or a trial's end hangs on, by the setting that names each."""
        metrics = {}
        if self.study and self.study.primary_arm is not None:
            metrics["study.primary_metric"] = self.study.primary_metric
        if self.sweep and self.sweep.scheduler:
            metrics["sweep.scheduler.asha.metric"] = self.sweep.scheduler.asha.metric
        return metrics

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
        """Sixteen hex digits that change with any setting that training at a given step depends on.

        That is not the description, nor, with a constant schedule and tasks in mixed order, the number of steps: what
        was trained for fewer can go on for more.
        """
        return _digest_of(self._digested())

    def digests(self) -> tuple[str, ...]:
        """`digest`, and those of the same experiment with any other `workers.count`: of whose checkpoints a trial can
        be resumed.
        """
        values = self._digested()
        others = range(1, MOST_WORKERS + 1)
        others_digests = (_digest_of({**values, "workers": {**values["workers"], "count": count}}) for count in others)
        return tuple(dict.fromkeys((self.digest(), *others_digests)))

    def _digested(self) -> dict[str, Any]:
        values = self.model_dump(mode="json", exclude={"description", "scales", "study"})
        if values["training"]["schedule"] == "constant" and values["data"]["order"] == "mixed":
            del values["training"]["steps"]
        for name, value in BEFORE.items():  # as it was before there was another
            group, field = name.split(".")
            if values[group][field] == value:
                del values[group][field]
        _drop_defaults(values["data"], {"options": {}})  # as it was before there were these
        _drop_defaults(values["model"], {"build": None, "options": {}})
        values["training"]["generate_tasks"] = values["training"].pop("decode_tasks")  # its name when digests began
        return values


def _digest_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _drop_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        if values[name] == default:
            del values[name]


def check_name(name: str, what: str) -> None:
    """Whether `name` may be that of a sweep, and so of a folder.

    Raises:
        UserError: it may not; `what` says whose name it is.
    """
    if not re.fullmatch(_NAME, name):
        raise UserError(f"{what}: found {name!r}; {NAME_RULE}")


def replace(experiment: Experiment, changes: dict[str, Any], source: str) -> Experiment:
    """`experiment` with fields, named by dots, replaced and validated anew; of a group, the fields that it names.

    Raises:
        UserError: there is no such field, one is set twice, or the experiment cannot be so; names it, and every field
            that there is not.
    """
    values, names = experiment.model_dump(mode="json"), setting_names(Experiment)
    done: set[str] = set()
    unknown: list[str] = []
    for field, value in current_settings(changes, source).items():
        *groups, last = field.split(".")
        place: Any = values
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            unknown.append(f"{field!r} {why_no_setting(field, names)}")
            continue
        for each in put(place, last, plain(value, f"{source}: {field}"), field, names):
            if each in done:
                raise UserError(f"{source}: {each} is set twice, by itself and with its group; expected once")
            done.add(each)
    if unknown:
        raise UserError(together(source, unknown))
    return validated(values, source)


def validated(values: dict[str, Any], source: str) -> Experiment:
    """`values` as an Experiment, its own trials aside; `source` is named in the UserError."""
    try:
        return Experiment.model_validate_json(json.dumps(values))
    except (ValueError, TypeError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        names = setting_names(Experiment)
        raise UserError(explain(error, source, names, unknown_varied(values, names))) from error


def _canonical(value: Any) -> str:
    """Equal for 1 and 1.0, which are one number, and not for true and 1."""
    whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if whole else value, sort_keys=True)
