"""What readers find in a file: tasks as they stand there, unchecked, and answers to other files' tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LearnedSplit = Literal["train", "evaluation"]


@dataclass(frozen=True)
class File:
    """A file, or one in an archive: `place` is its path for messages, `parts` its folders and name below the root."""

    place: str
    parts: tuple[str, ...]
    read: Callable[[], bytes] = field(repr=False)

    @property
    def stem(self) -> str:
        """Its name without `.json`, `.jsonl`, `.gz`, ..."""
        return stem_of(self.parts[-1])


@dataclass(frozen=True)
class Raw:
    """A task as it stands in a file: `value` as JSON has it.

    `split` is given where the file says it; `family` where several tasks are sampled from one list of pairs.
    """

    task_id: str
    value: Any
    split: LearnedSplit | None = None
    family: str = ""


@dataclass(frozen=True)
class Content:
    """What a file holds. `solutions` are the answers of test pairs by task; `ignored` says why nothing is used;
    `memory` is about how many bytes all of it takes."""

    tasks: tuple[Raw, ...] = ()
    solutions: Mapping[str, Any] = field(default_factory=dict)
    ignored: str = ""
    memory: int = 0


SUFFIXES = (".json", ".jsonl", ".ndjson", ".gz", ".zip", ".parquet")


def is_named_as_data(name: str) -> bool:
    """Whether a file's name, in whatever case, says that it may hold tasks; hidden ones never do."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def stem_of(name: str) -> str:
    """A file's name without the endings of data files."""
    while name.lower().endswith(SUFFIXES):
        name = name[: name.rindex(".")]
    return name
