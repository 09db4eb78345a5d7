"""ARC tasks as a Task: grids as tokens with coordinates, views of them, and grids that are drawn at the end."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.data.arc import Corpus, load_corpus
from pipeline.data.augment import IDENTITY, View, view_task, views
from pipeline.data.contract import Encoded, Examples, Measured, ModelSettings, Rows, Source, Split, Splits, Task
from pipeline.data.given import task_given
from pipeline.data.model_use import Answers, Layout, RoutingMaps
from pipeline.data.randomness import generator
from pipeline.data.related import leakage
from pipeline.data.sequence import WHOLE, Sequence
from pipeline.data.split import hold_out
from pipeline.data.task import Task as ArcTask
from pipeline.data.tokens import COORDINATE_RANGE, FORMAT, encode_task, encoded_length, grid_layout
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig, Experiment

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from pipeline.tasks.arc_decode import Grid
    from pipeline.training.model_file import TrainedModel

# One row that is yet to be encoded: a task, which of its test pairs (or WHOLE), seen how.
Entry = tuple[ArcTask, int, View]


def source_of(corpus: Corpus, config: DataConfig) -> Source:
    """The corpus as rows; `splits` raises a UserError where there are too few tasks to hold some out."""
    return Source(corpus.source_hash, partial(_splits, corpus, config), corpus.refused, corpus.notes)


def _read(config: DataConfig) -> Source:
    return source_of(load_corpus(config), config)


def _splits(corpus: Corpus, config: DataConfig) -> Splits:
    fitting = [task for task in corpus.train if _fits([(task, WHOLE, IDENTITY)], config)]
    if len(fitting) < 2:
        raise UserError(_too_few(corpus.train, len(fitting), config))
    train, held_out = hold_out(fitting, config.held_out, config.seed, config.held_out_for)
    judged = {task.task_id: _answers(task) for task in corpus.evaluation}
    evaluation = [task for task in corpus.evaluation if _fits(judged[task.task_id], config)]
    seen = [(task, WHOLE, view) for task in train for view in views(task.task_id, config)]
    rows = [entry for entry in seen if _fits([entry], config)]
    order = generator("order of rows", config.seed).permutation(len(rows))
    too_long = len(corpus.train) - len(fitting)
    others: dict[Split, list[ArcTask]] = {"held_out": held_out, "evaluation": evaluation}
    return Splits(
        train=Rows(Encoded([rows[i] for i in order], _encode), len(train), too_long, len(seen) - len(rows)),
        held_out=Rows(Encoded([entry for task in held_out for entry in _answers(task)], _encode), len(held_out)),
        evaluation=Rows(
            Encoded([entry for task in evaluation for entry in judged[task.task_id]], _encode),
            len(evaluation),
            len(corpus.evaluation) - len(evaluation),
        ),
        leaks=tuple((split, other, ours) for split in others for ours, other in leakage(train, others[split])),
    )


def _encode(entry: Entry) -> Sequence:
    task, pair, view = entry
    row = encode_task(view_task(task, view), pair)
    seen = {"view": view.dihedral, "colours": "".join(map(str, view.colours))}
    return Sequence(row.tokens, row.coordinates, row.labelled, row.task_id, row.pair, extra=seen)


def _answers(task: ArcTask) -> list[Entry]:
    """One row for each test pair, as it is."""
    return [(task, pair, IDENTITY) for pair in range(len(task.test))]


def _too_few(tasks: Items[ArcTask], fitting: int, config: DataConfig) -> str:
    """What to say where there are not two tasks to tell apart, one to train on and one to hold out."""
    lengths = sorted(encoded_length(task.pairs) for task in tasks)
    if len(tasks) < 2:
        return f"data: {len(tasks)} task; at least 2 are needed, to train on and to hold out. Give more tasks."
    half = lengths[(len(lengths) - 1) // 2]
    how = "all" if not fitting else "all but 1"
    return (
        f"data: {len(tasks)} tasks, {how} longer than {config.max_tokens} tokens; the shortest has {lengths[0]:,}, "
        f"half fit in {half:,}. Raise data.max_tokens (and training.batch_tokens with it), or give shorter tasks."
    )


def _fits(entries: Items[Entry], config: DataConfig) -> bool:
    return all(
        encoded_length(task.pairs if pair == WHOLE else [*task.train, task.test[pair]], view.transposes)
        <= config.max_tokens
        for task, pair, view in entries
    )


def _build(settings: ModelSettings) -> "nn.Module":
    from tiny_onn.model import GridTransformer

    return GridTransformer(
        vocabulary=settings.vocabulary,
        coordinates=COORDINATE_RANGE,
        hidden=settings.hidden,
        layers=settings.layers,
        heads=settings.heads,
        **settings.routing,
    )


def _draw(
    model: "nn.Module", rows: Items[Sequence], experiment: Experiment, alive: Callable[[], None]
) -> list[dict[str, Any]]:
    from pipeline.tasks.arc_predictions import predict, voting_views

    drawn = predict(model, rows, experiment.data.max_tokens, voting_views(experiment), alive)
    return [each.as_dict() for each in drawn]


def _measure(examples: Items[Mapping[str, Any]]) -> dict[str, float]:
    from pipeline.tasks.arc_predictions import Prediction, exact_match

    return exact_match([Prediction(**example) for example in examples])


def _at_once(experiment: Experiment) -> int:
    from pipeline.tasks.arc_decode import batch_size
    from pipeline.tasks.arc_predictions import voting_views

    return max(1, batch_size(experiment.data.max_tokens) // voting_views(experiment))


def _predict(trained: "TrainedModel", task: Any, pair: int = 0) -> "Grid | None":
    from pipeline.tasks.arc_predictions import predict_one

    return predict_one(trained, task, pair)


def _answer(trained: "TrainedModel", file: "Path") -> Answers:
    from pipeline.tasks.arc_answers import answer_file

    return answer_file(trained, file)


def _lay_out(row: Sequence) -> Layout:
    return grid_layout(row.tokens, *row.coordinates)


def _row_of(trained: "TrainedModel", task: Any, pair: int = 0) -> Sequence:
    """A task with one of its test pairs, as the model reads it; the answer of a Task's test pair is in it, too."""
    known = task if isinstance(task, ArcTask) else task_given(task)
    if not 0 <= pair < len(known.test):
        raise UserError(f"task {known.task_id}: has no test pair {pair}; there are {len(known.test)}, from 0")
    return encode_task(known, pair)


ARC = Task(
    name="arc",
    format=FORMAT,
    read=_read,
    build=_build,
    examples=Examples(
        draw=_draw,
        measure=_measure,
        at_once=_at_once,
        measured=(
            Measured("pairs_exact", "pairs exactly right"),
            Measured("tasks_exact", "tasks exactly right", leaderboard=True),
            Measured("pass_at_2", "right in two attempts (pass_at_2)", leaderboard=True),
        ),
        part="test pair",
        all_zero="no arm got a single pair right, in one attempt or two",
        not_drawn="whether whole tasks are solved (none was decoded)",
    ),
    predict=_predict,
    answer=_answer,
    maps=RoutingMaps(_lay_out, _row_of),
    describe=lambda config: config.dataset,
    group=lambda task_id: task_id,
)
