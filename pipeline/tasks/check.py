"""Do a task and a model keep their contracts? Tried on a small sample, before a run starts, as learning costs are."""

import itertools
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import measures
from pipeline.data.batch import IGNORED, Batch
from pipeline.data.contract import BUILT_IN, Examples, Rows, Score, Task, find_task
from pipeline.data.model_use import Layout, RoutingMaps
from pipeline.data.rows import table_of
from pipeline.data.sequence import Sequence, check_sequence
from pipeline.data.sequential import group_problem
from pipeline.errors import UserError
from pipeline.foreign_json import parse_json
from pipeline.settings.config import DataConfig, Experiment
from pipeline.training.build import build_dynamics, build_model, model_settings
from pipeline.training.modes import in_evaluation_mode
from pipeline.training.sample import sample_rows
from pipeline.training.step import train_step

_SAMPLE = 4  # rows of each split
_MEASURED = {m.name.partition("/")[2] for m in measures.METRICS} | {s.key for m in measures.METRICS for s in m.shown}
_WIDEST = 256  # hidden, of the model that is tried


def check_task(config: DataConfig) -> None:
    """Whether the task that `data:` names keeps its contract, on its first rows. Of the built-in ones it is known.

    Raises:
        UserError: it does not; names the setting, what was found and what was expected.
    """
    task, who = find_task(config.task), f"data.task: {config.task!r}"
    if config.order == "sequential" and (problem := group_problem(task, config.task)):
        raise UserError(problem)
    if problem := _declared(task):
        raise UserError(f"{who} {problem}")
    if config.task in BUILT_IN:
        if config.options:
            raise UserError(
                f"data.options: found {config.options}, but data.task: {config.task} has none; expected {{}}"
            )
        return
    try:
        first, again = (_read(task, config) for _ in range(2))
    except UserError:
        raise
    except Exception as error:  # whatever somebody's function does
        raise UserError(f"{who}: `read` raised {type(error).__name__}: {error}") from error
    if isinstance(first, str) or isinstance(again, str):
        raise UserError(f"{who} {first if isinstance(first, str) else again}")
    if first[0] != again[0] or not _alike(first[1], again[1]):
        raise UserError(
            f"{who}: `read` gave other rows, or another digest, when it was called a second time; expected the same "
            "for the same settings. Use a random generator that is seeded with config.seed."
        )
    rows = first[1]
    for split, sample in rows.items():
        for row in sample:
            check_sequence(row, task.format, config.max_tokens, f"{who}, split {split}")
    for split in ("train", "held_out"):
        if not rows[split]:
            raise UserError(f"{who} has no rows in the split {split}; expected at least one")
    if config.order == "sequential" and (problem := _group_problem(task, [row.task_id for row in rows["train"]])):
        raise UserError(f"{who}: {problem}")
    everything = list(itertools.chain.from_iterable(rows.values()))
    try:
        table_of(everything, task.format)
        batch = task.batch(everything)
    except Exception as error:
        raise UserError(f"{who}: no batch can be made of its rows ({type(error).__name__}: {error})") from error
    if problem := _batch_problem(batch, task, len(everything)):
        raise UserError(f"{who}: `collate` {problem}")
    for score in task.scores:
        _check_score(score, batch, task, who)
    if task.maps is not None:
        _check_layout(task.maps, rows["held_out"][0], who)


def check_model(experiment: Experiment) -> None:
    """Whether the model that `model.build` or the task makes can be called, trained and, where it predicts the next
    token, sees no later one: tried at the experiment's settings, its width up to 256, on rows that are made up.

    Raises:
        UserError: it does not; names the setting, what was found and what was expected.
    """
    name, task = experiment.model.build, experiment.data.task
    who = f"data.task: {task!r}, its model" if name is None else f"model.build: {name!r}"
    if name is None and experiment.model.options:
        raise UserError(
            f"model.options: found {experiment.model.options}, which only a model of your own takes; set model.build"
        )
    small = _small(experiment)
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_model(small)
            settings, value = model_settings(small), find_task(task)
            batch = value.batch(sample_rows(small))
            with torch.no_grad():
                logits = model(*batch.inputs)
            expected = (*batch.tokens.shape, settings.outputs)
            if not isinstance(logits, Tensor) or logits.shape != expected or not logits.is_floating_point():
                shown = f"{list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
                raise UserError(f"{who} returns {shown} for tokens {list(batch.tokens.shape)}; expected logits "
                                f"{list(expected)}, a number for each token and output")  # fmt: skip
            if value.format.classes is None and (seen := _looks_ahead(model, batch)):
                raise UserError(
                    f"{who} is not causal: changing the tokens from place {seen[1]} on changes its logits at place "
                    f"{seen[0]}, so it sees the tokens that it predicts. Mask later tokens."
                )
            train_step(model, batch, build_dynamics(model, small.training), observe=True)
            if value.examples is not None and task not in BUILT_IN:
                _check_examples(value.examples, model, small, f"data.task: {task!r}")
    except UserError:
        raise
    except Exception as error:  # whatever somebody's model does
        raise UserError(
            f"{who} cannot be trained with arm {experiment.training.arm!r} ({type(error).__name__}: {error}); tried on "
            "two generated rows. It is called as model(tokens, *coordinates), each [b, s]."
        ) from error


def _small(experiment: Experiment) -> Experiment:
    size, training = experiment.model, experiment.training
    width = (
        min(size.hidden, max(_WIDEST // (2 * size.heads), 1) * 2 * size.heads) if size.build is None else size.hidden
    )
    return experiment.model_copy(
        update={
            "model": size.model_copy(update={"hidden": width}),
            "training": training.model_copy(update={"compile": "eager", "precision": "float32"}),
        }
    )


def _declared(task: Task) -> str | None:
    if not isinstance(task.name, str) or not task.name.replace("-", "").replace("_", "").isalnum():
        return f"has name={task.name!r}; expected letters, digits, - and _: it names a folder"
    if problem := task.format.problem():
        return problem
    names = [score.name for score in task.scores]
    if len(set(names)) != len(names) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        return f"has scores named {names}; expected names of letters, digits and _, each once"
    for part in ("predict", "answer"):
        if (value := getattr(task, part)) is not None and not callable(value):
            return f"has {part}={value!r:.80}; expected a function, or None"
    if task.maps is not None and not isinstance(task.maps, RoutingMaps):
        return f"has maps={task.maps!r:.80}; expected pipeline.tasks.RoutingMaps, or None"
    if taken := sorted(_MEASURED.intersection(names)):
        return f"has a score {taken[0]!r}, a name that is taken by a metric of every task; expected another"
    return None


def _read(task: Task, config: DataConfig) -> "tuple[str, dict[str, list[Sequence]]] | str":
    source = task.read(config)
    if not isinstance(getattr(source, "digest", None), str) or not source.digest:
        return f"`read` returned {source!r:.80}; expected a Source with a digest"
    made = source.splits()
    rows = {name: getattr(made, name, None) for name in ("train", "held_out", "evaluation")}
    for name, part in rows.items():
        if not isinstance(part, Rows):
            return f"has {name}={part!r:.80} in its splits; expected Rows"
    return source.digest, {name: list(itertools.islice(part.rows, _SAMPLE)) for name, part in rows.items() if part}


def _group_problem(task: Task, ids: list[str]) -> str | None:
    assert task.group is not None
    try:
        groups = [task.group(task_id) for task_id in ids for _ in range(2)]
    except Exception as error:  # whatever somebody's function does
        return f"`group` raised {type(error).__name__}: {error}. It is called with the task_id of a row"
    for task_id, once, again in zip(ids, groups[::2], groups[1::2], strict=True):
        if not isinstance(once, str) or not once or once != again:
            return (
                f"`group` of {task_id!r} gave {once!r} and {again!r}; expected the name of a task, the same each time"
            )
    return None


def _alike(first: dict[str, list[Sequence]], again: dict[str, list[Sequence]]) -> bool:
    def values(rows: dict[str, list[Sequence]]) -> list[Any]:
        return [
            (name, row.task_id, row.pair, [np.asarray(each).tolist() for each in (row.tokens, *row.coordinates)])
            for name, part in rows.items()
            for row in part
        ]

    return values(first) == values(again)


def _batch_problem(batch: Any, task: Task, rows: int) -> str | None:
    if not isinstance(batch, Batch):
        return f"returned a {type(batch).__name__}; expected a pipeline.data.batch.Batch"
    shape = batch.tokens.shape
    wrong = [t for t in (batch.labels, batch.valid, *batch.coordinates) if t.shape != shape]
    if len(shape) != 2 or shape[0] != rows or wrong or len(batch.coordinates) != len(task.format.coordinates):
        return f"made tokens {list(shape)} and others {[list(t.shape) for t in wrong]} of {rows} rows; expected [b, s]"
    known = batch.labels[batch.labels != IGNORED]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < task.format.outputs:
        return f"made labels up to {int(known.max())}; expected whole numbers below {task.format.outputs}"
    if bool((batch.labels[~batch.valid] != IGNORED).any()):
        return "labels padding; expected IGNORED there"
    if not known.numel():
        return "made no label of the first rows; expected something to predict"
    return None


def _check_score(score: Score, batch: Batch, task: Task, who: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*batch.tokens.shape, task.format.outputs, generator=generator)
    try:
        total, count = score.measure(logits, batch)
        measured = float(total), float(count)
    except Exception as error:
        raise UserError(
            f"{who}: score {score.name!r} cannot be measured ({type(error).__name__}: {error}). Expected a function of "
            "(logits, batch) that returns (sum, count)."
        ) from error
    if not np.isfinite(measured).all() or measured[1] < 0:
        raise UserError(f"{who}: score {score.name!r} measured (sum, count) = {measured}; expected finite numbers")


def _check_layout(maps: RoutingMaps, row: Sequence, who: str) -> None:
    try:
        layout = maps.lay_out(row)
        problem = layout.problem(len(row)) if isinstance(layout, Layout) else f"is a {type(layout).__name__}"
    except Exception as error:  # whatever somebody's function does
        problem = f"raised {type(error).__name__}: {error}"
    if problem:
        raise UserError(f"{who}: the layout by `maps.lay_out` {problem}; row {row.task_id!r}. Expected a Layout of it.")


def _check_examples(examples: Examples, model: nn.Module, experiment: Experiment, who: str) -> None:
    rows = sample_rows(experiment)
    chosen = examples.choose(rows, len(rows))
    with in_evaluation_mode(model):
        drawn = examples.draw(model, chosen, experiment, lambda: None)
    if not isinstance(drawn, list) or len(drawn) != len(chosen):
        raise UserError(f"{who}: `examples.draw` returned {drawn!r:.80}; expected a list of {len(chosen)}, one a row")
    try:
        back = parse_json(json.dumps(drawn), "examples")
    except (TypeError, ValueError) as error:
        raise UserError(f"{who}: `examples.draw` returned a value that JSON cannot hold ({error})") from error
    if not all(isinstance(each, dict) for each in back):
        raise UserError(f"{who}: `examples.draw` returned {back!r:.80}; expected a mapping for each row")
    for name, value in examples.measure(back).items():
        if not isinstance(name, str) or not name.isidentifier() or not isinstance(value, float | int):
            raise UserError(
                f"{who}: `examples.measure` returned {name!r}: {value!r}; expected numbers by names of letters"
            )


def _looks_ahead(model: nn.Module, batch: Batch) -> tuple[int, int] | None:
    """(place whose logits change, later place from which on tokens are others); None where there is no such place."""
    tokens = batch.tokens[:1]
    axes = [axis[:1] for axis in batch.coordinates]
    with in_evaluation_mode(model), torch.no_grad():
        last = tokens.shape[1] - 1
        for changed in (last, last // 2 + 1):
            other = tokens.clone()
            other[0, changed:] = (other[0, changed:] + 1) % int(batch.tokens.max() + 1)
            before, after = model(tokens, *axes)[0, :changed], model(other, *axes)[0, :changed]
            away = (before - after).abs().amax(dim=-1) > 1e-5 * (1 + before.abs().amax())
            if bool(away.any()):
                return int(away.nonzero()[0]), changed
    return None
