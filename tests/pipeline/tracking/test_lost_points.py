"""What the store has is counted, not remembered: points that were taken and lost are sent again."""

import sqlite3
import threading
from collections import Counter

import pytest

from pipeline.records.delivery import read_delivery
from pipeline.tracking.destination import Destination
from pipeline.tracking.store import open_store
from pipeline.tracking.sync import sync
from pipeline.tracking.tracker import Tracker
from tests.pipeline.delivery_samples import STEPS, begin, leave
from tests.pipeline.sweep_samples import EXTRA, metrics_at, write_snapshot

HERE = Destination()
ONE = {"arms": ("per_token",), "seeds": (0,)}


@pytest.fixture
def output(tmp_path, with_store):
    return with_store(tmp_path / "o")


def points(output, run_id: str) -> Counter:
    with sqlite3.connect(output.root / "mlflow.db") as store:
        return Counter(store.execute("select key, step from metrics where run_uuid = ?", [run_id]).fetchall())


@pytest.mark.parametrize("lost", ["step = 0", "step = 10", "step = 20", "key = 'held_out/loss'", "1 = 1"])
def test_points_that_the_store_has_lost_are_sent_again_once(output, lost):
    ((trial, folder),) = begin(output, "lost", HERE, **ONE)
    leave(trial, folder, "FINISHED")
    write_snapshot(folder, 20)
    first = sync(output, "lost", None, None, lambda *_: [])
    everything = Counter({(name, step): 1 for step in STEPS for name in metrics_at(trial, step)})
    assert first.sent == sum(everything.values())
    run_id = read_delivery(folder.delivery).run_id
    with sqlite3.connect(output.root / "mlflow.db") as store:
        gone = store.execute(f"delete from metrics where {lost}").rowcount
        store.execute(f"delete from latest_metrics where {lost}")
    again = sync(output, "lost", None, None, lambda *_: [])
    assert (again.sent, again.ended, again.problems) == (gone, 1, [])
    assert f"1 of 1 trials delivered now ({gone:,} points)" in str(again)
    assert points(output, run_id) == everything
    assert open_store(output.tracking_uri).get_run(run_id).data.metrics["held_out/loss"] == 1.0
    assert "nothing was outstanding" in str(sync(output, "lost", None, None, lambda *_: []))


def test_a_lost_step_of_the_figure_is_sent_again(output):
    ((trial, folder),) = begin(output, "figure", HERE, **ONE)
    leave(trial, folder, "FINISHED")
    write_snapshot(folder, 10)
    write_snapshot(folder, 20)
    sync(output, "figure", None, None, lambda *_: [])
    images = sorted(output.artifacts.rglob("*+step+10+*"))
    for image in images:
        image.unlink()
    assert images
    assert sync(output, "figure", None, None, lambda *_: []).ended == 1
    assert len(list(output.artifacts.rglob("*+step+10+*"))) == len(images)


def test_delivery_is_synchronous_whatever_the_environment_says(output, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    ((trial, folder),) = begin(output, "async", HERE, **ONE)
    leave(trial, folder, "FINISHED")
    write_snapshot(folder, 20)
    before = set(threading.enumerate())
    tracker = Tracker(output.tracking_uri, HERE.experiment, output.artifacts)
    delivery = tracker.start_trial(folder, trial, "async", EXTRA)
    run_id = delivery.run_id
    tracker.ship(delivery)
    assert len(points(output, run_id)) == tracker.sent > 0
    tracker.end_trial(delivery, "FINISHED")
    assert not tracker.close("KILLED")
    assert set(threading.enumerate()) == before  # asynchronous logging starts threads of its own
