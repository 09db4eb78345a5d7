"""The runs of one sweep among all those of its name: two sweeps are never mixed because they are called alike."""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.records.sweep_record import sweep_id
from pipeline.tracking.describe import ROLE, SWEEP, SWEEP_ID, TRIAL
from pipeline.tracking.store import find_experiment, open_store, plain, sqlite_file, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_ID = re.compile(r"[0-9a-f]{4,32}")  # or its first digits
WITHOUT_ID = "none"  # how a user names the sweep whose runs are from before there were ids


def recorded_id(output: Output, uri: str, sweep: str) -> str | None:
    """The id that the record of `sweep` says: in the output folder, else in the one that a SQLite store lies in.

    None where neither has a record; "" where it is from before there were ids.
    """
    recorded = sweep_id(output.sweep(sweep))
    database = sqlite_file(uri)
    if recorded is None and database is not None:
        recorded = sweep_id(Output(database.parent).sweep(sweep))
    return recorded


def find_sweep(uri: str, experiment_name: str, word: str, sweep_id: str | None = None) -> tuple[str, str | None]:
    """The name and the id of the sweep that a user means: by its name, by its id, or by NAME@ID where others have that
    name. The first four digits of an id or more will do. The id is None where none is named.

    Args:
        sweep_id: the same as what comes after `@`; "none", or "": the sweep of that name whose runs have no id.

    Raises:
        UserError: no sweep of the store is meant, or several are; names those there are. Or the store cannot be used.
    """
    name, at, begin = word.partition("@")
    begin, named = (sweep_id, True) if sweep_id is not None else (begin, bool(at))
    if not named and not _ID.fullmatch(word):
        return word, None
    client = open_store(uri, create=False)
    with store_errors(uri):
        every = all_runs(client, find_experiment(client, experiment_name))
    runs = sorted((run for run in every if SWEEP in run.data.tags), key=lambda run: run.info.start_time)
    of_name = [run for run in runs if run.data.tags[SWEEP] == name]
    if not named and of_name:
        return word, None
    if not named:
        name, begin, of_name = "", word, runs
    wanted = "" if begin == WITHOUT_ID else begin
    known = {(run.data.tags[SWEEP], run.data.tags.get(SWEEP_ID, "")): None for run in of_name}
    matching = [each for each in known if each[1] == wanted]
    matching = matching or [each for each in known if len(wanted) >= 4 and each[1].startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    listed = _listed(of_name, dict.fromkeys(each for _, each in matching or known), with_names=not name)
    whose = f"{name!r} " if name else ""
    if matching:
        raise UserError(
            f"the id {begin} begins those of {len(matching)} sweeps {whose}in MLflow:\n{listed}\nGive more of it."
        )
    if len(wanted) < 4 and wanted:
        raise UserError(f"the id {begin!r} is too short; give four of its digits or more. There are:\n{listed}")
    raise UserError(
        f"MLflow has no sweep {whose}with "
        + (f"the id {begin}" if wanted else "runs without an id")
        + (f"; there are:\n{listed}" if known else f", and none called {name or word!r}")
    )


def all_runs(client: "MlflowClient", experiment_id: str) -> "list[Run]":
    """Every run of an experiment of MLflow's."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


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


def _listed(runs: "Sequence[Run]", ids: dict[str, None], with_names: bool = False) -> str:
    lines = []
    for each in ids:
        here = [run for run in runs if run.data.tags.get(SWEEP_ID, "") == each]
        trials = len({run.data.tags.get(TRIAL, run.info.run_id) for run in here if run.data.tags.get(ROLE) == "trial"})
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(min(run.info.start_time for run in here) / 1000))
        user = plain(here[0].data.tags.get("mlflow.user", "")) or "unknown"
        name = f"{plain(here[0].data.tags[SWEEP])}@" if with_names else ""
        lines.append(f"  {name}{plain(each) or WITHOUT_ID}: {trials} trials, begun {began} by {user}")
    return "\n".join(lines)
