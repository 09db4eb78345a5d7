"""What a prepared data set says of itself: `manifest.json` beside its Parquet shards."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field

from pipeline.data.contract import Split as Split
from pipeline.data.contract import Task, find_task
from pipeline.files import write_whole
from pipeline.settings.config import DataConfig
from pipeline.storage.storage import Place

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2  # part of a data set's name: what another version made is not used again
SPLITS: tuple[Split, ...] = get_args(Split)
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A frozen, strict part of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SplitCounts(Part):
    """How much a split holds, and what was too long for it. `tasks` are what the rows are of: `Task.item`.

    A training task that is too long is in neither `train` nor `held_out`; it is counted once, in `train`.
    `too_long_views` are rows left out because a task grows when it is turned (each row of a grid costs a token).
    """

    tasks: Count
    rows: Count
    tokens: Count
    labelled_tokens: Count
    too_long_tasks: Count
    too_long_views: Count


class Shard(Part):
    """One Parquet file."""

    file: Annotated[str, Field(pattern=r"^[a-z_]+-[0-9]{5}\.parquet$")]
    split: Split
    rows: Count
    row_groups: Count
    sha256: Hash


class Leak(Part):
    """An item of `split` that is related to one that is trained on."""

    split: Split
    task: str
    train_task: str


class Manifest(Part):
    """All that must be known of a prepared data set to trust it and to make it again.

    `refused` says of each file or task that is not used why; `notes` what was left aside, or is unusual.
    """

    schema_version: int
    dataset: str
    config: DataConfig
    source_hash: Hash
    data_hash: Hash
    counts: dict[Split, SplitCounts]
    refused: tuple[str, ...]
    notes: tuple[str, ...] = ()
    leakage: tuple[Leak, ...]
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: a folder of shards and its manifest, here or in a storage."""

    folder: Place
    manifest: Manifest

    @property
    def task(self) -> Task:
        """The task that it is the data of."""
        return find_task(self.manifest.config.task)

    def shards(self, split: Split) -> tuple[Shard, ...]:
        """The shards of a split, in order."""
        return tuple(shard for shard in self.manifest.shards if shard.split == split)

    def path(self, shard: Shard) -> Place:
        """Where a shard is."""
        return self.folder / shard.file


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes it into the data set's folder, whole or not at all."""
    # Without the order of training: the same shards serve any.
    text = manifest.model_dump_json(indent=2, exclude={"config": {"order"}})
    write_whole(folder / MANIFEST, text + "\n")


def data_hash(shards: Iterable[Shard]) -> str:
    """One hash of all shards: what training was done on."""
    return hashlib.sha256("\n".join(f"{s.file} {s.split} {s.sha256}" for s in shards).encode()).hexdigest()


def file_hash(path: Place) -> str:
    """SHA-256 of a file's bytes."""
    if not isinstance(path, Path):
        return path.sha256()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
