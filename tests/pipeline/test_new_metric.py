"""A new metric is one entry in pipeline/measures.py: it is measured, tracked, reported and on the leaderboard."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import measures
from tests.pipeline.samples import small_data

ENTRIES = """
    Metric("train/twice", of_step=lambda step: 2 * float(step.task_loss), leaderboard="recorded"),
    Metric(
        "used_often",
        of_module=lambda health: float((health.active > 0.5 * health.scalars[0]).double().mean()),
        shown=(Shown("used_often", "used often", "%", 100, 1, place="mean", primary=True),),
        leaderboard="middle",
    ),
    Metric(
        "held_out/perplexity",
        of_split=lambda found: math.exp(found.loss / found.labelled),
        shown=(Shown("perplexity", "perplexity", best="lowest", primary=True),),
        leaderboard="always",
    ),
"""

PROGRAM = """
import sys, types
from pathlib import Path

import pipeline

source, folder, data = sys.argv[1:]
module = types.ModuleType("pipeline.measures")
sys.modules["pipeline.measures"] = pipeline.measures = module
exec(compile(Path(source).read_text(), source, "exec"), module.__dict__)

import torch
from pipeline.layout import Output
from pipeline.reporting.files import write_report
from pipeline.reporting.report import make_report
from pipeline.settings.trials import Trial
from pipeline.tracking.leaderboard import leaderboard_metrics
from pipeline.tracking.tracker import Tracker
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_experiment
from tests.pipeline.sweep_samples import EXTRA

output, experiment = Output(Path(folder)), small_experiment()
trial = output.trial("new", "per_token-s0")
run_training(experiment, trial, Path(data), torch.device("cpu"))
tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
delivery = tracker.start_trial(trial, Trial(key="per_token-s0", experiment=experiment), "new", EXTRA)
tracker.end_trial(delivery, "FINISHED")
write_report(make_report(output.tracking_uri, "tests", "new"), Path(folder) / "report")
print(leaderboard_metrics([0, 1], {"train/twice"}))
print(module.primary_metrics())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where a run has ended whose measures have three entries more, and what the program has printed."""
    folder = tmp_path_factory.mktemp("new")
    text = Path(measures.__file__).read_text(encoding="utf-8")
    whole = text.replace("METRICS: tuple[Metric, ...] = (\n", f"METRICS: tuple[Metric, ...] = ({ENTRIES}", 1)
    assert whole != text
    (folder / "measures.py").write_text(whole, encoding="utf-8")
    data = small_data(folder / "data").folder
    words = [sys.executable, "-c", PROGRAM, str(folder / "measures.py"), str(folder), str(data)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout.splitlines()


def test_the_workers_measure_it(folder: tuple[Path, list[str]]) -> None:
    spool = folder[0] / "sweeps" / "new" / "trials" / "per_token-s0" / "metrics.jsonl"
    logged = {line["step"]: line["metrics"] for line in map(json.loads, spool.read_text().splitlines())}
    assert all(metrics["train/twice"] == 2 * metrics["train/task_loss"] for metrics in logged.values())
    assert [step for step, metrics in logged.items() if "held_out/perplexity" in metrics] == [4, 8]
    by_module = [logged[8][f"used_often.by_module/L1.{each}"] for each in "qkvo"]
    assert logged[8]["used_often/L1"] == pytest.approx(sum(by_module) / 4)
    assert 0 <= min(by_module) <= max(by_module) <= 1


def test_the_report_its_data_and_the_leaderboard_show_it(folder: tuple[Path, list[str]]) -> None:
    report = folder[0] / "report"
    assert "| perplexity |" in (report / "report.md").read_text()
    head = (report / "results.csv").read_text().splitlines()[0].split(",")
    assert {"perplexity", "used_often"} <= set(head)
    assert head.index("excess") == head.index("density") + 1
    assert "used often (%)" in (report / "report.html").read_text()
    leaderboard, primary = folder[1][-2:]
    assert "'train/twice', 'used_often/L1', 'held_out/perplexity'" in leaderboard
    assert "'held_out/perplexity': 'perplexity'" in primary
    assert "'used_often': 'used_often'" in primary
