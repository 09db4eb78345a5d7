"""That a trial is to end early, or has: files in its folder."""

import json

from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool


def settle(folder: TrialFolder) -> None:
    """Ends a trial that was to be pruned when its sweep was interrupted."""
    if folder.prune.exists() and not folder.ended:
        lines, _ = read_spool(folder.spool)
        write_pruned(folder, max((line.step for line in lines), default=0))


def write_pruned(folder: TrialFolder, step: int) -> None:
    """Written last: with it, the trial has ended, at `step`."""
    write_whole(folder.pruned, json.dumps({"step": step}))


def pruned_at(folder: TrialFolder) -> int | None:
    """The step at which the trial was pruned; None where it was not."""
    return int(json.loads(folder.pruned.read_text())["step"]) if folder.pruned.exists() else None
