"""The delivery of one run to MLflow: what it should have, and what of that it has.

A Delivery owns its run's state, in memory and in the file: it reads the file when it is made, and writes it whenever
the store has taken something. Nothing else writes it while the Delivery is open.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.layout import TrialFolder
from pipeline.records.delivery import DeliveryState, read_delivery, write_delivery
from pipeline.records.spool import DamagedSpool
from pipeline.tracking.describe import DAMAGED, SWEEP_ID
from pipeline.tracking.file_report import log_files
from pipeline.tracking.mlflow_run import Description, begin_run, find_run
from pipeline.tracking.outage import Pause
from pipeline.tracking.shipping import has_all, lacks, ship_figures, ship_files, ship_metrics

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipeline.tracking.client import StoreClient


@dataclass
class Delivery:
    """For one thread at a time. Callers set what the run should have; `deliver` follows when the server allows it.

    `path` is the state's file; `folder` is None for the summary of a sweep.
    """

    path: Path
    description: Description
    folder: TrialFolder | None
    ending: str | None = None
    artifacts: list[Path] = field(default_factory=list)
    recount: bool = False  # until it is done: the state does not count, but what the store has
    run_id: str = ""  # once it is open in this store
    unsure: bool = True  # points may be there that the state does not have
    sent: int = 0  # points
    pause: Pause = field(default_factory=Pause)
    problem: str = ""
    damage: str = ""  # of the spool: what comes after it is never sent
    was_damaged: bool = False  # as its tag says
    ended: bool = False  # by us
    over: bool = False  # nothing is outstanding, nor will be
    is_new: bool = field(init=False)  # without a file: there is no run to be found
    state: DeliveryState = field(init=False)

    def __post_init__(self) -> None:
        known = read_delivery(self.path)
        self.is_new, self.state = known is None, known or DeliveryState()

    def note(self, **changes: Any) -> None:
        """The store has taken more: of the state, what is different now."""
        for name, value in changes.items():
            setattr(self.state, name, value)
        write_delivery(self.path, self.state)


def deliver(client: "StoreClient", experiment_id: str, run: Delivery) -> bool:
    """Does all that is outstanding for a run, in order; returns whether there was anything, and the server was asked.

    Raises:
        MlflowException, OSError, UserError: as far as it has come is kept in `run` and in its file.
    """
    folder, news = run.folder, not run.run_id
    if not run.run_id:
        existing = None if run.is_new else find_run(client, experiment_id, run.state)
        if existing is not None:
            _note_sweep(client, existing, run.description)
        if existing is not None and folder is not None and run.ending is not None:
            run_id, status = existing.info.run_id, existing.info.status
            whole = status == run.ending and run.state.run_id == run_id and has_all(folder, run.state, run.ending)
            if whole and not (run.recount and lacks(client, run_id, folder)):
                run.run_id, run.over = run_id, True
                return True
        run.note()  # the key by which the run is found, should this process or the answer be lost
        run.is_new = False
        run.run_id = begin_run(client, experiment_id, run.state, run.description, existing)
        run.unsure = existing is not None
        run.was_damaged = existing is not None and DAMAGED in existing.data.tags
        run.state.belongs_to(run.run_id)
        run.note(ended=None)
    if folder is not None:
        before = run.state.offset, len(run.state.figures)
        try:
            ship_metrics(client, run, folder)
        except DamagedSpool as error:
            run.damage = str(error)
        ship_figures(client, run, folder)
        news |= before != (run.state.offset, len(run.state.figures))
        run.recount = False
    run.unsure = False
    if run.ending is not None:
        _end(client, experiment_id, run, run.ending)
    return news or run.over


def _note_sweep(client: "StoreClient", run: "Run", description: Description) -> None:
    """A run that the sweep's folder remembers is the sweep's, also where its record was lost and has another id now."""
    known = description.tags.get(SWEEP_ID)
    if known and run.data.tags.get(SWEEP_ID) != known:
        client.set_tag(run.info.run_id, SWEEP_ID, known)


def _end(client: "StoreClient", experiment_id: str, run: Delivery, status: str) -> None:
    if run.folder is not None:
        ship_files(client, run.run_id, run.folder)
    if run.damage:
        client.set_tag(run.run_id, DAMAGED, run.damage)
    elif run.was_damaged:
        client.delete_tag(run.run_id, DAMAGED)
        run.was_damaged = False
    log_files(client, run.run_id, run.artifacts)
    find_run(client, experiment_id, run.state)  # a twin may have come late
    client.set_terminated(run.run_id, status)
    if not run.damage:
        run.note(ended=status)
    run.ended = run.over = True
