"""`tiny-onn ui` as a person starts and ends it."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.tracking.mlflow_process import address_of
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sockets import listening, reachable_from_elsewhere
from tests.pipeline.sweep_samples import experiment

FOREIGN = ("elsewhere.example", "10.evil.example", "192.168.evil.example:5000", "172.16.evil.example", "10.1.2.3")


def refused_by(address: str, *hosts: str) -> None:
    """Asserts that none of `hosts`, as a page of another site that has its name lead here would send it, is served."""
    for host in hosts:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host}))


def test_no_server_outlives_the_command(tmp_path: Path) -> None:
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    tracker.start_summary(tmp_path, experiment())
    tracker.close("FINISHED")
    words = [sys.executable, "-m", "pipeline.cli", "ui", "--output", str(tmp_path), "--experiment", "tests"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    environment |= {"MLFLOW_PORT": "1", "MLFLOW_STATIC_PREFIX": "/elsewhere", "MLFLOW_HOST": "0.0.0.0"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as command:
        try:
            assert command.stdout is not None
            lines = iter(command.stdout.readline, "")
            link = next(line for line in lines if "http://127.0.0.1" in line)
            address = link.strip().partition("/#")[0]
            assert urllib.request.urlopen(f"{address}/health", timeout=10).status == 200
            assert any("Ctrl-C stops the server" in line for line in lines)
            sockets = listening(command.pid)
            assert address.removeprefix("http://") in sockets
            assert reachable_from_elsewhere(sockets) == set()
            refused_by(f"{address}/ajax-api/2.0/mlflow/experiments/search?max_results=1", *FOREIGN)
            command.send_signal(signal.SIGTERM)
            assert command.wait(timeout=30) == 0
            assert "Stopped." in command.stdout.read()
        finally:
            command.kill()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/health", timeout=10)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "fd00::7", "head"])
def test_the_address_that_is_shown_is_one_that_clients_accept(host: str) -> None:
    address = address_of(host, 5000)
    parts = urllib.parse.urlsplit(requests.Request("GET", f"{address}/health").prepare().url)
    assert (parts.hostname, parts.port) == ("127.0.0.1" if host in ("0.0.0.0", "::") else host, 5000)


def test_a_server_for_many_keeps_runs_and_the_files_that_clients_send(tmp_path: Path) -> None:
    """A client that knows the address alone; then the same command again, on the same port."""
    from pipeline.tracking.mlflow_process import free_port

    port = free_port("127.0.0.1", None)
    words = [sys.executable, "-m", "pipeline.cli", "server", "--output", str(tmp_path), "--port", str(port)]
    words += ["--workers", "1", "--allowed-hosts", "mlflow.cluster.local"]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    report = tmp_path / "report.md"
    report.write_text("# Found")
    for attempt in (1, 2):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as command:
            try:
                assert command.stdout is not None
                lines = list(iter(command.stdout.readline, "Ctrl-C stops the server.\n"))
                assert any(f"--tracking-uri {address}" in line for line in lines)
                sockets = listening(command.pid)
                assert reachable_from_elsewhere(sockets) == set()
                if attempt == 1:
                    again = subprocess.run(words, capture_output=True, text=True, check=False)
                    assert again.returncode == 2
                    assert f"port {port} of 127.0.0.1 cannot be used" in again.stderr
                    tracker = Tracker(address, "tests", None)
                    tracker.start_summary(tmp_path / "sweep", experiment())
                    tracker.end_summary("FINISHED", [report])
                    assert tracker.problem is None
                    asked = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
                    for name in ("mlflow.cluster.local", f"mlflow.cluster.local:{port}"):
                        urllib.request.urlopen(urllib.request.Request(asked, headers={"Host": name})).close()
                    refused_by(asked, "mlflow.cluster.local.evil.example", *FOREIGN)
                else:
                    client = open_store(address)
                    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
                    assert run.info.status == "FINISHED"
                    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
                    there = client.download_artifacts(run.info.run_id, "report.md", str(tmp_path))
                    assert Path(there).read_text() == "# Found"
                command.send_signal(signal.SIGTERM)
                assert command.wait(timeout=30) == 0
            finally:
                command.kill()
    assert next((tmp_path / "mlflow-server" / "artifacts").rglob("report.md")).read_text() == "# Found"


def test_a_server_whose_database_or_address_cannot_be_is_refused(tmp_path: Path) -> None:
    for options, reason in (
        (["--backend-uri", "postgresql://me:s3cret@127.0.0.1:9/x"], "--backend-uri postgresql://me:***@127.0.0.1:9/x"),
        (["--host", "192.0.2.1"], "port 5000 of 192.0.2.1 cannot be used"),
    ):
        words = [sys.executable, "-m", "pipeline.cli", "server", "--output", str(tmp_path), *options]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr
        assert "s3cret" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "{file}"], "--output {file}: cannot be used (Not a directory)"),
        (["--output", "{folder}", "--host", "192.0.2.1"], "port 5000 of 192.0.2.1 cannot be used (Cannot assign"),
    ],
)
def test_a_place_where_no_server_can_be_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    places = {"file": str(tmp_path / "file"), "folder": str(tmp_path / "folder")}
    (tmp_path / "file").touch()
    ran = CliRunner().invoke(main, ["server", *(word.format(**places) for word in words)])
    assert ran.exit_code == 2, ran.output
    assert message.format(**places) in ran.output


def test_a_server_answers_to_exact_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.tracking import mlflow_process
    from pipeline.tracking.mlflow_process import allowed_hosts

    local = ["localhost", "localhost:5000", "127.0.0.1", "127.0.0.1:5000", "[::1]", "[::1]:5000"]
    assert allowed_hosts("127.0.0.1", 5000) == local
    assert allowed_hosts("10.0.0.5", 5000, ["m.local", "n:80"]) == [
        *local, "10.0.0.5", "10.0.0.5:5000", "m.local", "m.local:5000", "n:80",
    ]  # fmt: skip
    assert allowed_hosts("fd00::7", 80)[-2:] == ["[fd00::7]", "[fd00::7]:80"]
    monkeypatch.setattr(mlflow_process, "addresses_here", lambda: ["10.0.0.5", "fe80::1"])
    for host in ("0.0.0.0", "::"):
        everywhere = allowed_hosts(host, 5000)
        assert {"10.0.0.5", "10.0.0.5:5000", "[fe80::1]:5000", socket.gethostname().lower()} <= set(everywhere)
    for wrong in ("*", "10.*", "*.evil", "a,b", "a b", "", "http://x"):
        with pytest.raises(UserError, match="without wildcards"):
            allowed_hosts("127.0.0.1", 5000, [wrong])
    monkeypatch.undo()
    assert not any("*" in name or "?" in name or "[!" in name for name in allowed_hosts("0.0.0.0", 5000))
