"""What docs/reports.md tells the reader to run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import measures
from pipeline.layout import Output
from pipeline.reporting.columns import COLUMNS
from pipeline.reporting.frontier import envelope
from pipeline.settings.experiment_file import validate_experiment
from pipeline.tracking.destination import EXPERIMENT
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/, where the sweeps `before` and `after` have finished."""
    folder = tmp_path_factory.mktemp("docs")
    output = Output(folder / "runs")
    tracker = Tracker(output.tracking_uri, EXPERIMENT, output.artifacts)
    for name in ("before", "after"):
        sample = experiment(name)
        tracker.start_summary(output.sweep(name), sample)
        for trial, place in trials(output, sample):
            write_spool(trial, place)
            delivery = tracker.start_trial(place, trial, name, EXTRA)
            tracker.end_trial(delivery, "FINISHED")
        tracker.end_summary("FINISHED", [])
    return folder


def _run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_commands_do_what_the_page_says(folder: Path) -> None:
    commands = re.findall(r"^    tiny-onn (.*)$", TEXT, re.MULTILINE)
    assert commands[:2] == ["report before after", "report after"]
    (by_id,) = commands[2:]  # of ids that this store does not have
    assert re.fullmatch(r"report \S+@[0-9a-f]{4} \S+@[0-9a-f]{4} --tracking-uri \S+", by_id)
    commands = commands[:2]
    said = [_run([sys.executable, "-m", "pipeline.cli", *command.split()], folder) for command in commands]
    assert "the same in every seed, to the last digit" in " ".join(said[0].split())
    report = folder / "runs" / "sweeps" / "after" / "report"
    for name in ("less-before.csv", "report.html", "results.csv", "results.parquet", "results.tex"):
        assert (report / name).stat().st_size > 100
    assert "held-out loss (nats)" in (report / "results.tex").read_text()


def test_the_program_prints_the_means(folder: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    said = _run([sys.executable, "-c", program], folder)
    assert re.search(r"aggregated +1\.1\d* +1\.01666", said)


def test_each_quantity_has_the_name_that_tables_data_and_mlflow_have() -> None:
    rows = re.findall(r"^\| ([^|]+) \| `([a-z_]+/[a-z_]+)` \| (?:`([a-z_]+)`|–) \|", TEXT, re.MULTILINE)
    assert len(rows) == 11
    titles = {column.key: column.title for column in COLUMNS}
    recorded = {value for value in vars(measures).values() if isinstance(value, str)}
    for name, metric, key in rows:
        assert metric in recorded
        assert not key or titles[key] == name


def test_the_config_is_one_and_the_example_is_right() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    study = validate_experiment(yaml.safe_load(text), "docs/reports.md").study
    assert study is not None
    assert (study.primary_arm, study.primary_cell) == ("aggregated", {"model.gain": 2})
    curve = envelope([(0.04, 1.70), (0.16, 1.50)])
    assert curve is not None
    assert curve.at(0.08) == pytest.approx(1.60)
