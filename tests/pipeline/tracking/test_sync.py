"""`tiny-onn sync` on the store in the output folder: what it mends and refuses; a second call changes nothing."""

import json
import os
import socket
from collections import Counter

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.records.delivery import read_delivery
from pipeline.records.lock import folder_lock
from pipeline.reporting.results import read_results
from pipeline.tracking.destination import Destination, recall, remember
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline.delivery_samples import STEPS, assert_whole, begin, files_of, leave, statuses
from tests.pipeline.sweep_samples import EXTRA, LOSS, write_spool

ARMS = {"arms": ("per_token", "task_only"), "seeds": (0,)}
HERE = Destination()


@pytest.fixture(scope="module")
def output(tmp_path_factory, with_store):
    return with_store(tmp_path_factory.mktemp("sync"))


def sync(output: Output, *words: str) -> Result:
    """`tiny-onn sync`."""
    result = CliRunner().invoke(main, ["sync", "--output", str(output.root), *words])
    assert not isinstance(result.exception, Exception), result.exception
    return result


def tracker_of(output: Output) -> Tracker:
    return Tracker(output.tracking_uri, HERE.experiment, output.artifacts)


def info(output: Output, folder) -> tuple[str, int]:
    """A trial's run: status and time of its end."""
    run = open_store(output.tracking_uri).get_run(read_delivery(folder.delivery).run_id)
    return run.info.status, run.info.end_time


def test_a_killed_command_leaves_runs_running_and_sync_ends_them_then_resume_goes_on(output):
    (trial, folder), (waiting, place) = begin(output, "killed", HERE, **ARMS)
    leave(trial, folder, "KILLED", STEPS[:2])
    tracker = tracker_of(output)
    tracker.start_summary(output.sweep("killed"), trial.experiment)
    delivery = tracker.start_trial(folder, trial, "killed", EXTRA)
    tracker.ship(delivery)
    with folder.spool.open("ab") as spool:
        spool.write(b'{"step": 20, "ti')  # where the kill cut it off; the tracker and its thread die here
    del tracker
    assert statuses(output, "killed") == Counter({"RUNNING": 2})
    assert "killed: 1 of 2 trials delivered now (0 points); 1 KILLED, 1 not begun." in sync(output, "killed").output
    assert statuses(output, "killed") == Counter({"KILLED": 2})
    before = info(output, folder)
    assert "nothing was outstanding" in sync(output, "killed").output
    assert info(output, folder) == before

    again = tracker_of(output)  # the resumed command
    again.start_trial(folder, trial, "killed", EXTRA)
    assert info(output, folder)[0] == "RUNNING"
    again.start_trial(place, waiting, "killed", EXTRA)
    del again  # killed once more, before anything new could be sent
    assert "killed: 1 of 2 trials delivered now (0 points)" in sync(output, "killed").output
    assert info(output, folder)[0] == "KILLED"
    leave(trial, folder, "FINISHED")
    leave(waiting, place, "FINISHED")
    assert "2 of 2 trials delivered now" in sync(output, "killed").output
    assert_whole(output, trial, folder, "FINISHED")
    assert_whole(output, waiting, place, "FINISHED")
    assert statuses(output, "killed") == Counter({"FINISHED": 3})


def test_a_summary_without_report_gets_it(output):
    pairs = begin(output, "unreported", HERE, **ARMS)
    tracker = tracker_of(output)
    for trial, folder in pairs:
        leave(trial, folder, "FINISHED")
        tracker.start_trial(folder, trial, "unreported", EXTRA, "FINISHED")
    tracker.start_summary(output.sweep("unreported"), pairs[0][0].experiment)
    tracker.end_summary("FINISHED", [])
    assert tracker.close("FINISHED") == {}
    assert "0 of 2 trials delivered now (0 points), the report filed; 2 FINISHED." in sync(output, "unreported").output
    assert "nothing was outstanding" in sync(output, "unreported").output


def test_one_run_that_the_store_refuses_keeps_no_other_from_going_out(output):
    (trial, folder), (other, second) = begin(output, "refused", HERE, **ARMS)
    tracker = tracker_of(output)
    delivery = tracker.start_trial(folder, trial, "refused", EXTRA)
    second_delivery = tracker.start_trial(second, other, "refused", EXTRA)
    open_store(output.tracking_uri).delete_run(delivery.run_id)  # by somebody, in the page
    for done in (STEPS[:1], STEPS[:2], STEPS):
        for each, place, run in ((trial, folder, delivery), (other, second, second_delivery)):
            write_spool(each, place, done)
            tracker.ship(run)
    assert tracker.problem is None
    tracker.end_trial(second_delivery, "FINISHED")
    assert_whole(output, other, second, "FINISHED")
    left = tracker.close("KILLED", wait_s=0)
    assert set(left) == {folder.root}
    assert "'active' state" in left[folder.root]
    leave(trial, folder, "FINISHED")
    leave(other, second, "FINISHED")
    sync(output, "refused")  # it goes to a new run, whole
    assert assert_whole(output, trial, folder, "FINISHED") != delivery.run_id


def test_a_damaged_spool_is_named_and_its_run_is_ended(output):
    (trial, folder), (other, second) = begin(output, "damaged", HERE, **ARMS)
    leave(trial, folder, "FINISHED")
    leave(other, second, "FINISHED")
    lines = folder.spool.read_bytes().splitlines(keepends=True)
    folder.spool.write_bytes(lines[0] + b"\0" * 50 + b"\n" + lines[2])
    told = sync(output, "damaged")
    assert told.exit_code == 1
    assert "not delivered: per_token-s0 (" in told.output
    assert f"damaged at byte {len(lines[0])}" in told.output
    assert_whole(output, trial, folder, "FINISHED", STEPS[:1])
    assert_whole(output, other, second, "FINISHED")
    assert sync(output, "damaged").exit_code == 1


def test_metrics_that_end_in_damage_do_not_pass_for_a_finished_trials_last_ones(output):
    (trial, folder), (other, second) = begin(output, "spoilt", HERE, **ARMS)
    leave(trial, folder, "FINISHED")
    leave(other, second, "FINISHED")
    whole = folder.spool.read_bytes()
    lines = whole.splitlines(keepends=True)
    folder.spool.write_bytes(lines[0] + b"\0" * len(lines[1][:-1]) + b"\n" + lines[2])
    for _ in range(2):
        sync(output, "spoilt")
        read = read_results(output.tracking_uri, HERE.experiment, "spoilt")
        assert (read.statuses, read.unfinished) == ({"DAMAGED": 1, "FINISHED": 1}, ("per_token-s0",))
        assert [row.arm for row in read.rows] == ["task_only"]
    folder.spool.write_bytes(whole)
    assert sync(output, "spoilt").exit_code == 0
    read = read_results(output.tracking_uri, HERE.experiment, "spoilt")
    assert read.statuses == {"FINISHED": 2}
    assert read.rows[0].trials[0].metrics["held_out/loss"] == LOSS["per_token"][0]


def test_another_store_gets_everything(output, tmp_path, with_store):
    pairs = begin(output, "copied", HERE, **ARMS)
    for trial, folder in pairs:
        leave(trial, folder, "FINISHED")
    sync(output, "copied")
    other = with_store(tmp_path)
    told = sync(output, "copied", "--tracking-uri", other.tracking_uri, "--experiment", "copies")
    assert "2 of 2 trials delivered now" in told.output
    for trial, folder in pairs:
        assert "result.json" in files_of(other, assert_whole(other, trial, folder, "FINISHED"))
    assert statuses(other, "copied") == statuses(output, "copied") == Counter({"FINISHED": 3})


def test_what_cannot_be_delivered_is_refused_by_name(output, tmp_path):
    assert "holds no sweep. Name the folder" in sync(Output(tmp_path)).output
    begin(output, "there", HERE, **ARMS)
    nowhere = sync(output, "theer")
    assert nowhere.exit_code == 2
    assert "holds no sweep 'theer'; there are: " in nowhere.output
    assert "there" in nowhere.output
    assert not output.sweep("theer").exists()
    assert sync(output, "../there").exit_code == 2
    with folder_lock(output.sweep("there")):
        busy = sync(output, "there")
    assert busy.exit_code == 2
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in busy.output
    record = output.sweep("there") / "sweep.json"
    moved = output.sweep("elsewhere") / "sweep.json"
    moved.parent.mkdir()
    moved.write_text(record.read_text())
    assert "of a sweep 'there', but lies in the folder of 'elsewhere'" in sync(output, "elsewhere").output
    record.write_text("[1")
    moved.unlink()
    broken = sync(output)  # all of them: one that cannot be read does not stop the others
    assert broken.exit_code == 1
    assert "sweep.json: is damaged, not the record of a sweep" in broken.output


def test_a_password_is_not_kept_and_asked_for(tmp_path, monkeypatch):
    secret = Destination("http://me:s3cr3t@127.0.0.1:9", "mine")
    remember(tmp_path, secret, {"a": "b"})
    kept = (tmp_path / "tracking.json").read_text()
    assert "s3cr3t" not in kept
    assert json.loads(kept)["uri"] == "http://127.0.0.1:9"
    with pytest.raises(UserError, match="with a password, which is not kept"):
        recall(tmp_path, None, None)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t")
    with pytest.raises(
        UserError, match=r"have your password sent elsewhere.*say so: --tracking-uri http://127.0.0.1:9$"
    ):
        recall(tmp_path, None, None)
    assert recall(tmp_path, "http://127.0.0.1:9", None) == (Destination("http://127.0.0.1:9", "mine"), {"a": "b"})
    assert recall(tmp_path, "http://other", "x")[0] == Destination("http://other", "x")
    assert secret.sync_command("s", Output(tmp_path)) == (
        f"MLFLOW_TRACKING_USERNAME=me MLFLOW_TRACKING_PASSWORD=*** tiny-onn sync s --output {tmp_path} "
        "--tracking-uri http://127.0.0.1:9"
    )
    database = Destination("postgresql://me:s3cr3t@db/x")
    assert database.sync_command("s", Output(tmp_path)).endswith("--tracking-uri 'postgresql://me:***@db/x'")
    remember(tmp_path, database, {})
    with pytest.raises(UserError, match="name the whole address with --tracking-uri"):
        recall(tmp_path, None, None)


@pytest.mark.parametrize("secret", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", ".mlflow/credentials"])
def test_no_secret_goes_to_an_address_that_only_a_file_names(tmp_path, monkeypatch, secret):
    """Whoever can write to a shared folder can write tracking.json."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH"):
        monkeypatch.delenv(name, raising=False)
    remember(tmp_path, Destination("http://elsewhere.example:5000"), {})
    assert recall(tmp_path, None, None)[0].uri == "http://elsewhere.example:5000"  # there is none to send
    if secret.startswith("."):
        (tmp_path / "home" / ".mlflow").mkdir(parents=True)
        (tmp_path / "home" / secret).write_text("[mlflow]")
    else:
        monkeypatch.setenv(secret, "x")
    with pytest.raises(UserError, match="have your password sent elsewhere"):
        recall(tmp_path, None, None)
    assert recall(tmp_path, "http://mine", None)[0].uri == "http://mine"
    remember(tmp_path, Destination("sqlite:////x.db"), {})
    assert recall(tmp_path, None, None)[0].uri == "sqlite:////x.db"


@pytest.mark.parametrize(
    "kept", [{"uri": 3}, {"tags": []}, {"tags": {"a": 1}}, {"experiment": None}, {"needs_password": 1}]
)
def test_a_damaged_destination_is_named(tmp_path, kept):
    (tmp_path / "tracking.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r"tracking\.json: is damaged"):
        recall(tmp_path, None, None)
