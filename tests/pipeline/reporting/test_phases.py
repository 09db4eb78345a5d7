"""The table and the chart of where the wall time went, in every form of the report."""

import json
import re
from pathlib import Path

import pytest

from pipeline.layout import Output
from pipeline.records.phases import SweepPhases, TrialPhases
from pipeline.reporting.artifacts import Artifacts
from pipeline.reporting.files import markdown, write_report
from pipeline.reporting.page import html
from pipeline.reporting.phases import phases_sentence, phases_table
from pipeline.reporting.report import make_report, report_of
from pipeline.tracking.tracker import Tracker
from tests.pipeline.reporting.test_tables import results, row
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool

FOUND = SweepPhases(
    "x",
    "session",
    2.0,
    (("command", 0.0, 5.0), ("trials", 5.0, 25.0)),
    (
        TrialPhases(
            "a-s0", 5.0, 15.0, 2.0, {"driver": 4.0, "steps": 6.0}, (("worker", 7.0, 9.0), ("steps", 9.0, 15.0))
        ),
        TrialPhases("b<i>-s0", 15.0, 25.0, 2.0, {"other": 10.0}),
    ),
)


def test_the_table_holds_the_wall_time_its_parts_and_each_trial() -> None:
    table = phases_table(FOUND)
    assert table.head == ["seconds", "wall", "command", "driver", "steps", "other"]
    assert [[cell.text for cell in line] for line in table.rows] == [
        ["of the wall", "25.0", "5.0", "4.0", "6.0", "10.0"],
        ["of the wall, %", "100", "20.0", "16.0", "24.0", "40.0"],
        ["mean of 2 trials", "10.0", "0.0", "2.0", "3.0", "5.0"],
        ["a-s0", "10.0", "0.0", "4.0", "6.0", "0.0"],
        ["b<i>-s0", "10.0", "0.0", "0.0", "0.0", "10.0"],
    ]
    assert "25.0 s, is 4.17 times" in phases_sentence(FOUND)  # 25 / 6
    assert "2 cores, 6.0 s" in phases_sentence(FOUND)


def test_a_report_has_it_where_it_is_known_and_nothing_where_it_is_not(tmp_path: Path) -> None:
    with_times = report_of(results(row("mine", {0: 1.5})), Artifacts(phases=FOUND))
    without = report_of(results(row("mine", {0: 1.5})), Artifacts())
    page = html(with_times)
    assert "Where the wall time went" in page
    assert "b&lt;i&gt;-s0" in page
    assert "b<i>-s0" not in page
    assert "<td>24.0</td>" in re.sub(r"\s", "", page)
    assert "## Where the wall time went" in markdown(with_times)
    assert "Where the wall time went" not in html(without) + markdown(without)
    assert tmp_path / "phases.png" in write_report(with_times, tmp_path)
    assert (tmp_path / "phases.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in write_report(without, tmp_path) if "phases" in path.name]


@pytest.mark.parametrize("where", ["folder", "store", "nowhere", "damaged"])
def test_it_is_read_from_the_sweeps_folder_or_else_from_its_summary_run(where: str, tmp_path: Path) -> None:
    output, sample = Output(tmp_path), experiment("timed", ("per_token",), (0,))
    trial = {"start": 5, "end": 15, "cores": 2, "worker": {"seconds": {"steps": 6}, "spans": []}}
    told = {"sweep": "timed", "session": "x", "cores": 2, "trials": {"a": trial}}
    told |= {"command": {"spans": [["command", 0, 5], ["trials", 5, 15]]}}
    path = output.phases("timed")
    path.parent.mkdir(parents=True)
    path.write_text("{" if where == "damaged" else json.dumps(told))
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    tracker.start_summary(output.sweep(sample.name), sample)
    for each, folder in trials(output, sample):
        write_spool(each, folder)
        delivery = tracker.start_trial(folder, each, sample.name, EXTRA)
        tracker.end_trial(delivery, "FINISHED")
    tracker.end_summary("FINISHED", [path] if where in ("store", "damaged") else [])
    given = path if where == "folder" else None
    timed = make_report(output.tracking_uri, "tests", sample.name, phases=given).filed.phases
    assert (None if timed is None else timed.wall) == {"folder": 15.0, "store": 15.0}.get(where)
