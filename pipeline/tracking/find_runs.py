"""The runs of one sweep among all those of its name: two sweeps are never mixed because they are called alike."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.records.sweep_record import sweep_id
from pipeline.tracking.describe import ROLE, SWEEP, SWEEP_ID, TRIAL
from pipeline.tracking.store import plain, sqlite_file

if TYPE_CHECKING:
    from mlflow.entities import Run

WITHOUT_ID = "none"  # how a user names the sweep whose runs are from before there were ids


def recorded_id(output: Output, uri: str, sweep: str) -> str | None:
    """The id that the record of `sweep` says: in the output folder, else in the one that a SQLite store lies in.

    None where neither has a record; "" where it is from before there were ids.
    """
    found = sweep_id(output.sweep(sweep))
    database = sqlite_file(uri)
    if found is None and database is not None:
        found = sweep_id(Output(database.parent).sweep(sweep))
    return found


def runs_of_sweep(runs: "Sequence[Run]", sweep: str, wanted: str | None) -> "list[Run]":
    """Those of `runs` that are of the sweep with the id `wanted`; without one, of the only sweep of that name.

    Args:
        wanted: "" for the runs that have no id.

    Raises:
        UserError: there are several of that name and `wanted` is None, or none with that id; names those there are.
    """
    mine = [run for run in runs if run.data.tags.get(SWEEP) == sweep]
    ids = dict.fromkeys(run.data.tags.get(SWEEP_ID, "") for run in sorted(mine, key=lambda run: run.info.start_time))
    if wanted is None and len(ids) > 1:
        raise UserError(
            f"MLflow has {len(ids)} sweeps of the name {sweep!r}, which are never put together:\n{_listed(mine, ids)}\n"
            "Name one of them with --sweep-id."
        )
    if wanted is not None and wanted not in ids and mine:
        which = f"the id {wanted}" if wanted else "runs without an id"
        raise UserError(
            f"MLflow has no sweep {sweep!r} with {which}, which its record here says; there are:\n"
            f"{_listed(mine, ids)}\nName one of them with --sweep-id, or the store that has this one."
        )
    return [run for run in mine if wanted is None or run.data.tags.get(SWEEP_ID, "") == wanted]


def _listed(runs: "Sequence[Run]", ids: dict[str, None]) -> str:
    lines = []
    for each in ids:
        here = [run for run in runs if run.data.tags.get(SWEEP_ID, "") == each]
        trials = len({run.data.tags.get(TRIAL, run.info.run_id) for run in here if run.data.tags.get(ROLE) == "trial"})
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(min(run.info.start_time for run in here) / 1000))
        user = plain(here[0].data.tags.get("mlflow.user", "")) or "unknown"
        lines.append(f"  {plain(each) or WITHOUT_ID}: {trials} trials, begun {began} by {user}")
    return "\n".join(lines)
