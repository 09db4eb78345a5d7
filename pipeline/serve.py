"""Serves the MLflow page on this machine, with links that open it where it helps."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.errors import UserError
from pipeline.interrupts import Interrupts
from pipeline.leaderboard import links, report_links, share_leaderboard
from pipeline.secrecy import public
from pipeline.store import find_experiment, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

_START_LIMIT_S = 60.0


def serve(uri: str, experiment_name: str, artifacts: Path, port: int | None) -> None:
    """Runs MLflow's server on 127.0.0.1 for the store at `uri`, prints the links, and stops it on Ctrl-C or SIGTERM.

    Of a server that already runs (http, https) only the links are printed.

    Raises:
        UserError: there is no such store or experiment, the port is taken, or the server does not come up or ends.
    """
    client = open_store(uri)
    experiment_id = find_experiment(client, experiment_name)
    share_leaderboard(client, experiment_id)
    if uri.startswith(("http://", "https://")):
        _print_links(client, public(uri), experiment_id)
        return
    port = _free_port(port)
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--default-artifact-root", artifacts.resolve().as_uri()]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # its password is nothing for a command line, which all can read
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # or it starts nine idle processes
    }
    # A session of its own: Ctrl-C reaches us alone, and we then stop the server in order.
    quiet = subprocess.DEVNULL
    with (
        Interrupts() as interrupts,
        subprocess.Popen(words, env=environment, stdout=quiet, stderr=quiet, start_new_session=True) as server,
    ):
        try:
            command = f"MLFLOW_BACKEND_STORE_URI={shlex.quote(public(uri))} {shlex.join(words)}"
            _wait_until_up(server, address, command, interrupts)
            if interrupts.signal is None:
                _print_links(client, address, experiment_id)
                click.echo("Ctrl-C stops the server.")
            while interrupts.signal is None:
                with suppress(subprocess.TimeoutExpired):
                    status = server.wait(timeout=0.3)
                    raise UserError(
                        f"MLflow's server ended by itself, with status {status}. Start it again with `tiny-onn ui`."
                    )
            click.echo("Stopped.")
        finally:
            _stop(server)


def _print_links(client: "MlflowClient", address: str, experiment_id: str) -> None:
    everything = {**links(address, experiment_id), **report_links(client, address, experiment_id)}
    for name, link in everything.items():
        click.echo(f"{name}:\n  {link}")


def _wait_until_up(server: "subprocess.Popen[bytes]", address: str, command: str, interrupts: Interrupts) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        if interrupts.signal is not None:
            return
        if server.poll() is not None:
            raise UserError(f"MLflow's server ended with status {server.returncode}; to see why, run: {command}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise UserError(f"MLflow's server did not answer at {address} within {_START_LIMIT_S:.0f} s.")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    """Ends the server and the workers that it has started, which share its process group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)


def _free_port(port: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror}). Name another, or none for a free one."
            ) from error
        return int(probe.getsockname()[1])
