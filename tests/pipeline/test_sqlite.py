"""The store that is a file: six writers from cold, somebody else's lock, and disks that take nothing more."""

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.layout import Output
from pipeline.tracking.destination import Destination
from pipeline.tracking.store import StoreUnreachable
from pipeline.tracking.tracker import Tracker
from tests.pipeline.delivery_samples import STEPS, assert_whole, leave
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool
from tests.pipeline.tracker_process import deliver_one, fill_the_disk, in_processes

WithStore = Callable[[Path], Output]


def tracker_of(output: Output) -> Tracker:
    return Tracker(output.tracking_uri, "tests", output.artifacts)


def test_six_writers_at_once_from_cold(tmp_path: Path) -> None:
    answers = in_processes(deliver_one, *((tmp_path, number) for number in range(6)))
    assert answers == [{}] * 6
    for trial, folder in trials(Output(tmp_path), experiment("six"))[:6]:
        assert_whole(Output(tmp_path), trial, folder, "FINISHED")


@pytest.mark.parametrize("name", ["50%20 ü", "what? #1"])
def test_a_folder_may_be_called_what_an_address_reads_in_another_way(
    tmp_path: Path, with_store: WithStore, name: str
) -> None:
    output = with_store(tmp_path / name)
    trial, folder = trials(output, experiment("odd"))[0]
    before = output.root.joinpath("mlflow.db").stat().st_mtime_ns
    tracker_of(output).start_trial(folder, trial, "odd", EXTRA)
    leave(trial, folder, "FINISHED")
    again = tracker_of(output)
    again.start_trial(folder, trial, "odd", EXTRA, "FINISHED")
    assert again.close("KILLED") == {}
    assert_whole(output, trial, folder, "FINISHED")
    assert output.root.joinpath("mlflow.db").stat().st_mtime_ns > before
    elsewhere = Destination(Output(tmp_path / name / "other").tracking_uri).store(output)[1]
    assert elsewhere == tmp_path / name / "other" / "mlflow-artifacts"


def test_a_disk_that_fills_delays_delivery(tmp_path: Path, with_store: WithStore) -> None:
    with_store(tmp_path)
    ((problem, left),) = in_processes(fill_the_disk, (tmp_path,))
    output = Output(tmp_path)
    trial, folder = trials(output, experiment("full"))[0]
    assert "disk" in problem  # SQLite's own words
    assert "\n" not in problem
    assert set(left) == {folder.root}
    again = tracker_of(output)
    again.start_trial(folder, trial, "full", EXTRA, "FINISHED")
    assert again.close("KILLED") == {}
    assert_whole(output, trial, folder, "FINISHED")


def test_a_store_that_cannot_be_written_to_delays_delivery(
    tmp_path: Path, with_store: WithStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder `file:` for such an address
    output = with_store(tmp_path)
    (trial, folder), (other, second) = trials(output, experiment("read"))[:2]
    tracker_of(output).start_trial(folder, trial, "read", EXTRA)
    readonly = Tracker(f"sqlite:///file:{tmp_path / 'mlflow.db'}?mode=ro&uri=true", "tests", None)
    leave(trial, folder, "FINISHED")
    for each, place in ((trial, folder), (other, second)):
        readonly.start_trial(place, each, "read", EXTRA)
    assert readonly.problem is not None
    assert "readonly database" in readonly.problem
    assert set(readonly.close("KILLED", wait_s=0)) == {folder.root, second.root}
    again = tracker_of(output)
    again.start_trial(folder, trial, "read", EXTRA, "FINISHED")
    assert again.close("KILLED") == {}
    assert_whole(output, trial, folder, "FINISHED")


def locked(output: Output, seconds: float) -> tuple[threading.Event, threading.Thread]:
    """Locks the store as a foreign process does, from now on for so long or until the event is set."""
    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        connection = sqlite3.connect(output.root / "mlflow.db", isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        held.set()
        release.wait(seconds)
        connection.execute("ROLLBACK")
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    return release, thread


def test_a_short_lock_is_waited_for(tmp_path: Path, with_store: WithStore) -> None:
    output = with_store(tmp_path)
    trial, folder = trials(output, experiment("short"))[0]
    tracker = tracker_of(output)
    delivery = tracker.start_trial(folder, trial, "short", EXTRA)
    write_spool(trial, folder)
    _, thread = locked(output, 1.0)
    assert tracker.ship(delivery) > 0
    thread.join()
    tracker.end_trial(delivery, "FINISHED")
    assert_whole(output, trial, folder, "FINISHED")


@pytest.mark.slow
def test_a_lock_that_stays_delays_delivery_and_a_start_is_refused(tmp_path: Path, with_store: WithStore) -> None:
    output = with_store(tmp_path)
    trial, folder = trials(output, experiment("long"))[0]
    tracker = tracker_of(output)
    delivery = tracker.start_trial(folder, trial, "long", EXTRA)
    release, thread = locked(output, 300.0)
    try:
        write_spool(trial, folder, STEPS[:2])
        began = time.monotonic()
        assert tracker.ship(delivery) == 0
        assert 15 < time.monotonic() - began < 60  # SQLite's patience, as MLflow sets it
        assert tracker.problem is not None
        assert "database is locked" in tracker.problem
        with pytest.raises(StoreUnreachable, match="database is locked"):
            tracker_of(output)
        write_spool(trial, folder)  # training goes on meanwhile
    finally:
        release.set()
        thread.join()
    time.sleep(1.1)
    tracker.end_trial(delivery, "FINISHED")
    assert_whole(output, trial, folder, "FINISHED")
