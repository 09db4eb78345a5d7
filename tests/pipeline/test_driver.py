"""What a failure says, and how attempts are counted. Real runs are in test_sweep."""

from pathlib import Path

from ray.train import ControllerError, WorkerGroupError

from pipeline.driver import Attempt, explain, last_attempt, write_failure
from pipeline.layout import TrialFolder
from pipeline.progress import State, state_of


def test_a_failure_names_each_rank_and_its_error_first() -> None:
    text = explain(WorkerGroupError("all of\nthe story", {3: ValueError("loss\nis NaN"), 1: KeyError("x")}))
    lines = text.splitlines()
    assert lines[:2] == ["rank 1: KeyError: 'x'", "rank 3: ValueError: loss is NaN"]
    assert "the story" in lines


def test_a_failure_of_the_controller_names_its_cause() -> None:
    assert explain(ControllerError(TimeoutError("no room for 2 workers"))) == "TimeoutError: no room for 2 workers"


def test_an_error_without_a_message_is_shown_with_its_traceback() -> None:
    assert "AssertionError" in explain(AssertionError())


def test_a_failure_written_for_a_trial_counts_in_its_session_only(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    assert last_attempt(folder) is None
    write_failure(folder, "now", "out of memory")
    assert last_attempt(folder) == Attempt(0, "now")
    assert state_of(folder, "now") is State.FAILED
    assert state_of(folder, "later") is State.WAITING
    folder.result.write_text("{}")
    assert state_of(folder, "later") is State.FINISHED
