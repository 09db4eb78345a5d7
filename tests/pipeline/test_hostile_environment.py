"""A sweep and its report in an environment in which each of the parts, left alone, fails or goes astray."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from pipeline.layout import Output
from pipeline.tracking.store import open_store
from tests.pipeline.delivery_samples import statuses
from tests.pipeline.samples import write_config

ROOT = Path(__file__).parents[2]


def hostile(folder: Path) -> dict[str, str]:
    """What users have, and of which each has stopped a Ray, MLflow, torch or matplotlib user."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    long = folder / ("t" * 90)
    long.mkdir()
    return {
        "TMPDIR": str(long),
        "HOME": "/dev/null/home",
        "http_proxy": dead,
        "https_proxy": dead,
        "MPLBACKEND": "module://matplotlib_inline.not_installed",
        "MPLCONFIGDIR": str(folder),
        "RAY_TRAIN_V2_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": "127.0.0.1:9",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_REGISTRY_URI": dead,
        "MLFLOW_TRACKING_URI": dead,
        "MLFLOW_RUN_ID": "0" * 32,
        "MLFLOW_EXPERIMENT_NAME": "elsewhere",
        "CXX": "/bin/false",
        "FORCE_COLOR": "1",
        "PYTHONIOENCODING": "ascii",
        "MASTER_ADDR": "192.0.2.1",  # as from torchrun or a batch system
        "MASTER_PORT": "1",
        "RANK": "3",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "3",
    }


@pytest.mark.slow
def test_a_sweep_in_a_hostile_environment_is_whole() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place)
        config = write_config(folder)
        config.write_text(config.read_text().replace("compile: eager", "compile: auto"))
        (folder / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: black\n")
        output = Output(folder / "o")
        words = [sys.executable, "-m", "pipeline.cli", "ablate", str(config), "--output", str(output.root)]
        environment = {**os.environ, **hostile(folder), "PYTHONPATH": str(ROOT)}
        environment.pop("no_proxy", None)
        environment.pop("NO_PROXY", None)
        done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, timeout=400, check=False)
        said = done.stdout.decode("ascii") + done.stderr.decode("ascii")
        assert done.returncode == 0, said
        assert "uncompiled here, which takes longer: the C++ compiler /bin/false does not work" in " ".join(
            said.split()
        )
        assert "\x1b[?25l" not in said  # no table is redrawn in what is no terminal
        assert statuses(output, "look") == Counter({"FINISHED": 3})
        result = json.loads(next(output.sweep("look").glob("trials/*/result.json")).read_text())
        assert "eager" in json.dumps(result)
        assert (output.sweep("look") / "report" / "report.html").stat().st_size > 10_000
        models = open_store(output.tracking_uri).search_registered_models()
        assert sorted(model.name for model in models) == ["look-per_token", "look-task_only"]
        report = [sys.executable, "-m", "pipeline.cli", "report", "look", "--output", str(output.root)]
        again = subprocess.run(report, env=environment, cwd=folder, capture_output=True, timeout=200, check=False)
        assert again.returncode == 0, again.stderr.decode()
