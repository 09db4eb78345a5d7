"""Every command and program of docs/questions.md, in their order, on one small sweep."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.layout import Output
from pipeline.records.attempts import noted_attempts
from pipeline.settings.experiment_file import read_experiment, validate_experiment
from pipeline.tracking.destination import EXPERIMENT
from pipeline.tracking.tracker import Tracker
from tests.pipeline.samples import write_config
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^    (?:PYTHONPATH=\. )?tiny-onn (?P<command>[^\n]*)$|^```python\n(?P<program>.*?)^```", re.M | re.S
)
# What each of them prints, in order.
SAYS = {
    "settings learning": "training.router_learning_rate",
    "settings batch_size": "batch_size, here: training.batch_tokens",
    "SALIENCE = ": "",
    "plan my-study.yaml --no-calibration": "my-study: 2 trials to run",
    "ablate my-study.yaml": "2 of 2 trials finished",
    "report my-study": "my_costs:SALIENCE",
    "ablate my-study.yaml --set 'sweep.seeds=[0, 1]' --resume": "my-study grows by seed 1.",
    "plan my-study.yaml --no-calibration --set 'sweep.seeds=[0, 1]' --set training.steps=12": "grow by steps 10 to 12",
    "ablate my-study.yaml --set 'sweep.seeds=[0, 1, 2]' --resume": "my_costs.py: is another",
    '.agg(["mean", "count"])': "per_token",
    "report before after": "the same in every seed",
    "report grid": "gain",
    "load_model": "parameters",
    '["tokens_per_second"].mean()': "per_token",
    "experiments": "study/depth",
}
BLOCKS = [(found["command"] or found["program"], found["command"] is not None) for found in BLOCK.finditer(TEXT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with my-study.yaml, my_costs.py, and in runs/ the sweeps `before`, `after` and `grid`."""
    folder = tmp_path_factory.mktemp("questions")
    small = yaml.safe_load(write_config(folder).read_text())
    (told,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    page = yaml.safe_load(told)
    small |= {"name": page["name"], "sweep": page["sweep"], "training": {**small["training"], **page["training"]}}
    del small["scales"]
    (folder / "my-study.yaml").write_text(yaml.safe_dump(small))
    (folder / "my_costs.py").write_text(next(text for text, is_command in BLOCKS if not is_command))
    output = Output(folder / "runs")
    tracker = Tracker(output.tracking_uri, EXPERIMENT, output.artifacts)
    for sample in (
        *map(experiment, ("before", "after")),
        experiment("grid", seeds=(0, 1), grid={"model.gain": (1.0, 2.0)}),
    ):
        for trial, place in trials(output, sample):
            write_spool(trial, place)
            delivery = tracker.start_trial(place, trial, sample.name, EXTRA)
            tracker.end_trial(delivery, "FINISHED")
    assert tracker.close("KILLED") == {}
    return folder


def test_every_question_is_answered_by_something_that_runs() -> None:
    questions = TEXT.split("\n## ")[1:]
    assert len(questions) == 12
    inside = [each.partition("\n")[0] for each in questions if not BLOCK.search(each)]
    assert inside in ([], ["How do I look inside a model while it trains?"])
    assert len(BLOCKS) == len(SAYS)
    validate_experiment(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[0]), "docs/questions.md")


@pytest.mark.slow
def test_the_page_does_what_it_says(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "COLUMNS": "160"}
    cost = (folder / "my_costs.py").read_text()
    for (text, is_command), (part, said) in zip(BLOCKS, SAYS.items(), strict=True):
        assert part in text
        refused = said == "my_costs.py: is another"
        if refused:
            (folder / "my_costs.py").write_text(cost.replace("SALIENCE =", "SALIENCE = TWICE ="))
        words = (
            ["bash", "-c", f"{sys.executable} -m pipeline.cli {text}"] if is_command else [sys.executable, "-c", text]
        )
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=500, env=environment)
        assert done.returncode == (2 if refused else 0), f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert said in done.stdout + done.stderr, f"{text}\n{done.stdout[-3000:]}"
        if part == "report my-study":
            page = (folder / "runs" / "sweeps" / "my-study" / "report" / "report.html").read_text()
            assert "At most 1 seed per arm: too few to predict other seeds" in page
    output = Output(folder / "runs")
    for trial in ("per_token-s0", "my_costs_SALIENCE-s0", "per_token-s1", "my_costs_SALIENCE-s1"):
        assert len(noted_attempts(output.trial("my-study", trial))) == 1  # what was there was not run again
    report = output.sweep("my-study") / "report"
    assert (report / "results.csv").read_text().count("\n") == 5
    assert "This sweep has grown since it was begun" in (report / "report.md").read_text()
    assert (report / "results.tex").exists()
    assert read_experiment(folder / "my-study.yaml").training.schedule == "constant"
