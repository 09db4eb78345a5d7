"""Prepares a data set in front of somebody: a bar while it lasts, and then what is in it and what is not."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from pipeline.data.manifest import MANIFEST, Prepared, SplitCounts
from pipeline.data.published import publish
from pipeline.data.shards import prepare
from pipeline.data.split import FOR_SELECTION
from pipeline.errors import UserError
from pipeline.escaping import shown
from pipeline.settings.config import DataConfig
from pipeline.storage.storage import Storage, StorageError
from pipeline.terminal import shows_a_screen

_SHOWN = 10  # refused files, and leaks, that are named


def prepare_and_report(
    config: DataConfig, root: Path, console: Console | None = None, storage: Storage | None = None
) -> Prepared:
    """`prepare`, and `publish` in `storage`, telling of counts, of what is too long, of refused files and of leaks.

    Raises:
        UserError: as `prepare` and `publish`; or the storage does not take the data.
    """
    console = console or Console()
    with Progress(console=console, transient=True, disable=not shows_a_screen(console)) as progress:
        bar = progress.add_task("Preparing the data", total=None)
        prepared = prepare(config, root, lambda done, total: progress.update(bar, completed=done, total=total))
        if storage:
            bar = progress.add_task("Putting the data into the storage", total=None)
            try:
                prepared = publish(
                    prepared, storage, lambda done, total: progress.update(bar, completed=done, total=total)
                )
            except StorageError as error:
                raise UserError(f"the data set cannot be put into the storage: {error}") from error
    print_prepared(prepared, console)
    return prepared


def print_prepared(prepared: Prepared, console: Console) -> None:
    """What is in a prepared data set, and what was left out of it."""
    manifest, item = prepared.manifest, prepared.task.item

    def line(text: str, style: str = "") -> None:
        console.print(shown(text), style=style, highlight=False, markup=False, soft_wrap=True)

    line(f"Data: {manifest.dataset} in {prepared.folder}")
    for split, count in manifest.counts.items():
        held = f"{count.tasks} {item}s, {count.rows} sequences, {count.tokens} tokens"
        line(f"  {split.replace('_', '-')}: {held}{_left_out(count, manifest.config.max_tokens, item)}")
    if manifest.config.held_out_for == "selection":
        line(f"  {FOR_SELECTION}")
    for note in manifest.notes:
        line(f"  {note}")
    for reason in manifest.refused[:_SHOWN]:
        line(f"  refused: {reason}", "yellow")
    for leak in manifest.leakage[:_SHOWN]:
        line(f"  leak: {leak.split} {item} {leak.task} is related to {leak.train_task}, which is trained on", "yellow")
    for number, what, more in (
        (len(manifest.refused), "file", " refused, the rest prepared"),
        (len(manifest.leakage), "leak", ""),
    ):
        if number:
            line(f"  {number} {what}{'s' * (number != 1)}{more}; all of them in {prepared.folder / MANIFEST}", "yellow")


def _left_out(count: SplitCounts, limit: int, item: str) -> str:
    too_long = {f"{item}s": count.too_long_tasks, f"views of other {item}s": count.too_long_views}
    return "".join(f"; {n} {what} of more than {limit} tokens left out" for what, n in too_long.items() if n)
