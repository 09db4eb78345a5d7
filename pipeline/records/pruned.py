"""That a trial is to end early, or has: files in its folder."""

import json
from typing import Any

from pipeline.files import write_whole
from pipeline.foreign_json import DamagedJson, integer, read_object_file, text
from pipeline.layout import TrialFolder
from pipeline.records.spool import spool_lines

_MOST_BYTES = 2**16


def settle(folder: TrialFolder) -> None:
    """Ends a trial that was to be pruned when its sweep was interrupted."""
    if folder.prune.exists() and not folder.ended:
        write_pruned(folder, max((line.step for line in spool_lines(folder.spool)), default=0))


def write_pruned(folder: TrialFolder, step: int) -> None:
    """Written last: with it, the trial has ended, at `step`."""
    write_whole(folder.pruned, json.dumps({"step": step}))


def pruned_at(folder: TrialFolder) -> int | None:
    """The step at which the trial was pruned; None where it was not.

    Raises:
        DamagedJson: the file that says so is damaged.
    """
    if not folder.pruned.exists():
        return None
    try:
        return integer(read_object_file(folder.pruned, _MOST_BYTES).get("step"))
    except ValueError as error:
        raise DamagedJson(f"{folder.pruned}: `step`: {error}. Remove the trial's folder and run it again.") from None


def prune_word(value: Any) -> dict[str, Any]:
    """That a trial is to end early: {"step": int, "metric": name, "value": number or None}.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, dict) or not {"step"} <= value.keys() <= {"step", "metric", "value"}:
        raise ValueError("expected an object with step")
    integer(value["step"])
    text(value.get("metric", ""), 250)
    if not isinstance(value.get("value", None), int | float | None):
        raise ValueError("value is no number")
    return value
