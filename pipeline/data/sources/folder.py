"""All tasks of a folder as it was cloned or downloaded, or of one file: training and evaluation tasks apart."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.arc_json import RefusedTask, parse_task
from pipeline.data.sources.found import Content, File, LearnedSplit, Raw, stem_of
from pipeline.data.sources.read import read_content
from pipeline.data.sources.shapes import SPLITS
from pipeline.data.sources.walk import files_below
from pipeline.data.task import Task

_NAMED = 5  # of many, in a note
_MOST_MEMORY = 2**32  # bytes that the values in all files together may take: of some 500 MB of JSON
_READ_KEYS = {"train", "test", "id", "task_id", "name"}


@dataclass
class Tasks:
    """What a folder holds: tasks by split, sorted by id; why others were refused; and notes of what was left aside."""

    train: list[Task] = field(default_factory=list)
    evaluation: list[Task] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Placed:
    file: File
    raw: Raw
    split: LearnedSplit
    task: Task


def read_tasks(root: Path, pairs_per_task: int | None = None, seed: int = 0, for_prediction: bool = False) -> Tasks:
    """The tasks in a folder and its sub-folders, or in one file.

    Folders `training` or `train` hold training tasks, `evaluation` or `eval` evaluation tasks, and so does `test`
    beside `train` or `training`. Without any of them all tasks are training tasks; with a training folder, what is in
    other sub-folders is ignored. A file of many tasks may say its split itself, or by its name. Tasks of one name in
    several folders are named with their folders. A task that is there twice under two names is taken once.

    Args:
        for_prediction: answers of test pairs are not looked at, and all tasks are in `train`.

    Raises:
        OSError: the folder cannot be read.
        RefusedTask: all files together would take more than 4 GiB of memory.
    """
    tasks = Tasks()
    files = list(files_below(root, tasks.refused))
    trained = {file.parts[:-1][: i + 1] for file in files for i, part in enumerate(file.parts[:-1]) if _trains(part)}
    parents = {folder[:-1] for folder in trained}
    contents: list[tuple[File, LearnedSplit, Content]] = []
    aside: Counter[str] = Counter()
    memory = 0
    for file in files:
        split = _split_of(file.parts, parents)
        if split is None and trained and len(file.parts) > 1:
            aside[file.parts[0]] += 1
            continue
        try:
            content = read_content(file.read(), file.stem, file.place, pairs_per_task, seed)
        except RefusedTask as error:
            tasks.refused.append(str(error))
            continue
        if (memory := memory + content.memory) > _MOST_MEMORY:
            raise RefusedTask(
                f"{file.place}: with the files before it, it would take {memory:,} bytes of memory; at most "
                f"{_MOST_MEMORY:,} are read; name a folder with fewer files"
            )
        if content.ignored:
            tasks.notes.append(f"ignored: {'/'.join(file.parts)} ({content.ignored})")
        contents.append((file, split or "train", content))
    tasks.notes += [f"ignored: {folder}/ ({_many(number, 'data file')})" for folder, number in sorted(aside.items())]
    placed = _placed(contents, for_prediction, tasks)
    if not for_prediction:
        placed = _once(placed, tasks.notes)
    for task, split in _named(placed, tasks.refused):
        (tasks.evaluation if split == "evaluation" else tasks.train).append(task)
    tasks.train.sort(key=lambda task: task.task_id)
    tasks.evaluation.sort(key=lambda task: task.task_id)
    return tasks


def _trains(folder: str) -> bool:
    return SPLITS.get(folder.lower()) == "train"


def _split_of(parts: tuple[str, ...], parents: set[tuple[str, ...]]) -> LearnedSplit | None:
    """By the innermost folder that says it. `test` and `validation` do beside a training folder alone."""
    for place in reversed(range(len(parts) - 1)):
        name = parts[place].lower()
        if name in SPLITS and (name not in ("test", "validation") or parts[:place] in parents):
            return SPLITS[name]
    return None


def _placed(contents: list[tuple[File, LearnedSplit, Content]], for_prediction: bool, read: Tasks) -> list[_Placed]:
    """The tasks that are good, with the answers that other files hold."""
    placed, dropped = [], Counter[str]()
    answered = {file.parts: content.solutions for file, _, content in contents if content.solutions}
    for file, split, content in contents:
        solutions = _solutions_of(file, content, answered)
        many = len(content.tasks) > 1
        if many and not for_prediction and not solutions and not any(map(_has_answers, content.tasks)):
            shown = f"{_many(len(content.tasks), 'task')} without answers: to be predicted, not to learn from"
            read.notes.append(f"ignored: {'/'.join(file.parts)} ({shown})")
            continue
        by_name = _split_in_name(file.stem) if many else None
        for raw in content.tasks:
            value = _with_answers(raw.value, solutions.get(raw.task_id))
            try:
                task = parse_task(value, raw.task_id, file.place, for_prediction)
            except RefusedTask as error:
                read.refused.append(str(error))
                continue
            for key in value.keys() - _READ_KEYS:
                held = value[key]
                dropped[str(key)] += len(held) if isinstance(held, list) else 0
                dropped.setdefault(str(key), 0)
            where = "train" if for_prediction else raw.split or by_name or split
            placed.append(_Placed(file, raw, where, Task(task.task_id, task.train, task.test, raw.family)))
    for key, pairs in sorted(dropped.items()):
        held = f" ({_many(pairs, 'entry', 'entries')})" if pairs else ""
        read.notes.append(f"not read: key `{_short(key)}`{held}; tasks are their `train` and `test`")
    return placed


def _solutions_of(
    file: File, content: Content, answered: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Those of the file beside it that is named alike; else, of those beside it, one with the very same ids."""
    if not content.tasks or all(map(_has_answers, content.tasks)):
        return {}
    beside = {parts[-1]: solutions for parts, solutions in answered.items() if parts[:-1] == file.parts[:-1]}
    if "challenges" in file.stem:
        wanted = file.stem.replace("challenges", "solutions")
        return next((solutions for name, solutions in beside.items() if stem_of(name) == wanted), {})
    ids = {raw.task_id for raw in content.tasks}
    return next((solutions for solutions in beside.values() if solutions.keys() == ids), {})


def _has_answers(raw: Raw) -> bool:
    tests = raw.value.get("test") if isinstance(raw.value, dict) else None
    return not isinstance(tests, list) or any(isinstance(pair, dict) and pair.get("output") for pair in tests)


def _with_answers(value: Any, answers: Any) -> Any:
    if answers is None or not isinstance(value, dict) or not isinstance(value.get("test"), list):
        return value
    if len(answers) != len(value["test"]) or not all(isinstance(pair, dict) for pair in value["test"]):
        return value
    pairs = zip(value["test"], answers, strict=True)
    return {**value, "test": [{**pair, "output": answer} for pair, answer in pairs]}


def _split_in_name(stem: str) -> LearnedSplit | None:
    words = stem.lower().replace("-", "_").split("_")
    return next((split for name, split in SPLITS.items() if name != "test" and name in words), None)


def _once(placed: list[_Placed], notes: list[str]) -> list[_Placed]:
    """Without the copies that other files, or other names, have of a task of the same split."""
    kept: dict[tuple[str, bytes], _Placed] = {}
    copies = []
    for each in placed:
        first = kept.setdefault((each.split, _content(each.task)), each)
        if first is not each:
            copies.append(f"{_short(_path(each))} (of {_short(_path(first))})")
    if copies:
        more = f", and {len(copies) - _NAMED} more" if len(copies) > _NAMED else ""
        notes.append(
            f"taken once: {_many(len(copies), 'task')} that {'is a copy' if len(copies) == 1 else 'are copies'} of "
            f"another: {', '.join(copies[:_NAMED])}{more}"
        )
    return list(kept.values())


def _named(placed: list[_Placed], refused: list[str]) -> Iterator[tuple[Task, LearnedSplit]]:
    """Each task by its name; those of one name with their folders; where these are equal too, with their files."""
    names: list[Callable[[_Placed], str]] = [
        lambda each: each.task.task_id,
        lambda each: "/".join((*each.file.parts[:-1], each.task.task_id)),
        _path,
    ]
    left = placed
    taken: set[str] = set()
    for name in names:
        counted = Counter(map(name, left))
        unique = [each for each in left if counted[name(each)] == 1 and name(each) not in taken]
        taken |= set(map(name, unique))
        for each in unique:
            yield Task(name(each), each.task.train, each.task.test, each.task.family), each.split
        done = set(map(id, unique))
        left = [each for each in left if id(each) not in done]
    refused += [f"{each.file.place}: task {_short(each.task.task_id)} is there more than once" for each in left]


def _path(each: _Placed) -> str:
    """Where a task is: its file's path below the root, and its id in a file of another name."""
    path = "/".join(each.file.parts)
    return path if each.file.stem == each.task.task_id else f"{path}/{each.task.task_id}"


def _content(task: Task) -> bytes:
    parts = (repr((len(task.train), len(task.test))).encode(), *(pair.content for pair in task.pairs))
    return hashlib.sha256(b"|".join(parts)).digest()


def notes_on(tasks: Iterable[Task]) -> list[str]:
    """What of the tasks themselves is worth knowing: a test pair that is also one of its own demonstrations."""
    own = []
    for task in tasks:
        shown = {pair.content for pair in task.train}
        own += [f"{_short(task.task_id)} (test pair {n})" for n, pair in enumerate(task.test) if pair.content in shown]
    if not own:
        return []
    more = f", and {len(own) - _NAMED} more" if len(own) > _NAMED else ""
    return [f"{_many(len(own), 'test pair')} also among the task's own demonstrations: {', '.join(own[:_NAMED])}{more}"]


def _many(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:79]}…"
