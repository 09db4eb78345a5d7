"""A real MLflow server on loopback, and a proxy before it that fails as networks and servers do."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pipeline.layout import Output

_START_LIMIT_S = 120.0


class MlflowServer:
    """`mlflow server` over the SQLite file and the artifacts of `output`, on a port of its own that it keeps."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.port = _free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        self._output.root.mkdir(parents=True, exist_ok=True)
        words = ["--backend-store-uri", self._output.tracking_uri, "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--workers", "1", "--artifacts-destination", str(self._output.artifacts)]
        with (self._output.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._output.root / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server did not come up")

    def stop(self) -> None:
        """As if its machine had lost power."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def send(self, number: signal.Signals) -> None:
        """A signal to the server and its workers."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class FaultyProxy:
    """Hands requests on to a server, as `mode` says.

    "pass"; "down": nothing listens; "stall": takes requests and never answers; "error": answers 500 and hands nothing
    on; "lose": hands on, and breaks off instead of answering.
    """

    def __init__(self, server: MlflowServer) -> None:
        self._server = server
        self.port = _free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.mode = "down"
        self.asked = 0
        self._listener: ThreadingHTTPServer | None = None
        self._release = threading.Event()

    def be(self, mode: str) -> None:
        """Changes `mode`."""
        self.mode = mode
        self._release.set()
        if mode == "down":
            if self._listener is not None:
                self._listener.shutdown()
                self._listener.server_close()
                self._listener = None
            return
        self._release = threading.Event()
        if self._listener is None:
            self._listener = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
            self._listener.daemon_threads = True
            threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                proxy.asked += 1
                mode, release = proxy.mode, proxy._release
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if mode == "stall":
                    release.wait()
                    self.close_connection = True
                    return
                status, kind, answer = 500, "text/plain", b"out of order"
                if mode != "error":
                    upstream = http.client.HTTPConnection("127.0.0.1", proxy._server.port, timeout=30)
                    headers = {name: value for name, value in self.headers.items() if name != "Host"}
                    upstream.request(self.command, self.path, body, headers)
                    response = upstream.getresponse()
                    status, answer = response.status, response.read()
                    kind = response.getheader("Content-Type") or "application/json"
                    upstream.close()
                if mode == "lose":
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        return Handler


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition, seconds: float = 60.0) -> None:
    """Returns when `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def everything(store: Path) -> str:
    """All text in all tables of a SQLite file."""
    import sqlite3

    with sqlite3.connect(store) as connection:
        return "\n".join(connection.iterdump())
