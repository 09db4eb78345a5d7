"""How often a trial is made, validated and written out on its way from the YAML file to its workers."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

import pipeline.run
from pipeline import api
from pipeline.layout import Output
from pipeline.running import driver
from pipeline.running.progress import TrialProgress
from pipeline.running.run_options import RunOptions
from pipeline.running.tuner import TunerJob
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial

SWEEP = """
name: small
sweep: {arms: [per_token, task_only], seeds: [0, 1, 2]}
"""


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often an Experiment has been validated, and dumped to write it somewhere."""
    counter: Counter[str] = Counter()
    validate, dump, trials = Experiment.model_validate_json, Experiment.model_dump_json, Trial.__init__

    def counted_validate(*arguments: Any, **options: Any) -> Experiment:
        counter["validated"] += 1
        return validate(*arguments, **options)

    def counted_dump(self: Experiment, **options: Any) -> str:
        counter["written"] += 1
        return dump(self, **options)

    def counted_trial(self: Trial, **values: Any) -> None:
        counter["made"] += 1
        trials(self, **values)

    monkeypatch.setattr(Experiment, "model_validate_json", counted_validate)
    monkeypatch.setattr(Experiment, "model_dump_json", counted_dump)
    monkeypatch.setattr(Trial, "__init__", counted_trial)
    return counter


def test_a_trial_is_made_validated_and_written_once_from_the_file_to_its_workers(
    tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SWEEP)
    given: list[tuple[Experiment, tuple[Trial, ...], RunOptions]] = []
    monkeypatch.setattr(pipeline.run, "run", lambda *arguments: given.append(arguments))
    api.ablate(config, output=tmp_path / "out", resume=False)
    ((experiment, trials, options),) = given
    assert experiment.sweep is not None
    assert [trial.key for trial in trials][:2] == ["per_token-s0", "task_only-s0"]
    assert counts == {"made": 6, "validated": 1 + 6}  # the file, and each trial
    assert options.resume is False
    assert options.output == Output(tmp_path / "out")

    reached: list[tuple[str, int]] = []

    def fit(spec: Any) -> None:
        """What Ray does: the value reaches the worker pickled."""
        at_worker = cloudpickle.loads(cloudpickle.dumps(spec))
        assert at_worker == spec
        reached.append((at_worker.experiment.training.arm, at_worker.attempt))
        at_worker.folder.result.write_text("{}")

    monkeypatch.setattr(driver, "_fit", fit)
    places = [options.output.trial(experiment.name, trial.key) for trial in trials]
    left = [TrialProgress(trial, place) for trial, place in zip(trials, places, strict=True)]
    job = TunerJob(tmp_path, "now", left, "data", "a:train", False)
    counts.clear()
    for progress in left:
        driver.run_trial(cloudpickle.loads(cloudpickle.dumps(job.spec(progress))))
    assert sorted(reached) == [("per_token", 1)] * 3 + [("task_only", 1)] * 3
    assert counts == {"written": 6}  # config.json of each


def test_changes_are_expanded_where_they_are_used(tmp_path: Path, counts: Counter[str]) -> None:
    """The file itself is checked as it is; a command that drops the sweep makes no trials of the changed one."""
    config = tmp_path / "small.yaml"
    config.write_text(SWEEP)
    api.read(config, {"training.steps": 40})
    assert counts["made"] == 6
