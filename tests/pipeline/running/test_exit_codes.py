"""No command ends with 0 while a run may have been left RUNNING."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.layout import Output
from pipeline.running.claim import claim
from pipeline.running.run_options import RunOptions
from pipeline.running.sweep import run_sweep
from pipeline.settings.trials import trials_of
from tests.pipeline.toy_training import RecordingTracker, toy_data, toy_experiment, toy_train


class Away(RecordingTracker):
    """Takes nothing at the end."""

    def __init__(self, untouched: bool, place: Path) -> None:
        super().__init__()
        self.untouched, self._place = untouched, place  # type: ignore[misc]

    def close(self, status: str) -> dict[Path, str]:
        return {self._place: "the server is away"}


class Refuses(RecordingTracker):
    """Refuses each trial, for example because the model cannot be registered where the environment says."""

    def end_trial(self, run, status) -> None:
        raise ConnectionError("no registry")


def ended(tmp_path: Path, tracker: RecordingTracker) -> tuple[int, str]:
    """The exit code and the words of a command all of whose trials have ended before."""
    experiment, output, screen = toy_experiment(arms=("task_only",)), Output(tmp_path), io.StringIO()
    data = toy_data(tmp_path / "data")
    claim(output.sweep("toy"), experiment, data.manifest.data_hash, False, "")
    for trial in trials_of(experiment):
        folder = output.trial("toy", trial.key)
        folder.root.mkdir(parents=True)
        folder.config.write_text(trial.experiment.model_dump_json())
        folder.result.write_text("{}")
    outcome = run_sweep(
        experiment,
        trials_of(experiment),
        data,
        RunOptions(output, resume=True, command="tiny-onn ablate toy.yaml", console=Console(file=screen)),
        train_fn=toy_train,
        tracker=tracker,
    )
    return outcome.exit_code, screen.getvalue()


@pytest.mark.parametrize(("untouched", "code"), [(False, 1), (True, 0)])
def test_what_the_tracker_lacks_shows_in_the_exit_code(tmp_path: Path, untouched: bool, code: int) -> None:
    """A store that has never answered has no run; the user has said --allow-offline-tracking to it."""
    ended_with, said = ended(tmp_path, Away(untouched, tmp_path / "task_only-s0"))
    assert ended_with == code
    assert "Not all of it is tracked" in said
    assert "tiny-onn sync toy" in said
    assert "--resume" not in said


def test_a_run_that_could_not_be_ended_shows_in_the_exit_code(tmp_path: Path) -> None:
    assert ended(tmp_path, Refuses())[0] == 1


def test_all_delivered_is_a_success(tmp_path: Path) -> None:
    assert ended(tmp_path, RecordingTracker())[0] == 0
