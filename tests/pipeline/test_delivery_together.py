"""Several trials' metrics on their way to a real server at a time, and what becomes of them when it fails then."""

import time

import pytest

import pipeline.tracking.courier
from pipeline.layout import Output
from pipeline.records.delivery import DeliveryState, read_delivery
from pipeline.records.state import State
from pipeline.tracking.courier import Courier
from pipeline.tracking.destination import Destination
from pipeline.tracking.model_registry import model_name
from pipeline.tracking.store import calls_at_once, open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline.delivery_samples import assert_whole, begin, leave
from tests.pipeline.mlflow_server import wait_for
from tests.pipeline.sweep_samples import EXTRA, experiment, write_spool

ARMS = {"arms": ("per_token", "task_only"), "seeds": (0, 1, 2)}
STEPS = (0, 10, 20, 30, 40, 50)


class Watched(Tracker):
    """Notes how many trials were shipped together."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, "together", None)
        self.under_way: list[str] = []
        self.most = 0

    def ship(self, run):
        """As the tracker does."""
        name = run.path.parent.name
        self.under_way.append(name)
        self.most = max(self.most, len(self.under_way))
        assert self.under_way.count(name) == 1
        try:
            return super().ship(run)
        finally:
            self.under_way.remove(name)


@pytest.mark.parametrize("fault", ["down", "stall", "error", "lose"])
def test_a_fault_with_several_under_way_neither_loses_nor_doubles(tmp_path, proxy, store, monkeypatch, fault):
    monkeypatch.setattr(pipeline.tracking.courier, "_EVERY_S", 0.02)
    output, name = Output(tmp_path), f"together-{fault}"
    proxy.be("pass")
    tracker = Watched(proxy.uri)
    pairs = begin(output, name, Destination(proxy.uri, "together"), **ARMS)
    courier = Courier(tracker, name, output.sweep(name), experiment(name, **ARMS), pairs, EXTRA)
    courier.see({trial.key: State.RUNNING for trial, _ in pairs})
    for trial, folder in pairs:
        write_spool(trial, folder, STEPS[:1])
    wait_for(lambda: all((read_delivery(folder.delivery) or DeliveryState()).run_id for _, folder in pairs))
    sent = tracker.sent
    for trial, folder in pairs:
        write_spool(trial, folder, STEPS[:3])
    wait_for(lambda: tracker.sent > sent)  # the first is there, the others are on their way
    proxy.be(fault)
    for trial, folder in pairs:
        write_spool(trial, folder, STEPS[:5])
    wait_for(lambda: tracker.problem is not None)
    asked, began = proxy.asked, time.monotonic()
    time.sleep(3.0)
    # in some hundred rounds of six trials: tries that each pause lets through, of one trial, asked twice each
    assert proxy.asked - asked < 5 * (time.monotonic() - began)
    proxy.be("pass")
    assert tracker.most > 1
    for trial, folder in pairs:
        leave(trial, folder, "FINISHED", STEPS)
        folder.model.mkdir()
        (folder.model / "config.json").write_text("{}")
    courier.see({trial.key: State.FINISHED for trial, _ in pairs})
    assert courier.finish("FINISHED", None, None) == []
    runs = {trial.key: assert_whole(store, trial, folder, "FINISHED", STEPS) for trial, folder in pairs}
    client = open_store(proxy.uri)
    for arm in ARMS["arms"]:  # trials that end together are versions of one model
        versions = client.search_model_versions(f"name = '{model_name(name, arm)}'")
        assert sorted(v.run_id for v in versions) == sorted(runs[f"{arm}-s{seed}"] for seed in (0, 1, 2))


def test_a_file_takes_one_trial_at_a_time_and_a_server_several():
    assert calls_at_once("sqlite:////tmp/mlflow.db") == calls_at_once("sqlite+pysqlite:///x") == calls_at_once("x") == 1
    assert calls_at_once("http://host:5000") == calls_at_once("postgresql+psycopg://me@host/mlflow") > 1
