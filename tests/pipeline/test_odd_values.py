"""What is odd but possible: values that are no numbers, clocks that step back, names that mean something to a page."""

import io
import json
import math
import time

import pytest
from rich.console import Console

from pipeline.reporting.files import markdown, print_report, write_report
from pipeline.reporting.report import make_report
from pipeline.tracking.leaderboard import view_state
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline import sweep_samples
from tests.pipeline.delivery_samples import assert_whole, leave
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool

HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) | `c` **b**"


@pytest.fixture(scope="module")
def output(tmp_path_factory, with_store):
    return with_store(tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def tracker(output):
    return Tracker(output.tracking_uri, "tests", output.artifacts)


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_wins_no_comparison(output, tracker, monkeypatch, lost):
    name = f"wins-{lost}".replace("--", "-")
    monkeypatch.setitem(sweep_samples.LOSS, "task_only", (lost, lost, lost))
    sample = experiment(name)
    for trial, folder in trials(output, sample):
        leave(trial, folder, "FINISHED")
        tracker.start_trial(folder, trial, name, EXTRA, "FINISHED")
    report = make_report(output.tracking_uri, "tests", name)
    text = markdown(report)
    means = text.split("## Means over seeds")[1].split("##")[0]
    assert "| task_only | 3 | – |" in means  # its mean loss is no number, and not the best one
    assert "| 1.0167 |" in means
    assert "**–**" not in text
    assert "losses of task_only and per_token are not compared" in text
    diverged = next(row for row in report.results.rows if row.arm == "task_only")
    assert not any(math.isfinite(trial.last("held_out/loss")) for trial in diverged.trials.values())
    # The leaderboard is MLflow's own: sorted upwards by the held-out loss, what is no number comes last.
    client = open_store(output.tracking_uri)
    order = view_state([0, 1, 2])
    by = f"{order['orderByKey']} {'ASC' if order['orderByAsc'] else 'DESC'}"
    runs = client.search_runs([tracker.experiment_id], f"tags.sweep = '{name}'", order_by=[by])
    if lost != -math.inf:
        assert {run.data.tags["arm"] for run in runs[-3:]} == {"task_only"}
        assert runs[0].data.tags["arm"] == "aggregated"


def test_a_clock_that_steps_back_changes_no_order(output, tracker, monkeypatch):
    trial, folder = trials(output, experiment("clock"))[0]
    clock = iter([5_000_000_000, 4_000_000_000, 3_000_000_000])
    with monkeypatch.context() as back:
        back.setattr(time, "time_ns", lambda: 1_000_000 * next(clock))
        write_spool(trial, folder)
    leave(trial, folder, "FINISHED")
    run_id = tracker.start_trial(folder, trial, "clock", EXTRA, "FINISHED").run_id
    assert_whole(output, trial, folder, "FINISHED")
    client = open_store(output.tracking_uri)
    assert client.get_run(run_id).data.metrics["train/task_loss"] == 2.0  # of the last step, not of the latest time
    history = client.get_metric_history(run_id, "train/task_loss")
    assert sorted(point.step for point in history) == [0, 10, 20]
    (row,) = make_report(output.tracking_uri, "tests", "clock").results.rows
    assert row.trials[0].activation[0][0] == [0, 10, 20]
    assert row.trials[0].last("train/task_loss") == 2.0


def test_a_store_full_of_markup_is_shown_as_text(output, tracker, tmp_path):
    """Whoever may write to the store names arms and settings; the report's reader must see names and no more."""
    (trial, folder), (other, second), *_ = trials(output, experiment("markup", seeds=(0,)))
    client = open_store(output.tracking_uri)
    for each, place in ((trial, folder), (other, second)):
        leave(each, place, "FINISHED")
    delivery = tracker.start_trial(folder, trial, "markup", EXTRA)
    run_id = delivery.run_id
    client.set_tag(run_id, "arm", HOSTILE)
    client.log_param(run_id, "model.note", f"{HOSTILE}\n# heading\x1b[31m")
    tracker.end_trial(delivery, "FINISHED")
    tracker.start_trial(second, other, "markup", EXTRA, "FINISHED")
    report = make_report(output.tracking_uri, "tests", "markup")
    files = {path.suffix: path for path in write_report(report, tmp_path)}
    shown = files[".md"].read_text()
    assert "alert" in shown
    assert "<script" not in shown
    assert "](javascript" not in shown.replace("\\]", "")
    assert "\n# heading" not in shown
    assert all(
        line.count(" | ") == shown_table_width(shown, line) for line in shown.splitlines() if line.startswith("| ")
    )
    json.loads(files[".json"].read_text())
    page = files[".html"].read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    screen = io.StringIO()
    print_report(report, Console(file=screen, width=200))
    assert "\x1b" not in screen.getvalue()


def shown_table_width(text: str, line: str) -> int:
    """How many cells the head of the line's table has."""
    before = text[: text.index(line)].rpartition("\n\n")[2]
    return (before or line).splitlines()[0].count(" | ")
