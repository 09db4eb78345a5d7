"""`tiny-onn ui` as a person starts and ends it."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pipeline.layout import Output
from pipeline.tracking import Tracker
from tests.pipeline.sockets import listening, reachable_from_elsewhere
from tests.pipeline.sweep_samples import experiment


def test_no_server_outlives_the_command(tmp_path: Path) -> None:
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    tracker.start_summary(tmp_path, experiment())
    tracker.close("FINISHED")
    words = [sys.executable, "-m", "pipeline.cli", "ui", "--output", str(tmp_path), "--experiment", "tests"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
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
            command.send_signal(signal.SIGTERM)
            assert command.wait(timeout=30) == 0
            assert "Stopped." in command.stdout.read()
        finally:
            command.kill()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/health", timeout=10)
