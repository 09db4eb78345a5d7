"""Prepared data sets: rows written once as Parquet shards, found again, and trusted only after a look."""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from pipeline.data.contract import Source, find_task
from pipeline.data.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
    Prepared,
    Split,
    data_hash,
    file_hash,
    write_manifest,
)
from pipeline.data.rows import check_file, read_footer, read_group
from pipeline.data.sequence import Sequence
from pipeline.data.shard_writer import Progress, write_data_set
from pipeline.errors import UserError
from pipeline.foreign_json import MOST_BYTES, DamagedJson, parse_object, read_bounded
from pipeline.locking import file_lock
from pipeline.settings.config import DataConfig
from pipeline.settings.user_code import code_digest, code_of
from pipeline.storage.storage import Place, Storage, StorageError

_log = logging.getLogger(__name__)


def prepare(config: DataConfig, root: Path, progress: Progress | None = None) -> Prepared:
    """The data set of `config` in a folder of its own under `root`; written only if it is not there and intact.

    The folder's name tells settings and source apart. It appears whole or not at all: shards are written aside and the
    folder is renamed. Several processes may ask at once; one writes. A damaged folder is written anew, with a warning.
    `progress(rows done, rows in all)` is called as rows are written.

    Raises:
        UserError: no usable tasks, too few to hold some out, or `root` cannot be written to.
    """
    task = find_task(config.task)
    source = task.read(config)
    folder = root / f"{task.data_name(config)}-{_digest(config, source.hash)[:12]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{folder.name}.lock"):
            if folder.exists():
                try:
                    return _with_reasons(open_prepared(folder, task=config.task), source)
                except UserError as damage:
                    _log.warning("%s Writing the data set anew.", damage)
            aside = root / f".{folder.name}.partial"
            shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
            aside.mkdir()
            write_data_set(task, config, source, aside, progress or (lambda done, total: None))
            if folder.exists():
                shutil.rmtree(folder)
            aside.rename(folder)
    except OSError as error:
        raise UserError(
            f"{root}: the data set cannot be written ({error}). Expected a folder that can be written to, with space "
            "left; name another with --output."
        ) from error
    return open_prepared(folder, task=config.task)


def open_prepared(folder: Place, task: str, *, hashes: bool = True) -> Prepared:
    """The prepared data set in `folder`, checked: schema version, every shard, its hash, columns, types and ids.

    `hashes=False` spares reading every file whole; pages carry checksums that are verified when they are read. Of a
    storage it then looks at the manifest alone: every row group is checked by the rank that reads it.

    Args:
        task: the `data.task` that is expected. It is the caller's: code that a manifest names is never imported.

    Raises:
        UserError: names the file, what was found and what was expected.
        StorageError: the storage that it lies in is away.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text() if isinstance(path, Storage) else read_bounded(path, MOST_BYTES).decode("utf-8")
    except StorageError:
        raise
    except (OSError, UnicodeDecodeError, DamagedJson) as error:
        raise UserError(f"{path}: cannot be read ({error}). Expected a data set made by `tiny-onn prepare`.") from error
    manifest = _parse_manifest(text, path)
    if manifest.config.task != task:
        raise UserError(f"{path}: holds data of task {manifest.config.task!r}; expected data.task: {task}.")
    prepared = Prepared(folder, manifest)
    found_hash = data_hash(manifest.shards)
    if found_hash != manifest.data_hash:
        raise UserError(f"{path}: the shards' hashes make {found_hash}; expected data_hash {manifest.data_hash}.")
    for shard in () if isinstance(folder, Storage) and not hashes else manifest.shards:
        file = prepared.path(shard)
        if not file.is_file():
            raise UserError(f"{file}: is missing, but {MANIFEST} names it. Prepare the data again.")
        if hashes and (digest := file_hash(file)) != shard.sha256:
            raise UserError(f"{file}: is damaged: sha256 {digest}; expected {shard.sha256}. Prepare the data again.")
        check_file(file, shard.rows, shard.row_groups, prepared.task.format, values=hashes)
    return prepared


def read_rows(prepared: Prepared, split: Split) -> list[Sequence]:
    """All sequences of a split, in order; meant for held-out and evaluation rows, which memory holds.

    Raises:
        UserError: a shard is damaged.
    """
    rows: list[Sequence] = []
    for shard in prepared.shards(split):
        path = prepared.path(shard)
        footer = read_footer(path)
        for group in range(shard.row_groups):
            rows += read_group(path, group, prepared.task.format, footer)
    return rows


def _with_reasons(prepared: Prepared, source: Source) -> Prepared:
    """The same data set, which a folder makes whatever unusable files lie in it: the manifest names those of now."""
    reasons = {"refused": source.refused, "notes": source.notes}
    if all(getattr(prepared.manifest, name) == value for name, value in reasons.items()):
        return prepared
    assert isinstance(prepared.folder, Path)
    manifest = prepared.manifest.model_copy(update=reasons)
    write_manifest(manifest, prepared.folder)
    return Prepared(prepared.folder, manifest)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its holder, however that ends."""
    with file_lock(lock):
        yield


def _parse_manifest(text: str, path: Place) -> Manifest:
    try:
        version = parse_object(text, path).get("schema_version")
    except DamagedJson as error:
        raise UserError(f"{path}: is no manifest ({error}). Prepare the data again.") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version is {version!r}; expected {SCHEMA_VERSION}. Prepare the data again.")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise UserError(f"{path}: is no manifest of this version ({problems}). Prepare the data again.") from error


def _digest(config: DataConfig, source_digest: str) -> str:
    """Of all that the rows depend on; of a task of one's own that is its code, too."""
    code = code_digest(code_of([config.task]))
    left_out = {*config.at_default("task", "options"), "order"}  # as before there were these; no row depends on order
    settings = config.model_dump_json(exclude=left_out)
    parts = [str(SCHEMA_VERSION), source_digest, settings, *([code] if code else [])]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
