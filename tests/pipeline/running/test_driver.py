"""What a failure says, and how attempts are counted. Real runs are in test_sweep."""

from pathlib import Path

from ray.train import ControllerError, WorkerGroupError

from pipeline.layout import TrialFolder
from pipeline.records.attempts import Attempt, last_attempt, write_failure
from pipeline.records.state import State, state_of
from pipeline.running.driver import TrialFailed, explain, may_pass
from pipeline.training.stopping import TrainingStopped


def test_a_failure_names_each_rank_and_its_error_first() -> None:
    text = explain(WorkerGroupError("all of\nthe story", {3: ValueError("loss\nis NaN"), 1: KeyError("x")}))
    lines = text.splitlines()
    assert lines[:2] == ["rank 1: KeyError: 'x'", "rank 3: ValueError: loss is NaN"]
    assert "the story" in lines


def test_a_death_is_reported_in_a_line_whichever_way_ray_wraps_it() -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    death = OSError(
        "The actor died.\n\tpid: 7\nWorker exit detail: Worker was killed:\n out of memory. Some common causes are: x"
    )
    failed = WorkerHealthCheckFailedError("A worker health check failed. Worker info: " + 400 * "x", death)
    line = "OSError: Worker was killed: out of memory."
    assert explain(WorkerGroupError("", {1: failed})).splitlines()[0] == f"rank 1: {line}"
    said = explain(ControllerError(death))
    assert said.splitlines()[0] == line
    assert "pid: 7" in said


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


def test_what_the_train_function_itself_says_is_not_tried_again() -> None:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    died, closed = OSError("the worker died"), RuntimeError("connection closed by peer")
    assert may_pass(WorkerGroupError("", {1: died}))
    assert may_pass(WorkerGroupError("", {0: closed, 1: died}))
    assert may_pass(ControllerError(died))
    assert not may_pass(WorkerGroupError("", {0: closed, 1: TrainingStopped("step 7: non-finite task loss")}))
    assert not may_pass(WorkerGroupError("", {1: ValueError("a cost of one's own is wrong")}))
    assert not may_pass(TrialFailed("no result"))
    assert not may_pass(ControllerError(WorkerGroupStartupTimeoutError(2)))  # which Ray has itself tried again
