"""What docs/inside.md tells the reader to write and to run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.pipeline.arc_samples import as_json, random_task
from tests.pipeline.samples import write_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "inside.md").read_text(encoding="utf-8")
OBSERVER, BEST, MAP = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ABLATE, PREDICT = re.findall(r"^    tiny-onn (.*)$", TEXT, re.MULTILINE)


def _run(folder: Path, *words: str) -> str:
    path = os.pathsep.join([str(ROOT), str(folder)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first command of the page has run."""
    folder = tmp_path_factory.mktemp("inside")
    settings = yaml.safe_load(write_config(folder).read_text())
    every = {"steps": 12, "log_every": 5, "evaluate_every": 6, "checkpoint_every": 6, "decode_tasks": 0}
    settings |= {"name": "my-study", "sweep": {"arms": ["per_token"], "seeds": [0]}}
    settings["training"] |= every
    settings["workers"] |= {"count": 2, "cpus": 0.25}
    settings["training"]["batch_tokens"] = 1000
    (folder / "my-study.yaml").write_text(yaml.safe_dump(settings))
    (folder / "my_observers.py").write_text(OBSERVER)
    (folder / "tasks.json").write_text(json.dumps({"one": as_json(random_task("one", 7))}))
    _run(folder, "-m", "pipeline.cli", *ABLATE.split())
    return folder


def test_the_observers_numbers_and_figures_are_where_the_page_says(folder: Path) -> None:
    place = folder / "runs" / "sweeps" / "my-study"
    lines = [
        json.loads(line) for line in (place / "trials" / "per_token-s0" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [5, 6, 10, 12]
    assert all(line["metrics"]["observer/prototype_norm"] > 0 for line in lines)
    assert 0 < lines[-1]["metrics"]["observer/black_cells"] < 1
    row = pd.read_csv(place / "report" / "results.csv").iloc[0]
    assert row["observer/black_cells"] == lines[-1]["metrics"]["observer/black_cells"]
    page = (place / "report" / "report.html").read_text()
    for words in ('<h2 id="routing">', "routing map 1: per_token", "active first layer: per_token", "prototype norm"):
        assert words in page, words
    images = [path.name.replace("%", "+") for path in folder.glob("runs/mlflow-artifacts/**/images/*.png")]
    steps = {(name.split("+step+")[0], int(name.split("+step+")[1].split("+")[0])) for name in images}
    assert {("routing_map_1", 6), ("routing_map_1", 12), ("routing_map_2", 12), ("active_first_layer", 10)} <= steps


def test_the_best_model_is_loaded_and_predicts(folder: Path) -> None:
    step, loss = _run(folder, "-c", BEST).split()
    assert int(step) in (6, 12)
    assert float(loss) > 0
    answers = json.loads(_run(folder, "-m", "pipeline.cli", *PREDICT.split()))
    assert list(answers) == ["one"]


def test_the_map_is_drawn(folder: Path) -> None:
    _run(folder, "-c", MAP)
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
