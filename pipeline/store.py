"""Opens the MLflow store, and says plainly when it cannot be reached."""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the page asks, and opens in its chat-model mode


def open_store(uri: str) -> "MlflowClient":
    """A client of the store at `uri`; a SQLite file that is not there yet is created whole, by one process alone.

    Raises:
        UserError: within about ten seconds, when the store cannot be reached or read. Passwords are masked.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would tear the live table
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a dead server would hold each call for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    from mlflow import MlflowClient  # seconds of imports, which only a command that tracks should pay for
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of every table it makes
    try:
        if uri.startswith(_SQLITE):
            with _alone(Path(uri.removeprefix(_SQLITE))):
                return _opened(MlflowClient(tracking_uri=uri))
        return _opened(MlflowClient(tracking_uri=uri))
    except (MlflowException, OSError, ValueError, ImportError, SQLAlchemyError) as error:  # no driver; no database
        raise UserError(
            f"tracking URI {mask(uri)}: cannot be used ({_first_line(mask(str(error), uri))}). Expected a reachable "
            "MLflow server, or a SQLite file as sqlite:////path/mlflow.db. Check the address, or leave it out to track "
            "in the output folder."
        ) from None


def open_experiment(client: "MlflowClient", name: str, artifacts: Path | None) -> str:
    """The id of the experiment `name`, created if need be with its artifacts in the folder `artifacts`.

    Raises:
        UserError: the experiment lies in MLflow's bin, or cannot be created.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None if artifacts is None else artifacts.resolve().as_uri()
            try:
                return str(client.create_experiment(name, artifact_location=location, tags=_KIND))
            except MlflowException:  # another process was quicker
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
    except MlflowException as error:
        raise UserError(f"MLflow experiment {name!r}: cannot be created ({_first_line(mask(str(error)))}).") from None
    if found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {name!r}: was deleted, and its name is still taken. Restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or use another name."
        )
    return str(found.experiment_id)


def find_experiment(client: "MlflowClient", name: str) -> str:
    """The id of the experiment `name`.

    Raises:
        UserError: there is none; names those that there are.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        known = ", ".join(sorted(experiment.name for experiment in client.search_experiments())) or "none"
        raise UserError(f"MLflow has no experiment {name!r}; there are: {known}.")
    return str(found.experiment_id)


def mask(text: str, uri: str = "") -> str:
    """`text` without the passwords of any URI in it, nor that of `uri`."""
    found = re.search(r"://[^/@\s]*?:([^@\s]+)@", uri)
    if found:
        text = text.replace(found[1], "***")
    return re.sub(r"(://[^/:@\s]*):[^@\s]+@", r"\1:***@", text)


def _opened(client: "MlflowClient") -> "MlflowClient":
    client.search_experiments(max_results=1)
    return client


@contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Processes that create one SQLite file at the same time leave it unusable: let them queue."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(database.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 200 else line[:200] + "…"
