"""One MLflow run on its way: what is wanted of it, and what of that has been done."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.layout import TrialFolder
from pipeline.records.spool import DamagedSpool
from pipeline.tracking.describe import DAMAGED, SWEEP_ID
from pipeline.tracking.file_report import log_files
from pipeline.tracking.mlflow_run import Description, begin_run, find_run, write_memory
from pipeline.tracking.outage import Pause
from pipeline.tracking.shipping import has_all, lacks, ship_figures, ship_files, ship_metrics, shipped

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipeline.tracking.client import StoreClient


@dataclass
class OpenRun:
    """For one thread at a time. What is wanted is set at once; what is done follows when the server lets it."""

    memory: Path
    description: Description
    folder: TrialFolder | None
    ending: str | None = None
    artifacts: list[Path] = field(default_factory=list)
    recount: bool = False  # until it is done: our memory of what was sent does not count, but what the store has
    run_id: str = ""
    unsure: bool = True  # points may be there that we do not remember having sent
    sent: int = 0  # points
    pause: Pause = field(default_factory=Pause)
    problem: str = ""
    damage: str = ""  # of the spool: what comes after it is never sent
    was_damaged: bool = False  # as its tag says
    ended: bool = False  # by us
    over: bool = False  # nothing is outstanding, nor will be


def deliver(client: "StoreClient", experiment_id: str, run: OpenRun) -> bool:
    """Does all that is outstanding for a run, in order; returns whether there was anything, and the server was asked.

    Raises:
        MlflowException, OSError, UserError: as far as it has come is kept in `run` and in the trial's folder.
    """
    folder, news = run.folder, not run.run_id
    if not run.run_id:
        found = find_run(client, experiment_id, run.memory)
        if found is not None:
            _note_sweep(client, found, run.description)
        if found is not None and folder is not None and run.ending is not None:
            run_id, status = found.info.run_id, found.info.status
            whole = status == run.ending and has_all(folder, run_id, run.ending)
            if whole and not (run.recount and lacks(client, run_id, folder)):
                run.run_id, run.over = run_id, True
                return True
        run.run_id = begin_run(client, experiment_id, run.memory, run.description, found)
        run.unsure = found is not None
        run.was_damaged = found is not None and DAMAGED in found.data.tags
        if folder is not None:
            write_memory(folder.shipped, {**shipped(folder, run.run_id), "ended": None})
    if folder is not None:
        memory = shipped(folder, run.run_id)
        try:
            run.sent += ship_metrics(client, run.run_id, folder, run.unsure, run.recount)
        except DamagedSpool as error:
            run.damage = str(error)
        ship_figures(client, run.run_id, folder, run.unsure, run.recount)
        news |= shipped(folder, run.run_id) != memory
        run.recount = False
    run.unsure = False
    if run.ending is not None:
        _end(client, experiment_id, run, run.ending)
    return news or run.over


def _note_sweep(client: "StoreClient", found: "Run", description: Description) -> None:
    """A run that the sweep's folder remembers is the sweep's, also where its record was lost and has another id now."""
    known = description.tags.get(SWEEP_ID)
    if known and found.data.tags.get(SWEEP_ID) != known:
        client.set_tag(found.info.run_id, SWEEP_ID, known)


def _end(client: "StoreClient", experiment_id: str, run: OpenRun, status: str) -> None:
    folder = run.folder
    if folder is not None:
        ship_files(client, run.run_id, folder)
    if run.damage:
        client.set_tag(run.run_id, DAMAGED, run.damage)
    elif run.was_damaged:
        client.delete_tag(run.run_id, DAMAGED)
        run.was_damaged = False
    log_files(client, run.run_id, run.artifacts)
    find_run(client, experiment_id, run.memory)  # a twin may have come late
    client.set_terminated(run.run_id, status)
    if folder is not None and not run.damage:
        write_memory(folder.shipped, {**shipped(folder, run.run_id), "ended": status})
    run.ended = run.over = True
