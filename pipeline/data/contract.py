"""What a task is: the one value that says how data become rows, batches, a model and scores.

`data.task` names it: "arc", "text", or `package.module:attribute`. Everything else, the loader, sharding, resumption,
workers, checkpoints, planning and the report, is the same for every task. `pipeline.tasks.check` tries a task on a
small sample before a run starts.
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pipeline.data.model_use import Answering, RoutingMaps
from pipeline.data.sequence import Format, Sequence
from pipeline.errors import UserError, reason
from pipeline.settings.config import DataConfig, Experiment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.data.batch import Batch

Split = Literal["train", "held_out", "evaluation"]
BUILT_IN = {"arc": "pipeline.tasks.arc:ARC", "text": "pipeline.tasks.text:TEXT"}
Entry = TypeVar("Entry")
_HASH = re.compile(r"[0-9a-f]{64}")


class Encoded(Generic[Entry]):
    """Rows that are made one at a time, as they are written: `encode` of each of `entries`."""

    def __init__(self, entries: Items[Entry], encode: Callable[[Entry], Sequence]) -> None:
        self._entries, self._encode = entries, encode

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        return map(self._encode, self._entries)

    def __contains__(self, row: object) -> bool:
        return any(row is each for each in self)


@dataclass(frozen=True)
class Rows:
    """The rows of a split, in the order in which they are written; `rows` is a list, or `Encoded`.

    `items` counts what the rows are of, such as tasks or documents; `too_long` the items that were left out because
    they are longer than `data.max_tokens`, and `too_long_views` further rows of items that are in.
    """

    rows: Collection[Sequence] = ()
    items: int = 0
    too_long: int = 0
    too_long_views: int = 0


@dataclass(frozen=True)
class Splits:
    """What is trained on, what is held out, and perhaps the data set's own evaluation rows.

    `leaks`: (split, an item of it, the training item that it is related to), for the report to name.
    """

    train: Rows
    held_out: Rows
    evaluation: Rows = Rows()
    leaks: tuple[tuple[Split, str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """Raw data that have been found.

    Attributes:
        digest: changes whenever the rows would: a hash of what was read. With the settings it names the prepared data.
        splits: makes the rows; called only where they are not prepared yet.
        refused: for each file or item that cannot be used, why.
        notes: what a reader should know of the data, a sentence each.
    """

    digest: str
    splits: Callable[[], Splits]
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """The digest as 64 hex digits."""
        return self.digest if _HASH.fullmatch(self.digest) else hashlib.sha256(self.digest.encode()).hexdigest()


@dataclass(frozen=True)
class Score:
    """A number that is measured on held-out rows, and on evaluation rows: the metrics held_out/NAME, evaluation/NAME.

    Attributes:
        measure: (logits [b, s, outputs], batch) -> (sum, count), both scalars on the logits' device. They are added up
            over batches and workers; the metric is sum / count.
        unit: in which the report shows it, after it is multiplied by `scale`.
        best: which end is better; None for neither.
    """

    name: str
    measure: "Callable[[Tensor, Batch], tuple[Tensor, Tensor]]"
    unit: str = ""
    best: Literal["lowest", "highest"] | None = None
    title: str = ""
    scale: float = 1.0
    digits: int = 4

    def facts(self) -> dict[str, Any]:
        """What the report has to know of it, as JSON."""
        title = self.title or self.name.replace("_", " ")
        return {"name": self.name, "title": title, "unit": self.unit, "best": self.best,
                "scale": self.scale, "digits": self.digits}  # fmt: skip


def by_item(rows: Items[Sequence], wanted: int) -> list[Sequence]:
    """All rows of the first `wanted` items."""
    items = set(list(dict.fromkeys(row.task_id for row in rows))[:wanted])
    return [row for row in rows if row.task_id in items]


@dataclass(frozen=True)
class Measured:
    """A number of `Examples.measure`, and how the report shows it: times `scale`, with `unit` and `title`.

    `leaderboard`: whether MLflow's table has a column for it on the evaluation rows.
    """

    name: str
    title: str
    unit: str = "%"
    scale: float = 100.0
    digits: int = 1
    leaderboard: bool = False


@dataclass(frozen=True)
class Examples:
    """What the model says to a few held-out and evaluation rows at the end of training, for the report.

    Attributes:
        draw: (model, rows, experiment, alive) -> for each row an example that JSON can hold. The report shows two
            kinds: texts, {"task_id", "pair", "given", "predicted", "target"}, and grids, {"task_id", "pair", "input",
            "prediction", "target"}: lists of equally long lists of colours 0 to 9, at most 30 x 30; `prediction` is
            None where there is no grid. `task_id` is a string and `pair` a whole number. `alive` is called every
            second or more often while it works.
        measure: the examples of all workers -> numbers by name, the metrics held_out/NAME, evaluation/NAME.
        choose: (rows, training.decode_tasks) -> the rows that are drawn for.
        at_once: how many rows are drawn for in the time of one, for `tiny-onn plan`.
        measured: those of the numbers of `measure` that the report names.
        part: what the report calls a `pair`.
        all_zero: what the report says, after "Of the held-out rows that were decoded", where all of these are 0.
        not_drawn: what the report lists as not tested, where nothing was drawn.
    """

    draw: "Callable[[nn.Module, Items[Sequence], Experiment, Callable[[], None]], list[dict[str, Any]]]"
    measure: Callable[[Items[Mapping[str, Any]]], dict[str, float]] = lambda examples: {}
    choose: Callable[[Items[Sequence], int], list[Sequence]] = by_item
    at_once: Callable[[Experiment], int] = lambda experiment: 1
    measured: tuple[Measured, ...] = ()
    part: str = "part"
    all_zero: str = ""
    not_drawn: str = ""

    def facts(self) -> dict[str, Any]:
        """What the report needs to show them, as JSON."""
        shown = ("name", "title", "unit", "scale", "digits")
        measured = [{field: getattr(each, field) for field in shown} for each in self.measured]
        return {"measured": measured, "part": self.part, "all_zero": self.all_zero, "not_drawn": self.not_drawn}


@dataclass(frozen=True)
class ModelSettings:
    """What a model is built from: the task's sizes, and the settings of `model:`.

    `routing` are the keyword arguments that every SparseProtoLinear takes of them.
    """

    vocabulary: int
    outputs: int
    coordinates: Mapping[str, int]
    max_tokens: int
    hidden: int
    layers: int
    heads: int
    gain: float
    density: float | None
    gate_parameter: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def routing(self) -> dict[str, Any]:
        """gain, density and gate_parameter."""
        return {"gain": self.gain, "density": self.density, "gate_parameter": self.gate_parameter}


@dataclass(frozen=True, eq=False)
class Task:
    """A task.

    Attributes:
        name: of the data, in folders, MLflow and the report.
        format: of its rows.
        read: finds the raw data that `data:` of the experiment names; see Source. A task of one's own takes its
            settings from `config.options`.
        item: what the report calls what the rows are of, in the singular.
        collate: (rows) -> their batch; `pipeline.data.batch.collate` by default.
        build: settings -> the model, unless `model.build` names another; called `model(tokens, *coordinates)`, each
            [b, s], it returns logits [b, s, outputs]. By default the transformer of `tiny_onn.model`.
        scores: what is measured besides loss, token accuracy and routing.
        examples: what the model says at the end.
        predict: (trained model, ...) -> what `TrainedModel.predict` returns. Without it, that is refused.
        answer: (trained model, path) -> Answers to a file, for `tiny-onn predict`. Without it, that is refused.
        maps: how rows are drawn in routing maps, by default in lines of tokens; None: no maps are drawn.
        describe: the name of the data for these settings; `name` by default.
        group: `task_id` of a row -> the name of what is trained on at a time with `data.order: sequential`. Without it
            there is no such order.
    """

    name: str
    format: Format
    read: Callable[[DataConfig], Source]
    item: str = "task"
    collate: "Callable[[Items[Sequence]], Batch] | None" = None
    build: "Callable[[ModelSettings], nn.Module] | None" = None
    scores: tuple[Score, ...] = ()
    examples: Examples | None = None
    predict: Callable[..., Any] | None = None
    answer: Answering | None = None
    maps: RoutingMaps | None = field(default_factory=RoutingMaps)
    describe: Callable[[DataConfig], str] | None = None
    group: Callable[[str], str] | None = None

    def batch(self, rows: Items[Sequence]) -> "Batch":
        """At least one row as a batch, in the order given."""
        from pipeline.data.batch import collate

        return collate(rows, self.format.padding) if self.collate is None else self.collate(rows)

    def score(self, metric: str) -> Score | None:
        """Its score of which held_out/NAME is the metric."""
        return next((score for score in self.scores if f"held_out/{score.name}" == metric), None)

    def data_name(self, config: DataConfig) -> str:
        """What the data of these settings are called."""
        return self.name if self.describe is None else self.describe(config)


def find_task(name: str) -> Task:
    """The task that `data.task` names.

    Raises:
        UserError: it cannot be imported, or is no Task.
    """
    task = import_attribute(BUILT_IN.get(name, name), "data.task", "a pipeline.tasks.Task")
    if not isinstance(task, Task):
        raise UserError(f"data.task: {name!r} is a {type(task).__name__}; expected a pipeline.tasks.Task")
    return task


def score_problem(setting: str, metric: str, task: str) -> str:
    """Why a metric that is neither ours nor one of the task's scores with a better end cannot be compared by."""
    scores = find_task(task).scores
    if any(f"held_out/{score.name}" == metric for score in scores):
        return (
            f"{setting}: found {metric!r}, of which data.task: {task!r} does not say which end is better (Score.best)"
        )
    known = ", ".join(f"held_out/{score.name}" for score in scores) or "none"
    return f"{setting}: found {metric!r}, which data.task: {task!r} does not measure; its scores: {known}"


def import_attribute(name: str, setting: str, expected: str) -> Any:
    """What `package.module:attribute` names.

    Raises:
        UserError: it cannot be imported; names the setting.
    """
    module, _, attribute = name.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
    except Exception as error:  # whatever somebody's module does when it is imported
        raise UserError(
            f"{setting}: {name!r} cannot be used ({reason(error)}). Expected "
            f"package.module:attribute, {expected}, which the workers can import too: `pip install -e` its package, or "
            "name its folder in PYTHONPATH."
        ) from error
    return value
