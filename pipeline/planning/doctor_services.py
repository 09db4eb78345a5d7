"""What `tiny-onn doctor` looks at beyond the machine: ports, proxies, variables, Ray and the tracker."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import mlflow_private, ray_private
from pipeline.layout import Output
from pipeline.planning.doctor import Finding, good, note, stops
from pipeline.proxies import is_loopback
from pipeline.running import ray_process
from pipeline.running.cluster import check_address, connect
from pipeline.running.nodes import check_nodes
from pipeline.secrecy import public
from pipeline.tracking import mlflow_process
from tiny_onn import torch_private

_SERVER_PORT = 5000  # of `tiny-onn server`
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# What a user sets and that has an effect which is easily forgotten, with what to do about it.
_WITH_EFFECT = {
    "TORCH_COMPILE_DISABLE": "training runs uncompiled. To compile: unset it",
    "TORCHDYNAMO_DISABLE": "training runs uncompiled. To compile: unset it",
    "CUDA_VISIBLE_DEVICES": "only these GPUs are used. For all: unset it",
    "PYTHONPATH": "modules there come before installed ones. To use the installed ones: unset it",
    "TINY_ONN_OUTPUT": "a job that is submitted writes there. Else: unset it",
}
_IGNORED = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")


def ports() -> Iterator[Finding]:
    """Whether a port can be had on loopback, and reached; and whether the tracker server's is free."""
    with socket.socket() as listener:
        try:
            listener.bind((mlflow_process.LOOPBACK, 0))
            listener.listen(1)
            socket.create_connection(listener.getsockname(), timeout=5).close()
        except OSError as error:
            fix = "Workers and servers meet on 127.0.0.1: allow that in the sandbox or firewall."
            yield stops("ports", f"no connection to this machine itself ({error})", fix)
            return
    with socket.socket() as server:
        try:
            server.bind((mlflow_process.LOOPBACK, _SERVER_PORT))
        except OSError:
            fix = "For `tiny-onn server` name another with --port; other commands do not need it."
            yield note("ports", f"{_SERVER_PORT} is in use", fix)
            return
    yield good("ports", "this machine can be reached on 127.0.0.1")


def proxies(tracking_uri: str | None) -> Iterator[Finding]:
    """Whether calls go through a proxy, the tracker's among them."""
    named = {name: os.environ[name] for name in _PROXIES if os.environ.get(name)}
    if not named:
        yield good("proxies", "none")
        return
    listed = f"{', '.join(sorted(named))}: calls to this machine itself go around it"
    host = urlsplit(tracking_uri or "").hostname
    if host and not is_loopback(tracking_uri or ""):
        yield note("proxies", f"{listed}, those to {host} through it", f"If it cannot reach {host}: no_proxy={host}")
    else:
        yield good("proxies", listed)


def environment(own_cluster: bool) -> Iterator[Finding]:
    """Variables that are set and that a command overrides, ignores, or follows where that is easily forgotten."""
    is_set = {name for name, value in os.environ.items() if value}
    overridden = {name: value for name, value in ray_process.NEEDED.items() if os.environ.get(name, value) != value}
    for name in sorted(overridden):
        yield note("environment", f"{name}={os.environ[name]} is overridden: {overridden[name]}", "Nothing to do.")
    if own_cluster:
        for name in sorted(is_set & {"RAY_ADDRESS", "RAY_RUNTIME_ENV_HOOK"}):
            fix = "To join a cluster: --address HOST:PORT." if name == "RAY_ADDRESS" else "Nothing to do."
            yield note("environment", f"{name} has no effect on a cluster of our own", fix)
    for name in sorted(is_set & set(_IGNORED)):
        yield note("environment", f"{name} has no effect", "Use --tracking-uri and --experiment.")
    for name in sorted(is_set & set(_WITH_EFFECT)):
        effect, _, fix = _WITH_EFFECT[name].partition(". ")
        yield note("environment", f"{name} is set: {effect}", fix)
    defaults = sorted(name for name in ray_process.DEFAULTS if name in is_set)
    yield good("environment", f"your own values count for {', '.join(defaults)}" if defaults else "checked")


def private_names() -> Iterator[Finding]:
    """Whether ray, mlflow and torch have the private names that are used; without one, something takes its place."""
    lacking = [*ray_private.missing(), *mlflow_private.missing(), *torch_private.missing()]
    for problem in lacking:
        yield note("private names", problem, "Install the versions of constraints.txt.")
    if not lacking:
        yield good("private names", "ray, mlflow and torch have all that are used")


def ray_cluster(address: str | None, output: Path) -> Iterator[Finding]:
    """Whether Ray starts here, or a cluster can be joined whose nodes are alike and see the output folder."""
    if address is not None:
        check_address(address)
    with connect(address) as cluster:
        cpus, gpus = (sum(getattr(node, kind) for node in cluster.nodes) for kind in ("cpus", "gpus"))
        text = f"{len(cluster.nodes)} node{'s' * (len(cluster.nodes) != 1)}, {cpus:g} CPUs, {gpus:g} GPUs"
        if address is None:
            yield good("Ray", f"starts on this machine: {text}")
            return
        yield good("Ray", f"{address} can be joined: {text}")
        check_nodes(output)  # raises what differs, and where
        yield good("nodes", f"have the driver's versions, and see {output.absolute()}")


def tracker(uri: str | None, output: Path) -> Iterator[Finding]:
    """Whether MLflow's store answers."""
    from pipeline.tracking.store import open_store

    place = Output(output)
    if uri is None and not (place.root / "mlflow.db").exists():
        yield good("tracker", f"a SQLite file will be made: {place.root / 'mlflow.db'}")
        return
    open_store(uri or place.tracking_uri, create=False)
    yield good("tracker", f"{public(uri or place.tracking_uri)} answers")
