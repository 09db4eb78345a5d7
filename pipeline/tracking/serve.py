"""Serves MLflow: its page on this machine, with links that open it where it helps, or a tracker for many machines."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.interrupts import Interrupts
from pipeline.secrecy import mask, public
from pipeline.tracking.leaderboard import links, prototype_links, report_links, share_leaderboard
from pipeline.tracking.mlflow_process import LOOPBACK, mlflow_server, own_names, watch
from pipeline.tracking.store import SERVERS_OWN, find_experiment, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient


def serve(uri: str, experiment_name: str, artifacts: Path, port: int | None) -> None:
    """Runs MLflow's server on 127.0.0.1 for the store at `uri`, prints the links, and stops it on Ctrl-C or SIGTERM.

    Of a server that already runs (http, https) only the links are printed.

    Raises:
        UserError: there is no such store or experiment, the port is taken, or the server does not come up or ends.
    """
    client = open_store(uri, create=False)
    experiment_id = find_experiment(client, experiment_name)
    share_leaderboard(client, experiment_id)
    if uri.startswith(("http://", "https://")):
        _print_links(client, public(uri), experiment_id)
        return
    options = ["--workers", "1", "--default-artifact-root", artifacts.resolve().as_uri()]
    with (
        Interrupts() as interrupts,
        mlflow_server(uri, LOOPBACK, port, options, interrupts) as (address, server),
    ):
        if interrupts.signal is None:
            _print_links(client, address, experiment_id)
            click.echo("Ctrl-C stops the server.")
        watch(server, interrupts, "tiny-onn ui")
        click.echo("Stopped.")


def serve_all(
    uri: str, artifacts: str, host: str, port: int | None, allowed_hosts: Sequence[str], workers: int
) -> None:
    """Runs MLflow's server as the tracker of many machines: runs in the database at `uri`, files, which clients send
    through the server, at `artifacts`, a path or URI of the server's own.

    Raises:
        UserError: there is no such database, the port is taken, or the server does not come up or ends.
    """
    open_store(uri, named_by=SERVERS_OWN)
    options = ["--workers", str(workers), "--artifacts-destination", artifacts]
    with (
        Interrupts() as interrupts,
        mlflow_server(uri, host, port, options, interrupts, allowed_hosts) as (address, server),
    ):
        if interrupts.signal is None:
            click.echo(f"MLflow serves {public(uri)} at {address}; files lie in {mask(artifacts)}.")
            if _is_loopback(host):
                click.echo("Only this machine can reach it; for others name an address of its own with --host.")
            else:
                click.echo("It asks for no password: whoever reaches this port can read, change and delete all runs.")
                known = ", ".join(dict.fromkeys([*own_names(host), *allowed_hosts]))
                click.echo(f"It answers to {known}; --allowed-hosts adds a name.")
            click.echo(f"Track there with:\n  tiny-onn ablate CONFIG --tracking-uri {address}")
            click.echo("Ctrl-C stops the server.")
        watch(server, interrupts, "tiny-onn server")
        click.echo("Stopped.")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _print_links(client: "MlflowClient", address: str, experiment_id: str) -> None:
    everything = {
        **links(address, experiment_id),
        **prototype_links(client, address, experiment_id),
        **report_links(client, address, experiment_id),
    }
    for name, link in everything.items():
        click.echo(f"{name}:\n  {link}")
