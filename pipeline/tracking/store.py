"""Opens the MLflow store, and says plainly when it cannot be reached."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.errors import UserError
from pipeline.files import append_to
from pipeline.locking import file_lock
from pipeline.mlflow_private import is_no_registry
from pipeline.proxies import no_proxy_for
from pipeline.secrecy import mask
from pipeline.tracking.empty_store import copy_empty, keep_empty

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.tracking.client import StoreClient

SERVERS_OWN = "--backend-uri"  # the database behind a server
_SQLITE = "sqlite:///"
_SERVERS = ("http", "https", "postgresql", "mysql", "mssql")  # schemes of stores that take several calls at a time
_MAY_COME_BACK = (*_SERVERS, "sqlite")  # schemes of stores that can be away
_CALLS_AT_ONCE = 4  # that a server is asked to answer
_CREATION_LIMIT_S = 60.0
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_KNOCK_S = 5.0
_SAYS_LITTLE = (
    "(raised as a result of",
    "[SQL:",
    "[parameters:",
    "(Background on this",
)  # lines of SQLAlchemy's errors
_CAUSE = re.compile(r"Max retries exceeded with url: .*\(Caused by \w+\((.*)\)\)")
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the page asks, and opens in its chat-model mode


class StoreUnreachable(UserError):
    """The store's address is one that could be, but it does not answer now. `brief` says so without advice."""

    def __init__(self, message: str, brief: str) -> None:
        super().__init__(message)
        self.brief = brief


def open_store(uri: str, create: bool = True, named_by: str = "tracking URI") -> "StoreClient":
    """A client of the store at `uri`; a SQLite file that is not there yet is created whole, by one process alone.

    Args:
        create: False for who comes to read: then a SQLite file that is not there is an error, and one in a folder that
            cannot be written to is read all the same.
        named_by: what the user named it by, for errors.

    Raises:
        StoreUnreachable: the store does not answer: within about ten seconds, of a locked SQLite file twenty.
        UserError: it never will: an unknown scheme, a missing driver, a file that is no database. Passwords are masked.
    """
    file = sqlite_file(uri)
    # os.path's, as a Path's exists() raises of a name that is too long
    if not create and file is not None and not os.path.exists(file):
        raise UserError(f"tracking URI {uri}: there is no file {file.absolute()}. Expected the store of a sweep.")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would tear the live table
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a dead server would hold each call for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    from pipeline.tracking.client import StoreClient  # seconds of imports, which only a command that tracks pays for

    # Alembic logs each table that it creates, and an error on a hundred lines; we report errors where we handle them.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    no_proxy_for(uri)
    with store_errors(uri, named_by), _alone(uri, create):
        _knock(uri)
        is_new = file is not None and not os.path.exists(file)
        if file is not None and is_new:
            is_new = not copy_empty(file)
        client = StoreClient(uri, file)
        client.search_experiments(max_results=1)
        if file is not None and is_new:
            keep_empty(file)
        return client


def calls_at_once(uri: str) -> int:
    """How many calls at a time get through to a store the fastest: to a SQLite file, which has one writer, one."""
    return _CALLS_AT_ONCE if uri.partition("://")[0].partition("+")[0] in _SERVERS else 1


def _knock(uri: str) -> None:
    """Raises what is wrong where a database's driver is missing, or nothing listens: MLflow would go on trying for
    almost two minutes."""
    parts = urlsplit(uri)
    port = _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port is not None and parts.hostname:
        from sqlalchemy import make_url

        make_url(uri).get_dialect().import_dbapi()
        socket.create_connection((parts.hostname, parts.port or port), timeout=_KNOCK_S).close()


@contextmanager
def store_errors(uri: str, named_by: str = "tracking URI") -> Iterator[None]:
    """Turns what MLflow, its database or the network raise into the errors that `open_store` lists."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

    try:
        yield
    except (MlflowException, OSError, ValueError, ImportError, SQLAlchemyError) as error:
        never = is_no_registry(error) or isinstance(error, ImportError | ArgumentError)
        never |= isinstance(error, ValueError) and not isinstance(error, OSError)  # of requests' errors some are both
        never |= isinstance(error, SQLAlchemyError) and not isinstance(error, OperationalError)
        scheme = uri.partition("://")[0].partition("+")[0]
        advice = "Check the address, or leave it out to track in the output folder."
        if "sqlite3.DatabaseError" in str(error):
            advice = (
                "If it was the store of a sweep, the file is damaged: move it away, and `tiny-onn sync` fills a new "
                "one with all that the trials' folders hold."
            )
        brief = f"{named_by} {mask(uri)}: cannot be used ({in_a_line(error, uri)})"
        if named_by == SERVERS_OWN:
            expected = "a database that runs, with its driver installed here, as postgresql://user@host/mlflow"
            advice = advice if "damaged" in advice else "Leave it out for a SQLite file in --output."
        else:
            expected = "a reachable MLflow server"
        sentence = f"{brief}. Expected {expected}, or a SQLite file as sqlite:////path/mlflow.db. {advice}"
        if never or scheme not in _MAY_COME_BACK:
            raise UserError(sentence) from None
        raise StoreUnreachable(sentence, brief) from None


def open_experiment(client: "MlflowClient", name: str, artifacts: Path | None) -> str:
    """The id of the experiment `name`, created if need be with its artifacts in the folder `artifacts`.

    Raises:
        UserError: the experiment lies in MLflow's bin, or cannot be created.
    """
    from mlflow.exceptions import MlflowException

    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = None if artifacts is None else artifacts.resolve().as_uri()
            try:
                return str(client.create_experiment(name, artifact_location=location, tags=_KIND))
            except MlflowException:  # another process was quicker
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
    except MlflowException as error:
        raise UserError(f"MLflow experiment {name!r}: cannot be created ({in_a_line(error)}).") from None
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {name!r}: was deleted, and its name is still taken. Restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, or use another name."
        )
    return str(experiment.experiment_id)


def find_experiment(client: "MlflowClient", name: str) -> str:
    """The id of the experiment `name`.

    Raises:
        UserError: there is none; names those that there are.
    """
    named = client.get_experiment_by_name(name)
    if named is None:
        known = ", ".join(sorted(experiment.name for experiment in client.search_experiments())) or "none"
        raise UserError(f"MLflow has no experiment {name!r}; there are: {known}. Name one of them with --experiment.")
    return str(named.experiment_id)


@contextmanager
def _alone(uri: str, create: bool) -> Iterator[None]:
    """Processes that create one SQLite file at the same time leave it unusable: let them queue."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    lock_file = database.with_name(database.name + ".lock")
    if not create:  # to read takes no right to write; who may not write here cannot be creating it either
        try:
            append_to(lock_file).close()
        except OSError:
            yield
            return
    database.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(lock_file, _CREATION_LIMIT_S))
        except TimeoutError:
            raise TimeoutError(
                f"another process has been opening it for {_CREATION_LIMIT_S:.0f} s; try again when that has ended"
            ) from None
        yield


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None of any other store, and of one in memory."""
    path = uri.removeprefix(_SQLITE).partition("?")[0]
    if not uri.startswith(_SQLITE) or not path or path.startswith(("file:", ":memory:")):
        return None
    return Path(unquote(path))


def plain(text: str) -> str:
    """What somebody else wrote, without what would steer a terminal: colours, line ends, changes of direction."""
    return "".join(character if character.isprintable() else " " for character in text)


def in_a_line(error: BaseException, uri: str = "") -> str:
    """The line of an error that says most, without passwords and in at most 200 characters."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(_SAYS_LITTLE)]
    line = plain(mask(lines[0], uri)) if lines else type(error).__name__
    if cause := _CAUSE.search(line):  # of a request, behind its whole address
        line = cause[1].rpartition(": ")[2].strip("'\" ")
    return line if len(line) <= 200 else line[:200] + "…"
