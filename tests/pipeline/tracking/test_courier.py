"""The tracker hears of every trial in its own time, and can stop nothing."""

import threading
import time
from pathlib import Path

import pytest

import pipeline.tracking.courier
from pipeline.layout import TrialFolder
from pipeline.records.state import State
from pipeline.settings.config import SweepConfig
from pipeline.settings.trials import Trial, trials_of
from pipeline.tracking.courier import Courier
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.store import StoreUnreachable
from tests.pipeline.mlflow_server import wait_for
from tests.pipeline.toy_training import RecordingTracker, toy_experiment


class BrokenTracker(RecordingTracker):
    """Refuses one trial."""

    def start_trial(
        self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str], ending: str | None = None
    ) -> Delivery:
        if trial.key == "aggregated-s0":
            raise ConnectionError("the server is away")
        return super().start_trial(folder, trial, sweep, extra, ending)


class StuckTracker(RecordingTracker):
    """Ships for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def ship(self, run: Delivery) -> int:
        self.release.wait(20)
        return 0


class DeafTracker(RecordingTracker):
    """Takes nothing in the end, if `away`."""

    away = True

    def close(self, status: str) -> dict[Path, str]:
        return {Path("toy"): "http://host: refused", Path("task_only-s0"): "http://host: refused"} if self.away else {}


class WatchedTracker(RecordingTracker):
    """Takes three trials at a time, and notes the most calls under way together, in all and for one trial."""

    def __init__(self) -> None:
        super().__init__(at_once=3)
        self.most = self.most_of_one = 0
        self.held = threading.Event()  # while it is not set, the first trial's metrics are held up
        self._under_way: list[str] = []
        self._guard = threading.Lock()

    def _call(self, key: str) -> None:
        with self._guard:
            self._under_way.append(key)
            self.most = max(self.most, len(self._under_way))
            self.most_of_one = max(self.most_of_one, self._under_way.count(key))
        time.sleep(0.005)
        with self._guard:
            self._under_way.remove(key)

    def start_trial(
        self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str], ending: str | None = None
    ) -> Delivery:
        self._call(trial.key)
        return super().start_trial(folder, trial, sweep, extra, ending)

    def ship(self, run: Delivery) -> int:
        self._call(run.path.parent.name)
        if run.path.parent.name == "per_token-s0":
            self.held.wait(20)
        return super().ship(run)

    def end_trial(self, run: Delivery, status: str) -> None:
        self._call(run.path.parent.name)
        super().end_trial(run, status)


def courier_of(tracker: RecordingTracker, folder: Path, seeds: int = 1) -> Courier:
    experiment = toy_experiment(
        sweep=SweepConfig(arms=("per_token", "aggregated", "task_only"), seeds=tuple(range(seeds)))
    )
    pairs = [(trial, TrialFolder(folder / trial.key)) for trial in trials_of(experiment)]
    return Courier(tracker, "toy", folder, experiment, pairs, {"data_name": "toy"})


def test_each_trial_ends_once_with_its_own_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tracking.courier, "_EVERY_S", 0.01)
    tracker = RecordingTracker()
    courier = courier_of(tracker, tmp_path)
    courier.see({"per_token-s0": State.FINISHED, "aggregated-s0": State.RUNNING, "task_only-s0": State.WAITING})
    time.sleep(0.3)
    courier.see({"per_token-s0": State.FINISHED, "aggregated-s0": State.STOPPED, "task_only-s0": State.WAITING})
    assert courier.finish("KILLED", None, None) == []
    ends = [call for call in tracker.calls if call[0] == "end"]
    assert ends == [("end", "per_token-s0", "FINISHED"), ("end", "aggregated-s0", "KILLED")]
    assert [c for c in tracker.calls if c[0] == "start"] == [
        ("start", "per_token-s0", "toy", "toy"),
        ("start", "aggregated-s0", "toy", "toy"),
    ]
    assert tracker.calls[0] == ("start_summary", "toy")
    assert tracker.calls[-2:] == [("end_summary", "KILLED"), ("close", "KILLED")]


class AwayTracker(RecordingTracker):
    """Receives the end of a trial, and delivers it when it is reachable again."""

    def __init__(self) -> None:
        super().__init__()
        self.away = True

    def ship(self, run: Delivery) -> int:
        run.over = run.ending is not None and not self.away
        return super().ship(run)

    def end_trial(self, run: Delivery, status: str) -> None:
        super().end_trial(run, status)
        run.over = not self.away


def test_delivered_trials_are_not_delivered_again_and_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.tracking.courier, "_EVERY_S", 0.01)
    tracker = AwayTracker()
    courier = courier_of(tracker, tmp_path)
    courier.see({"per_token-s0": State.FINISHED, "task_only-s0": State.RUNNING})
    wait_for(lambda: tracker.calls.count(("ship", "per_token-s0")) >= 3)
    tracker.away = False
    wait_for(lambda: tracker.calls.count(("ship", "task_only-s0")) >= tracker.calls.count(("ship", "per_token-s0")) + 3)
    assert courier._parcels.keys() == {"aggregated-s0", "task_only-s0"}
    assert courier.finish("FINISHED", None, None) == []
    assert tracker.calls.count(("end", "per_token-s0", "FINISHED")) == 1


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


def test_a_stuck_tracker_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tracking.courier, "_EVERY_S", 0.01)
    tracker = StuckTracker()
    courier = courier_of(tracker, tmp_path)
    courier.see({"per_token-s0": State.RUNNING})
    wait_for(lambda: tracker.calls.count(("start", "per_token-s0", "toy", "toy")) == 1)
    began = time.monotonic()
    problems = courier.finish("KILLED", None, 0.2)
    assert time.monotonic() - began < 5
    assert problems == ["delivery to MLflow was still under way after 0.2 s"]
    tracker.release.set()


def test_trials_are_delivered_together_and_each_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tracking.courier, "_EVERY_S", 0.01)
    tracker = WatchedTracker()
    tracker.held.set()
    courier = courier_of(tracker, tmp_path, seeds=4)
    keys = [f"{arm}-s{seed}" for arm in ("per_token", "aggregated", "task_only") for seed in range(4)]
    courier.see(dict.fromkeys(keys, State.RUNNING))
    wait_for(lambda: all(tracker.calls.count(("ship", key)) >= 2 for key in keys))
    courier.see(dict.fromkeys(keys, State.FINISHED))
    assert courier.finish("FINISHED", None, None) == []
    assert (tracker.most, tracker.most_of_one) == (3, 1)
    for key in keys:
        mine = [call[0] for call in tracker.calls if call[1] == key]
        assert mine == ["start", *["ship"] * (len(mine) - 2), "end"]
    assert tracker.calls[-2:] == [("end_summary", "FINISHED"), ("close", "FINISHED")]


def test_one_slow_trial_holds_up_no_other_and_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tracking.courier, "_EVERY_S", 0.01)
    tracker = WatchedTracker()
    courier = courier_of(tracker, tmp_path, seeds=2)
    others = ["per_token-s1", "aggregated-s0", "aggregated-s1", "task_only-s0", "task_only-s1"]
    courier.see(dict.fromkeys(["per_token-s0", *others], State.RUNNING))
    wait_for(lambda: all(tracker.calls.count(("ship", key)) >= 3 for key in others))
    courier.see(dict.fromkeys(["per_token-s0", *others], State.FINISHED))
    ending = threading.Thread(target=lambda: problems.extend(courier.finish("FINISHED", None, None)))
    problems: list[str] = []
    ending.start()
    wait_for(lambda: len(tracker.ended()) == len(others))  # with the slow one still held up
    assert ("start", "per_token-s0", "toy", "toy") in tracker.calls
    assert "per_token-s0" not in tracker.ended()
    tracker.held.set()
    ending.join(20)
    assert problems == []
    assert tracker.ended() == dict.fromkeys(["per_token-s0", *others], "FINISHED")
    assert [call for call in tracker.calls if call[1] == "per_token-s0"].count(("ship", "per_token-s0")) >= 1


@pytest.mark.parametrize("away", [True, False])
def test_that_the_store_does_not_answer_is_reported_once(tmp_path: Path, away: bool) -> None:
    experiment = toy_experiment(arms=("task_only",))
    tracker = DeafTracker()
    tracker.away = away
    pairs = [(trial, TrialFolder(tmp_path / trial.key)) for trial in trials_of(experiment)]
    courier = Courier(tracker, "toy", tmp_path, experiment, pairs, {"data_name": "d"})

    def report() -> list[Path]:
        raise StoreUnreachable("http://host: refused. Check the address.", "http://host: refused")

    courier.see({"task_only-s0": State.FINISHED})
    problems = courier.finish("FINISHED", report, None)
    if away:
        assert problems == [
            "MLflow has not received all of toy, task_only-s0 (http://host: refused)",
            "the report, which is made from MLflow, follows with the rest",
        ]
    else:  # it was back when the rest was delivered
        assert problems == ["report: http://host: refused. Check the address."]


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), SystemExit("as some libraries raise")])
@pytest.mark.parametrize("at_once", [1, 4])
def test_an_error_that_ends_a_courier_thread_is_reported_and_the_command_ends(
    tmp_path: Path, error: BaseException, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the courier's own thread, or in one that makes a call."""
    monkeypatch.setattr(pipeline.tracking.courier, "_EVERY_S", 0.01)
    tracker = RecordingTracker()
    tracker.at_once = at_once
    courier = courier_of(tracker, tmp_path)
    end_trial = tracker.end_trial

    def breaks_for_one(run: Delivery, status: str) -> None:
        if run.path.parent.name == "per_token-s0":
            raise error
        end_trial(run, status)

    monkeypatch.setattr(tracker, "end_trial", breaks_for_one)
    courier.see({"per_token-s0": State.FINISHED, "task_only-s0": State.FINISHED})
    problems = courier.finish("FINISHED", None, None)
    assert any(str(error) in problem for problem in problems)
    if isinstance(error, Exception) or at_once > 1:
        assert tracker.ended() == {"task_only-s0": "FINISHED"}
        assert tracker.calls[-1] == ("close", "FINISHED")

    courier = courier_of(RecordingTracker(), tmp_path)
    monkeypatch.setattr(courier, "_round", lambda _: (_ for _ in ()).throw(error))
    wait_for(lambda: not courier._thread.is_alive())
    (problem,) = courier.finish("FINISHED", None, None)
    assert "delivery to the tracker was ended by an error" in problem
    assert str(error) in problem
