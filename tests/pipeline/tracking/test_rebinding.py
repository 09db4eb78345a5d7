"""A page of another site, whose name leads to this machine, gets nothing of `tiny-onn ui`: seen in Chromium."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.layout import Output
from pipeline.tracking.tracker import Tracker
from tests.browser import chromium, new_page
from tests.pipeline.sweep_samples import experiment

pytestmark = pytest.mark.browser
_ASK = """async () => {
    const answer = await fetch("/ajax-api/2.0/mlflow/experiments/search?max_results=10");
    return [answer.status, await answer.text()];
}"""


def test_names_that_lead_here_are_not_served(tmp_path: Path) -> None:
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    tracker.start_summary(tmp_path, experiment())
    tracker.close("FINISHED")
    words = [sys.executable, "-m", "pipeline.cli", "ui", "--output", str(tmp_path), "--experiment", "tests"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as command:
        try:
            assert command.stdout is not None
            link = next(line for line in iter(command.stdout.readline, "") if "http://127.0.0.1" in line)
            port = link.strip().partition("/#")[0].rpartition(":")[2]
            with chromium("--host-resolver-rules=MAP *.example 127.0.0.1") as browser:
                page = new_page(browser)
                seen = {}
                for host in ("127.0.0.1", "localhost", "10.evil.example", "192.168.evil.example", "172.16.a.example"):
                    page.goto(f"http://{host}:{port}/health")  # which is served by any name, and harmless
                    seen[host] = page.evaluate(_ASK)
        finally:
            command.terminate()
            command.wait(timeout=30)
    for host, (status, text) in seen.items():
        if host in ("127.0.0.1", "localhost"):
            assert status == 200
            assert '"tests"' in text
        else:
            assert status == 403, (host, text)
            assert "experiment" not in text
