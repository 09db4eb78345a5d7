"""Workers that are kept for the next trial: which trial gets which workers, and when unused workers end."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline.running.kept_workers
import pipeline.running.trainer
from pipeline.layout import Output, TrialFolder
from pipeline.running.kept_workers import KeptWorkers, give_back_of_dead, held_by_process, serve
from pipeline.running.trial_spec import TrialSpec
from pipeline.settings.config import SweepConfig, WorkersConfig
from tests.pipeline.running.test_sweep import sweep
from tests.pipeline.toy_training import RecordingTracker, toy_experiment

PAIR = WorkersConfig(count=2, cpus=0.5)


def note_worker(spec: TrialSpec) -> None:
    """A train function: leaves the name of the thread that it runs in, and all that it got; fails on request."""
    spec.folder.root.mkdir(parents=True, exist_ok=True)
    with (spec.folder.root / "trained-by").open("a") as file:
        file.write(f"{threading.current_thread().name}\n")
    (spec.folder.root / "spec").write_text(repr(replace(spec, kept=None)))
    if spec.experiment.description:
        raise ValueError(spec.experiment.description)


class Started:
    """Groups of workers that are threads; the last one's folder and error."""

    def __init__(self) -> None:
        self.groups = 0
        self.orders = Path()
        self.every: list[Path] = []

    def run(self, orders: Path, held: Path) -> None:
        """As Ray Train would: one error of any worker is that of the group."""
        self.groups, self.orders = self.groups + 1, orders
        self.every.append(orders)
        held.write_text("00")
        errors: list[Exception] = []

        def work(rank: int) -> None:
            try:
                serve(orders, rank)
            except Exception as error:
                errors.append(error)
                (orders / "end").touch()

        workers = [threading.Thread(target=work, args=(rank,), name=f"{self.groups}/{rank}") for rank in range(2)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        if errors:
            raise errors[0]


@pytest.fixture
def started() -> Iterator[Started]:
    """No thread is left behind."""
    groups = Started()
    yield groups
    end_all(groups)


def end_all(started: Started) -> None:
    for orders in started.every:
        (orders / "end").touch()
    for thread in threading.enumerate():
        if thread.name == "worker-group":
            thread.join(10)
            assert not thread.is_alive()


def spec(root: Path, key: str, workers: WorkersConfig = PAIR, description: str = "") -> TrialSpec:
    experiment = toy_experiment(workers=workers, sweep=None, description=description)
    name = f"{note_worker.__module__}:{note_worker.__qualname__}"
    folder = TrialFolder(root / key)
    return TrialSpec(key, experiment, folder, "data", name, "now", "", attempt=3, kept=root / "kept")


def trained_by(each: TrialSpec) -> list[str]:
    return sorted((each.folder.root / "trained-by").read_text().split())


def test_trials_that_ask_for_the_same_workers_get_the_same_ones(tmp_path: Path, started: Started) -> None:
    kept = KeptWorkers()
    first, second = spec(tmp_path, "a"), spec(tmp_path, "b")
    first.folder.root.mkdir()
    first.folder.placement.write_text("who is where")
    for each in (first, second):
        kept.train(each, started.run)
    assert started.groups == 1
    assert trained_by(first) == trained_by(second) == ["1/0", "1/1"]
    assert (second.folder.root / "spec").read_text() == repr(replace(second, kept=None))
    assert second.folder.placement.read_text() == "who is where"
    assert held_by_process(tmp_path / "kept").exists()


def test_another_kind_of_workers_is_started_once_the_first_have_ended(tmp_path: Path, started: Started) -> None:
    kept = KeptWorkers()
    one = spec(tmp_path, "a")
    other = spec(tmp_path, "b", workers=WorkersConfig(count=2, cpus=1))
    kept.train(one, started.run)
    group, orders = kept.group_for(one.experiment.workers), started.orders
    assert group is not None
    kept.train(replace(one, key="c"), started.run)  # it has been taken from the others, so that new ones are started
    assert started.groups == 2
    assert group.idle
    group.end()
    assert not group.idle
    assert (orders / "end").exists()
    second = started.orders
    kept.train(other, started.run)
    assert started.groups == 3
    assert (second / "end").exists()
    assert not (started.orders / "end").exists()


def test_a_trial_that_fails_takes_its_workers_with_it(tmp_path: Path, started: Started) -> None:
    kept = KeptWorkers()
    kept.train(spec(tmp_path, "a"), started.run)
    with pytest.raises(ValueError, match="not finite"):
        kept.train(spec(tmp_path, "b", description="the loss is not finite"), started.run)
    assert not held_by_process(tmp_path / "kept").exists()
    last = spec(tmp_path, "c")
    kept.train(last, started.run)
    assert trained_by(last) == ["2/0", "2/1"]


def test_workers_that_cannot_be_given_a_trial_are_ended(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would keep what the next ones need."""

    def refuse(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    given_back: list[Path] = []

    def give_back(held: Path) -> None:
        given_back.append(held)
        (started.orders / "end").touch()  # as Ray ends workers whose resources are gone

    monkeypatch.setattr(pipeline.running.trainer, "give_back", give_back)
    kept = KeptWorkers()
    kept.train(spec(tmp_path, "a"), started.run)
    with monkeypatch.context() as full:
        full.setattr(pipeline.running.kept_workers, "write_whole", refuse)
        with pytest.raises(OSError, match="No space"):
            kept.train(spec(tmp_path, "b"), started.run)
    assert given_back == [held_by_process(tmp_path / "kept")]
    last = spec(tmp_path, "c")
    kept.train(last, started.run)
    assert trained_by(last) == ["2/0", "2/1"]


def test_workers_that_died_between_two_trials_are_replaced(tmp_path: Path, started: Started) -> None:
    kept = KeptWorkers()
    kept.train(spec(tmp_path, "a"), started.run)
    end_all(started)
    last = spec(tmp_path, "b")
    kept.train(last, started.run)
    assert trained_by(last) == ["2/0", "2/1"]


def test_workers_that_ray_has_started_again_begin_with_the_newest_trial(tmp_path: Path, started: Started) -> None:
    kept = KeptWorkers()
    trials = [spec(tmp_path, key) for key in "ab"]
    for each in trials:
        kept.train(each, started.run)
    end_all(started)
    serve(started.orders, 0)
    assert [len(trained_by(each)) for each in trials] == [2, 3]


def test_only_what_a_dead_process_held_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[Path] = []
    monkeypatch.setattr(pipeline.running.trainer, "give_back", given_back.append)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f"held-{ended.pid}"
    for held in (dead, held_by_process(tmp_path)):
        held.touch()
    give_back_of_dead(tmp_path)
    assert given_back == [dead]
    give_back_of_dead(tmp_path / "none-yet")


def test_one_pair_of_workers_trains_all_trials_of_a_sweep_up_to_a_failure(tmp_path: Path) -> None:
    arms = ("per_token", "aggregated", "task_only", "metric_only")
    experiment = toy_experiment(
        sweep=SweepConfig(arms=arms, seeds=(0,), max_concurrent=1),
        workers=WorkersConfig(count=2, cpus=0.5, timeout_s=30),
        description=json.dumps({"raise": ["task_only", 1]}),
    )
    outcome = sweep(tmp_path, experiment, RecordingTracker())
    assert (outcome.finished, outcome.failed) == (3, 1)
    placements = [Output(tmp_path).trial("toy", f"{arm}-s0").placement for arm in arms]
    pids = [[worker["pid"] for worker in json.loads(place.read_text())] for place in placements]
    assert pids[0] == pids[1] == pids[2]
    assert set(pids[3]).isdisjoint(pids[0])
    assert os.getpid() not in pids[0]
