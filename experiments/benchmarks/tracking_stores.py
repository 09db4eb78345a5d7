"""MLflow stores for the benchmark of tracking: a SQLite file, and servers with SQLite and PostgreSQL behind them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.interrupts import Interrupts
from pipeline.tracking.mlflow_process import LOOPBACK, free_port, mlflow_server
from pipeline.tracking.store import open_store

STORES = ("sqlite", "server", "postgres")
SERVER_WORKERS = 2


class NotHere(Exception):
    """A store cannot be set up on this machine; says why."""


@contextmanager
def store(name: str, root: Path) -> Iterator[str]:
    """The address of a fresh store of this kind, as long as the context lasts.

    Raises:
        NotHere: what it needs is not installed.
    """
    database = f"sqlite:///{root / 'mlflow.db'}"
    if name == "sqlite":
        yield database
    elif name == "server":
        with _served(database, root) as address:
            yield address
    else:
        with _postgres(root) as database, _served(database, root) as address:
            yield address


@contextmanager
def _served(database: str, root: Path) -> Iterator[str]:
    open_store(database)  # creates its tables
    options = ["--workers", str(SERVER_WORKERS), "--artifacts-destination", str(root / "artifacts")]
    # Interrupts that are not entered take no signal: Ctrl-C ends the benchmark, and with it the server.
    with mlflow_server(database, LOOPBACK, None, options, Interrupts()) as (address, _):
        yield address


@contextmanager
def _postgres(root: Path) -> Iterator[str]:
    """A database cluster of its own, on loopback; as root, which PostgreSQL refuses, it runs as the user postgres."""
    missing = [tool for tool in ("initdb", "postgres", "pg_ctl", "createdb") if shutil.which(tool) is None]
    if missing:
        raise NotHere(f"{missing[0]} is not installed")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise NotHere("pip install .[postgres]") from None
    folder = root / "postgres"
    folder.mkdir()
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        for place in (root, folder):
            shutil.chown(place, user)

    def run(*words: str) -> None:
        done = subprocess.run(words, user=user, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotHere(f"{words[0]} failed: {' '.join(done.stderr.split())[:200]}")

    port = free_port(LOOPBACK, None)
    run("initdb", "--pgdata", "data", "--username", "bench", "--auth", "trust")
    options = f"-p {port} -c listen_addresses={LOOPBACK} -c unix_socket_directories={folder}"
    run("pg_ctl", "--pgdata", "data", "--wait", "--log", "log", "--options", options, "start")
    try:
        run("createdb", "--host", LOOPBACK, "--port", str(port), "--username", "bench", "mlflow")
        yield f"postgresql://bench@{LOOPBACK}:{port}/mlflow"
    finally:
        try:
            run("pg_ctl", "--pgdata", "data", "--mode", "immediate", "stop")
        except NotHere as error:
            raise UserError(f"the database in {folder} could not be stopped ({error})") from error
