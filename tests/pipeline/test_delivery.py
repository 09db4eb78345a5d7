"""A tracker that is away, deaf, broken or forgetful: training never waits for it, and in the end it has everything."""

import time
from collections import Counter

import pytest
from click.testing import CliRunner, Result
from mlflow.entities import ViewType

from pipeline.cli import main
from pipeline.layout import Output
from pipeline.records.delivery import read_delivery
from pipeline.records.state import State
from pipeline.tracking.courier import Courier
from pipeline.tracking.destination import Destination
from pipeline.tracking.store import StoreUnreachable, open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline.delivery_samples import STEPS, assert_whole, begin, files_of, leave, statuses
from tests.pipeline.sweep_samples import EXTRA, experiment, write_snapshot, write_spool

ARMS = {"arms": ("per_token", "task_only"), "seeds": (0,)}
FAULTS = ("down", "stall", "error", "lose")


def sync(output: Output, *words: str) -> Result:
    """`tiny-onn sync`."""
    result = CliRunner().invoke(main, ["sync", "--output", str(output.root), *words])
    assert not isinstance(result.exception, Exception), result.exception
    return result


def test_a_tracker_down_from_the_start_to_the_end_gets_everything_by_sync(tmp_path, proxy, store):
    output, destination = Output(tmp_path), Destination(proxy.uri, "start")
    for fault in ("stall", "error", "lose", "down"):
        proxy.be(fault)
        began = time.monotonic()
        with pytest.raises(StoreUnreachable, match="cannot be used"):
            Tracker(proxy.uri, "start", None)
        assert time.monotonic() - began < 15
    tracker = Tracker(proxy.uri, "start", None, later=True)
    assert "cannot be used" in tracker.problem
    (first, one), (second, two) = begin(output, "start", destination, **ARMS)
    pairs = [(first, one), (second, two)]
    courier = Courier(tracker, "start", output.sweep("start"), experiment("start", **ARMS), pairs, EXTRA)
    leave(first, one, "FINISHED")
    leave(second, two, "FAILED")
    courier.see({first.key: State.FINISHED, second.key: State.FAILED})
    began = time.monotonic()
    problems = courier.finish("FAILED", None, None)
    assert time.monotonic() - began < 60
    (problem,) = problems
    left = problem.partition("has not received all of ")[2].partition(" (")[0]
    assert set(left.split(", ")) == {"start", first.key, second.key}, problem
    failed = sync(output, "start")
    assert failed.exit_code == 2
    assert "cannot be used" in failed.output

    proxy.be("pass")
    told = sync(output)
    assert told.exit_code == 0
    points = 3 * (2 + 3 * 7) + 3 + 3 * (2 + 3 * 3) + 3  # see test_tracking; `none` has three measures of a layer
    assert (
        f"start: 2 of 2 trials delivered now ({points} points), the report filed; 1 FINISHED, 1 FAILED." in told.output
    )
    assert "result.json" in files_of(store, assert_whole(store, first, one, "FINISHED"))
    assert "failure.txt" in files_of(store, assert_whole(store, second, two, "FAILED"))
    assert statuses(store, "start") == Counter({"FAILED": 2, "FINISHED": 1})  # the summary is the third
    summary = read_delivery(output.sweep("start") / "mlflow_summary.json").run_id
    assert {"report.md", "results.json"} <= files_of(store, summary)
    asked = proxy.asked
    assert "start: nothing was outstanding; 1 FINISHED, 1 FAILED." in sync(output).output
    metrics = 26 + 14  # of both trials, whose points are counted
    assert proxy.asked - asked < 12 + metrics  # it looks, and touches nothing


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_mid_run_delays_and_neither_loses_nor_doubles(tmp_path, proxy, store, fault):
    output, name = Output(tmp_path), f"mid-{fault}"
    proxy.be("pass")
    tracker = Tracker(proxy.uri, "mid", None)
    (trial, folder), *_ = begin(output, name, Destination(proxy.uri, "mid"), **ARMS)
    delivery = tracker.start_trial(folder, trial, name, EXTRA)
    write_spool(trial, folder, STEPS[:1])
    write_snapshot(folder, 0)
    assert tracker.ship(delivery) > 0
    proxy.be(fault)
    for steps in (STEPS[:2], STEPS):
        write_spool(trial, folder, steps)
        began = time.monotonic()
        tracker.ship(delivery)
        assert time.monotonic() - began < 15
    assert tracker.problem
    proxy.be("pass")
    tracker.end_trial(delivery, "FINISHED")
    assert tracker.close("KILLED") == {}
    run_id = assert_whole(store, trial, folder, "FINISHED")
    assert (
        len([file for file in files_of(store, run_id) if "+step+0+" in file or "%step%0%" in file]) == 2
    )  # and its thumbnail


@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if f == "stall" else pytest.mark.slow) for f in FAULTS])
def test_a_fault_at_the_end_ends_the_command_and_sync_does_the_rest(tmp_path, proxy, store, fault):
    output, name = Output(tmp_path), f"end-{fault}"
    proxy.be("pass")
    destination = Destination(proxy.uri, "end")
    tracker = Tracker(proxy.uri, "end", None)
    (trial, folder), (other, second) = begin(output, name, destination, **ARMS)
    tracker.start_summary(output.sweep(name), experiment(name, **ARMS))
    delivery = tracker.start_trial(folder, trial, name, EXTRA)
    leave(trial, folder, "FINISHED")
    leave(other, second, "KILLED", STEPS[:2])
    proxy.be(fault)
    tracker.end_trial(delivery, "FINISHED")
    began = time.monotonic()
    left = tracker.close("KILLED", wait_s=1.0)
    assert time.monotonic() - began < 20
    assert folder.root in left
    proxy.be("pass")
    told = sync(output, name)
    assert told.exit_code == 0, told.output
    assert f"{name}: 2 of 2 trials delivered now" in told.output
    assert_whole(store, trial, folder, "FINISHED")
    assert_whole(store, other, second, "KILLED", STEPS[:2])
    assert statuses(store, name) == Counter({"FINISHED": 1, "KILLED": 2})


def test_a_creation_whose_answers_are_lost_makes_one_run(tmp_path, proxy, store):
    output = Output(tmp_path)
    proxy.be("pass")
    tracker = Tracker(proxy.uri, "twins", None)
    (trial, folder), *_ = begin(output, "twins", Destination(proxy.uri, "twins"), **ARMS)
    proxy.be("lose")  # MLflow's client asks again by itself: two runs come of it
    delivery = tracker.start_trial(folder, trial, "twins", EXTRA)
    assert delivery.run_id == ""
    proxy.be("pass")
    leave(trial, folder, "FINISHED")
    tracker.end_trial(delivery, "FINISHED")
    assert tracker.close("KILLED") == {}
    assert_whole(store, trial, folder, "FINISHED")
    assert statuses(store, "twins") == Counter({"FINISHED": 1})
    deleted = open_store(proxy.uri).search_runs([tracker.experiment_id], "", ViewType.DELETED_ONLY)
    assert [run.info.run_name for run in deleted] == ["per_token · s0"]
