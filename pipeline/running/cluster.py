"""The Ray cluster that trials run on: this machine's cores by default, or a cluster that is there already."""

import logging
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from pipeline.errors import UserError
from pipeline.ray_private import agent_on_a_free_port, own_cluster_options
from pipeline.running.ahead import Ahead
from pipeline.running.ray_process import DEFAULTS, NEEDED, hangup_held, ray_process, short_folder
from pipeline.running.token import Token, find_token
from pipeline.running.waiting import report_waiting
from pipeline.settings.config import WorkersConfig

_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Resources:
    """What one machine of a cluster has."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to: what its machines had at first, and where its head listens."""

    nodes: tuple[Resources, ...]
    head: str = ""


def local_resources() -> Resources:
    """The cores that this process may use (affinity and container limits respected), and the GPUs that it sees."""
    quota = _cgroup_cpus()
    cpus = len(os.sched_getaffinity(0))
    return Resources(max(1, math.floor(min(cpus, quota))), _visible_gpus())


def fit(workers: WorkersConfig, nodes: Sequence[Resources], wanted: int) -> int:
    """How many trials, each of `workers.count` workers, run at once on `nodes`; at most `wanted`.

    A worker lies on one machine; a trial's workers may lie on several.

    Raises:
        UserError: not even one trial fits; names the field, what it asks for and what there is.
    """
    slots = sum(_workers_on(node, workers) for node in nodes)
    if slots >= workers.count:
        return max(1, min(wanted, slots // workers.count))
    cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    asked = f"workers.count={workers.count} with workers.cpus={workers.cpus:g}, workers.gpus={workers.gpus:g} each"
    if workers.gpus * workers.count > gpus:
        field, need, have = "workers.gpus", f"{workers.gpus * workers.count:g} GPUs", f"{gpus:g}"
    else:
        field, need, have = "workers.cpus", f"{workers.cpus * workers.count:g} CPUs", f"{cpus:g}"
    what = "GPU" if field == "workers.gpus" else "core"
    place = "" if len(nodes) == 1 else f" on {len(nodes)} machines, and each worker must fit on one"
    raise UserError(
        f"{field}: a trial asks for {need} ({asked}), but there are {have}{place}; {slots} of its workers fit. "
        f"Lower workers.count or {field} (a fraction shares a {what}), or use a larger cluster with --address."
    )


@contextmanager
def connect(
    address: str | None, verbose: bool = False, console: Console | None = None, early: "EarlyStart | None" = None
) -> Iterator[Cluster]:
    """Connects to the cluster at `address` (host:port), or starts one on this machine, reachable from it alone.

    Afterwards the connection is closed, a cluster started here is stopped with all of its processes, and the process's
    environment is as it was.

    Args:
        console: shows that it takes long.
        early: the cluster of this machine that is being started already; it is waited for instead.

    Raises:
        UserError: nothing answers at `address`, within ten seconds; or Ray cannot be started, for whatever reason.
    """
    with early or ExitStack() as session:
        yield (early.cluster if early else session.enter_context(_session(address, verbose, console)))()


class EarlyStart(ExitStack):
    """A cluster on this machine that starts in the background from now on, for `connect`.

    It is stopped as `connect` says, when the block of `connect` ends, or else that of this context. A start that fails
    is reported by `connect` alone.
    """

    def __init__(self, verbose: bool = False, console: Console | None = None) -> None:
        super().__init__()
        self.cluster = self.enter_context(_session(None, verbose, console, early=True))


@contextmanager
def _session(
    address: str | None, verbose: bool, console: Console | None, early: bool = False
) -> Iterator[Callable[[], Cluster]]:
    """`connect`, but what it gives has to be called for the cluster. It is started then, or, if `early`, now."""
    console = console or Console(stderr=True)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        raise UserError(
            "this process is already connected to a Ray cluster, and the command would close that connection. Call "
            "ray.shutdown() first, or run the command in its own process."
        )
    if address is not None:
        check_address(address)
    token = None if address is None else find_token(os.environ)
    if token and token.warning:
        print(token.warning, file=sys.stderr)
    with ray_process(own_cluster=address is None), warnings.catch_warnings():
        folder = short_folder() if address is None else None
        if not verbose:  # in a notebook it asks for ipywidgets as it is imported
            logging.getLogger("ray.widgets.util").setLevel(logging.CRITICAL)
        import ray  # reads the environment

        level = logging.INFO if verbose else logging.CRITICAL
        options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
        if address is None:
            here = local_resources()
            options |= {"address": "local", "num_cpus": int(here.cpus), "num_gpus": int(here.gpus)}
            options |= {"include_dashboard": False, **own_cluster_options(folder)}
        else:
            options |= {"address": address, "runtime_env": {"env_vars": NEEDED | _set_defaults()}}
        if not verbose:
            warnings.filterwarnings("ignore", module=r"ray(\.|$)")
            for name in ("ray", "ray.tune", "ray.train", "ray.air"):
                logging.getLogger(name).setLevel(level)
        others = set(psutil.Process().children(recursive=True))

        def init() -> None:
            with hangup_held(), agent_on_a_free_port():
                ray.init(**options)

        def cluster() -> Cluster:
            if not verbose:
                warnings.simplefilter("ignore")
            try:
                with report_waiting(console, _awaited(address)):
                    start()
            except Exception as error:  # also plain ones: of sockets, rights and a machine too busy
                _end(set(psutil.Process().children(recursive=True)) - others)
                raise _refusal(address, token, error) from error
            return Cluster(nodes(), ray.get_runtime_context().gcs_address)

        ahead: Ahead | None = None
        try:
            ahead = Ahead(init, "start-ray") if early else None
            start = ahead.wait if ahead else init
            yield cluster
        finally:
            with report_waiting(console, "Ray to stop"):
                _stop(ahead, others)


def _stop(ahead: Ahead | None, others: set[psutil.Process]) -> None:
    """Closes the connection; what Ray has started is ended with it, also where its start failed or was given up."""
    import ray

    started = False
    try:
        if ahead:  # a start that is under way cannot be taken back
            ahead.wait()
        started = True
    except Exception:  # `connect` has raised it to its caller already
        pass
    finally:
        ray.shutdown()
        if ahead and not started:
            _end(set(psutil.Process().children(recursive=True)) - others)
        if ahead:
            ahead.end()


def _end(processes: set[psutil.Process]) -> None:
    """Ends what Ray had started before it failed to start, which it leaves behind."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(list(processes), timeout=5)


def _set_defaults() -> dict[str, str]:
    return {name: os.environ[name] for name in DEFAULTS}


def _awaited(address: str | None) -> str:
    return "Ray to start on this machine" if address is None else f"the Ray cluster at {address} to let this command in"


def _refusal(address: str | None, token: Token | None, error: Exception) -> UserError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    if address is not None:
        return UserError(f"address {address}: no Ray cluster could be joined ({reason}). {_key(token)}")
    return UserError(
        f"Ray could not be started on this machine ({type(error).__name__}: {reason}). Nothing was begun, and the same "
        "command may be given again, when the machine is less busy if that was the reason. It needs a TMPDIR that can "
        "be written to, and some hundred processes and open files (`ulimit -u`, `ulimit -n`)."
    )


def _key(token: Token | None) -> str:
    """A hint on the token where a cluster listens, and cannot be joined."""
    if token is None:
        return (
            "If it asks for a token, put that into ~/.ray/auth_token, or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH; "
            "else look whether what listens there is the head of a Ray cluster of this version."
        )
    # Not for the command to set: where a cluster asks for no token, one that uses it starts no trial, without a word.
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return f"If it asks for a token, set RAY_AUTH_MODE=token; that of {token.source} is used then."
    return (
        f"Is the token of {token.source} this cluster's (`ray get-auth-token` on its head shows it), and what listens "
        "there the head of a Ray cluster of this version?"
    )


def nodes() -> tuple[Resources, ...]:
    """What each living machine of the cluster that this process is connected to has."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(Resources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive)


def check_address(address: str) -> None:
    """Knocks at `address`.

    Raises:
        UserError: it is not host:port, or nothing answers within five seconds.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"address {address!r}: expected host:port of a Ray head, for example 10.0.0.5:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"address {address}: nothing answers ({error}). Expected the head of a running Ray cluster; "
            "start it with `ray start --head`, or leave the address out to use this machine."
        ) from error


class HeadWatch:
    """Whether the head of a cluster still answers, asked every few seconds. Ray itself waits for a minute."""

    def __init__(self, head: str, every_s: float = 2.0, unanswered: int = 2) -> None:
        self._head, self._every_s, self._most = head, every_s, unanswered
        self._unanswered, self._next = 0, 0.0

    def check(self) -> UserError | None:
        """An error once it has not answered several times in a row."""
        if time.monotonic() >= self._next:
            try:
                check_address(self._head)
                self._unanswered = 0
            except UserError:
                self._unanswered += 1
            self._next = time.monotonic() + self._every_s
        if self._unanswered < self._most:
            return None
        return UserError(f"the head of the Ray cluster, {self._head}, does not answer any more; it may have been ended")


def _workers_on(node: Resources, workers: WorkersConfig) -> int:
    by_cpu = math.floor(node.cpus / workers.cpus + 1e-6)
    return by_cpu if workers.gpus == 0 else min(by_cpu, math.floor(node.gpus / workers.gpus + 1e-6))


def _cgroup_cpus() -> float:
    """The CPUs that the container's quota grants; infinite without one."""
    modern, old = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")
    if modern.exists():
        quota, period = modern.read_text().split()[:2]
        return math.inf if quota == "max" else int(quota) / int(period)
    if (old / "cpu.cfs_quota_us").exists():
        quota_us = int((old / "cpu.cfs_quota_us").read_text())
        return math.inf if quota_us <= 0 else quota_us / int((old / "cpu.cfs_period_us").read_text())
    return math.inf


def _visible_gpus() -> int:
    """Without importing torch, which takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))
    return (
        present
        if visible is None
        else min(present, len([v for v in visible.split(",") if v.strip() not in ("", "-1")]))
    )
