"""MLflow's server as a process of ours: started, waited for, and ended with the command that wanted it."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from pipeline.errors import UserError
from pipeline.interrupts import Interrupts
from pipeline.secrecy import public

START_LIMIT_S = 60.0
LOOPBACK = "127.0.0.1"
# Variables that would move the server's store, its files or its page, or open it wider than its command line says.
_NOT_THE_SERVERS = frozenset(
    f"MLFLOW_{name}"
    for name in (
        "ARTIFACTS_DESTINATION",
        "ARTIFACTS_ONLY",
        "DEFAULT_ARTIFACT_ROOT",
        "ENABLE_WORKSPACES",
        "GUNICORN_OPTS",
        "HOST",
        "PORT",
        "READ_REPLICA_BACKEND_STORE_URI",
        "REGISTRY_STORE_URI",
        "REGISTRY_URI",
        "SERVE_ARTIFACTS",
        "SERVER_ALLOWED_HOSTS",
        "SERVER_CORS_ALLOWED_ORIGINS",
        "SERVER_DISABLE_SECURITY_MIDDLEWARE",
        "SERVER_X_FRAME_OPTIONS",
        "STATIC_PREFIX",
        "TRACKING_URI",
        "UVICORN_OPTS",
        "WORKERS",
        "WORKSPACE",
        "WORKSPACE_STORE_URI",
    )
)
_NAME = re.compile(r"(\[[0-9a-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")


@contextmanager
def mlflow_server(
    uri: str, host: str, port: int | None, options: Sequence[str], interrupts: Interrupts, names: Sequence[str] = ()
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Runs `mlflow server` for the store at `uri` while the context lasts; gives the address and the process, once it
    answers or `interrupts` has a signal.

    Args:
        port: None for a free one.
        names: by which it may be called, NAME or NAME:PORT, beside those of `own_names`.

    Raises:
        UserError: the port is taken, or the server does not come up.
    """
    port = free_port(host, port)
    address = address_of(host, port)
    words = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), *options]
    words += ["--allowed-hosts", ",".join(allowed_hosts(host, port, names))]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in _NOT_THE_SERVERS},
        "MLFLOW_BACKEND_STORE_URI": uri,  # its password is nothing for a command line, which all can read
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # or it starts nine idle processes
    }
    # A session of its own: Ctrl-C reaches us alone, and we then stop the server in order.
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, env=environment, stdout=quiet, stderr=quiet, start_new_session=True) as server:
        try:
            command = f"MLFLOW_BACKEND_STORE_URI={shlex.quote(public(uri))} {shlex.join(words)}"
            _wait_until_up(server, address, command, interrupts)
            yield address, server
        finally:
            _stop(server)


def watch(server: "subprocess.Popen[bytes]", interrupts: Interrupts, command: str) -> None:
    """Returns when `interrupts` has a signal.

    Raises:
        UserError: the server ended before; `command` is how to start it again.
    """
    while interrupts.signal is None:
        with suppress(subprocess.TimeoutExpired):
            status = server.wait(timeout=0.3)
            raise UserError(f"MLflow's server ended by itself, with status {status}. Start it again with `{command}`.")


def allowed_hosts(host: str, port: int, names: Sequence[str] = ()) -> list[str]:
    """Each `Host` header that the server answers to, exactly.

    MLflow's own list, as any with a wildcard, lets in names such as 10.evil.example: a page from there that has its
    name resolve to this machine could then read and change all runs.

    Raises:
        UserError: a name has a wildcard, or is none.
    """
    allowed = []
    for name in (*own_names(host), *names):
        if not _NAME.fullmatch(name):
            raise UserError(f"--allowed-hosts {name}: expected a name or address, or NAME:PORT, without wildcards.")
        with_port = (
            name.rpartition(":")[2].isdigit() and not name.endswith("]") and (name.count(":") == 1 or "]" in name)
        )
        allowed += [name] if with_port else [name, f"{name}:{port}"]
    return list(dict.fromkeys(allowed))


def own_names(host: str) -> list[str]:
    """The names and addresses by which a server that listens on `host` is called, as a `Host` header has them."""
    names = ["localhost", LOOPBACK, "[::1]"]
    if host in ("0.0.0.0", "::"):
        names += [socket.gethostname().lower(), socket.getfqdn().lower(), *addresses_here()]
    else:
        names.append(host.lower())
    bracketed = [f"[{name}]" if ":" in name and not name.startswith("[") else name for name in names]
    return [name for name in dict.fromkeys(bracketed) if _NAME.fullmatch(name)]


def addresses_here() -> list[str]:
    """The addresses that this machine's name has, and those by which it reaches others."""
    addresses: list[str] = []
    with suppress(OSError):
        addresses += [str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(socket.gethostname(), None)]
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing
            addresses.append(str(probe.getsockname()[0]))
    return list(dict.fromkeys(addresses))


def address_of(host: str, port: int) -> str:
    """The address of a server that listens on `host`, as clients take it."""
    name = LOOPBACK if host in ("0.0.0.0", "::") else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def free_port(host: str, port: int | None) -> int:
    """`port`, if it is free, or any free one.

    Raises:
        UserError: it is taken, or there is no such host here.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            another = "--port" if host == LOOPBACK else "--host or --port"  # `ui` has no --host
            raise UserError(
                f"port {port} of {host} cannot be used ({error.strerror}). Expected an address of this machine, and a "
                f"port that nothing listens at; name another with {another}."
            ) from error
        return int(probe.getsockname()[1])


def _wait_until_up(server: "subprocess.Popen[bytes]", address: str, command: str, interrupts: Interrupts) -> None:
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if interrupts.signal is not None:
            return
        if server.poll() is not None:
            raise UserError(f"MLflow's server ended with status {server.returncode}; to see why, run: {command}")
        try:
            with directly.open(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise UserError(
        f"MLflow's server did not answer at {address} within {START_LIMIT_S:.0f} s, and was stopped. To see "
        f"why, run: {command}"
    )


def _stop(server: "subprocess.Popen[bytes]") -> None:
    """Ends the server and the workers that it has started, which share its process group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)
