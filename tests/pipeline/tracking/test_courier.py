"""The tracker hears of every trial in its own time, and can stop nothing."""

import threading
import time
from pathlib import Path

import pytest

import pipeline.tracking.courier
from pipeline.layout import TrialFolder
from pipeline.running.progress import State
from pipeline.settings.trials import Trial, trials_of
from pipeline.tracking.courier import Courier
from tests.pipeline.toy_training import RecordingTracker, toy_experiment


class BrokenTracker(RecordingTracker):
    """Refuses one trial."""

    def start_trial(
        self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str], ending: str | None = None
    ) -> str:
        if trial.key == "aggregated-s0":
            raise ConnectionError("the server is away")
        return super().start_trial(folder, trial, sweep, extra, ending)


class StuckTracker(RecordingTracker):
    """Ships for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def ship(self, folder: TrialFolder) -> int:
        self.release.wait(20)
        return 0


def courier_of(tracker: RecordingTracker, folder: Path) -> Courier:
    experiment = toy_experiment()
    pairs = [(trial, TrialFolder(folder / trial.key)) for trial in trials_of(experiment)]
    return Courier(tracker, "toy", folder, experiment, pairs, {"data_name": "toy"})


def test_each_trial_ends_once_with_its_own_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tracking.courier, "_EVERY_S", 0.01)
    tracker = RecordingTracker()
    courier = courier_of(tracker, tmp_path)
    courier.see({"per_token-s0": State.FINISHED, "aggregated-s0": State.RUNNING, "none-s0": State.WAITING})
    time.sleep(0.3)
    courier.see({"per_token-s0": State.FINISHED, "aggregated-s0": State.STOPPED, "none-s0": State.WAITING})
    assert courier.finish("KILLED", None, None) == []
    ends = [call for call in tracker.calls if call[0] == "end"]
    assert ends == [("end", "per_token-s0", "FINISHED"), ("end", "aggregated-s0", "KILLED")]
    assert [c for c in tracker.calls if c[0] == "start"] == [
        ("start", "per_token-s0", "toy", "toy"),
        ("start", "aggregated-s0", "toy", "toy"),
    ]
    assert tracker.calls[0] == ("start_summary", "toy")
    assert tracker.calls[-2:] == [("end_summary", "KILLED"), ("close", "KILLED")]


def test_a_tracker_that_fails_is_reported_and_stops_nothing(tmp_path: Path) -> None:
    tracker = BrokenTracker()
    courier = courier_of(tracker, tmp_path)
    courier.see({"per_token-s0": State.FINISHED, "aggregated-s0": State.FINISHED})

    def report() -> list[Path]:
        raise OSError("no space left")

    problems = courier.finish("FINISHED", report, None)
    assert len(problems) == 2
    assert "aggregated-s0: ConnectionError('the server is away')" in problems
    assert any("no space left" in problem for problem in problems)
    assert tracker.ended() == {"per_token-s0": "FINISHED"}
    assert ("end_summary", "FINISHED") in tracker.calls


def test_a_stuck_tracker_does_not_hold_up_the_end(tmp_path: Path) -> None:
    tracker = StuckTracker()
    courier = courier_of(tracker, tmp_path)
    courier.see({"per_token-s0": State.STOPPED})
    began = time.monotonic()
    problems = courier.finish("KILLED", None, 0.2)
    assert time.monotonic() - began < 5
    assert problems == ["the tracker was still busy after 0.2 s"]
    tracker.release.set()
