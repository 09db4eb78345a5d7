"""What a run is called and said to be."""

import subprocess

from pipeline.layout import Output
from pipeline.tracking.describe import describe_trial, git_commit
from pipeline.tracking.mlflow_run import flat_params
from tests.pipeline.sweep_samples import experiment, trials


def test_names_of_runs_show_arm_seed_and_cell(tmp_path):
    sample = experiment("grid", grid={"model.layers": (2, 3)})
    names = [describe_trial(trial, "grid", {}).name for trial, _ in trials(Output(tmp_path), sample)]
    assert names[0] == "per_token · s0 · layers 2"
    assert len(set(names)) == len(names)


def test_settings_become_flat_text():
    assert flat_params({"a": {"b": 1, "c": None}, "d": "x", "e": [1, 2], "f": True}) == {
        "a.b": "1",
        "d": "x",
        "e": "[1, 2]",
        "f": "true",
    }


def test_git_may_be_absent(monkeypatch):
    def no_git(*_args, **_more):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert git_commit() == "unknown"
