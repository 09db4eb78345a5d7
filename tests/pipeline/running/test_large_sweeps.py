"""What a driver does for each of ten thousand trials, it does no more often than it must."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.layout import TrialFolder
from pipeline.records.attempts import Attempt, write_attempt
from pipeline.records.spool import Spool
from pipeline.records.state import State, state_of
from pipeline.running.pruning import stratum_of
from pipeline.running.sweep import poll_states
from pipeline.settings.trials import Trial
from tests.pipeline.pruning_samples import PolledPruner
from tests.pipeline.running.test_live import some_trials
from tests.pipeline.running.test_pruning import experiment, placed


def test_each_trial_is_sorted_into_its_stratum_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each stratum looked for among all trials, the time until the first one begins is quadratic."""
    searched, asked = experiment(seeds=3), []

    def counted(trial: Trial, sweep: Any) -> str:
        asked.append(trial.key)
        return stratum_of(trial, sweep)

    monkeypatch.setattr("pipeline.running.pruning.stratum_of", counted)
    pairs = placed(tmp_path, searched)
    assert searched.sweep is not None
    PolledPruner(searched.sweep, pairs)
    assert asked == [trial.key for trial, _ in pairs]


def test_what_has_ended_is_looked_at_once_and_what_failed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, failed, waiting = trials = some_trials(tmp_path)
    for each in (finished, failed):
        write_attempt(each.folder, Attempt(1, "now"))
        Spool(each.folder.spool).write(20, {"train/task_loss": 2.0})
    finished.folder.result.write_text("{}")
    failed.folder.failure.write_text("why")
    looked: list[TrialFolder] = []

    def counted(folder: TrialFolder, session: str) -> State:
        looked.append(folder)
        return state_of(folder, session)

    monkeypatch.setattr("pipeline.running.sweep.state_of", counted)
    before = poll_states(trials, "now")
    failed.folder.failure.unlink()  # it is taken up again
    after = poll_states(trials, "now")
    assert list(before.values()) == [State.FINISHED, State.FAILED, State.WAITING]
    assert list(after.values()) == [State.FINISHED, State.RUNNING, State.WAITING]
    assert looked == [each.folder for each in (*trials, failed, waiting)]
    assert (finished.step, finished.loss, failed.step) == (100, 2.0, 20)
