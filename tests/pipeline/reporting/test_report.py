"""The report against numbers worked by hand, from a real MLflow store."""

import io
import json
import math
import re

import pandas as pd
import pytest
from rich.console import Console

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.measures import RENAMED
from pipeline.reporting import report as reporting
from pipeline.reporting.columns import COLUMNS
from pipeline.reporting.files import markdown, print_report, write_report
from pipeline.reporting.renderings import escape
from pipeline.reporting.report import make_report
from pipeline.reporting.statistics import mean
from pipeline.run import file_report
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool

BY_KEY = {column.key: column for column in COLUMNS}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return Output(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def tracker(output):
    return Tracker(output.tracking_uri, "tests", output.artifacts)


def _run(output, tracker, sample, unfinished=()):
    for trial, folder in trials(output, sample):
        write_spool(trial, folder)
        delivery = tracker.start_trial(folder, trial, sample.name, EXTRA)
        tracker.end_trial(delivery, "FAILED" if trial.key in unfinished else "FINISHED")
    return make_report(output.tracking_uri, "tests", sample.name)


@pytest.fixture(scope="module")
def whole(output, tracker):
    return _run(output, tracker, experiment("whole"))


def _row(report, arm):
    return next(row for row in report.results.rows if row.arm == arm)


def test_a_sweep_recorded_under_older_names_has_the_same_report(output, tracker, whole):
    sample = experiment("older")
    for trial, folder in trials(output, sample):
        write_spool(trial, folder)
        text = folder.spool.read_text()
        for old, new in RENAMED.items():
            text = text.replace(f'"{new}"', f'"{old}"')
        folder.spool.write_text(text)
        delivery = tracker.start_trial(folder, trial, sample.name, EXTRA)
        tracker.end_trial(delivery, "FINISHED")
    older = make_report(output.tracking_uri, "tests", sample.name)
    of_both = [
        [(row.arm, row.trials[0].metrics, row.trials[0].curves) for row in r.results.rows] for r in (older, whole)
    ]
    assert of_both[0] == of_both[1]
    run = tracker._client.get_run(_row(older, "task_only").trials[0].run_id)
    assert "eval/loss" in run.data.metrics
    assert "held_out/loss" not in run.data.metrics


def test_means_are_those_of_the_last_values(whole):
    assert [row.arm for row in whole.results.rows] == ["per_token", "aggregated", "task_only"]
    row = _row(whole, "per_token")
    assert BY_KEY["held_out_loss"].of_row(row) == {0: 1.0, 1: 1.2, 2: 1.1}
    expected = {
        "held_out_loss": 1.1,
        "token_accuracy": 0.51,
        "active_first": 0.05 * 1.1,  # seeds 0, 1, 2 at 1, 1.1 and 1.2 times
        "active_middle": 0.10 * 1.1,
        "active_last": 0.15 * 1.1,
        "fraction_good": 0.2,  # of 0.1, 0.2, 0.3
        "selectivity": 1.0,  # of 0.5, 1.0, 1.5
        "step_seconds": 0.11,  # the median of 0.10, 0.11, 0.12
    }
    assert {key: mean(BY_KEY[key].of_row(row)) for key in expected} == pytest.approx(expected)


def test_differences_are_paired_and_their_interval_goes_from_lowest_to_highest(whole):
    effect = whole.differences[1]["held_out_loss"]  # aggregated - per_token, by seed
    assert effect.values == pytest.approx({0: -0.1, 1: -0.05, 2: -0.1})
    assert effect.mean == pytest.approx(-0.25 / 3)
    assert effect.interval == pytest.approx((-0.1, -0.05))  # of three values both extremes are within 95 %
    assert effect.excludes_zero
    assert 0 not in whole.differences


def test_a_diverged_seed_is_shown_and_never_wins(whole):
    column, row = BY_KEY["held_out_loss"], _row(whole, "task_only")
    assert math.isnan(mean(column.of_row(row)))
    text = markdown(whole)
    assert "| 1.0167 |" in text  # aggregated: (0.9 + 1.15 + 1.0) / 3, not bold: it is ten times as dense
    means = text.split("## Means over seeds")[1].split("##")[0]
    assert re.search(r"\| task_only \| 3 \| – \|", means)
    assert whole.differences[2]["held_out_loss"].interval is None
    assert "task_only s2" in whole.findings[-1]


def test_the_words_follow_from_the_numbers(whole):
    text = " ".join(whole.findings)
    assert "aggregated is denser than per_token in all 3 layers, by a factor of 10.0" in text
    assert "all 3 seeds agree" in text
    assert "held-out loss of aggregated is lower by 0.0833 nats per token" in text
    assert "(95 % interval -0.1000 to -0.0500, which excludes 0)" in text
    assert "With 3 seeds" in text
    # only the first layer of per_token has under 10 % active: 0.5 nats of ln 8
    assert f"carries 0.50 nats of information about the token, which is {100 * 0.5 / math.log(8):.0f} %" in text
    assert "Goodness in per_token ranks active experts most like their contribution" in text
    assert "Goodness in aggregated ranks experts most like their contribution" in text  # which it has of all of them
    assert "contribution +0.90, relevance -0.10, cost +0.20" in text
    assert "Goodness in task_only" not in text
    assert "losses of task_only and per_token are not compared" in text
    assert "3 seeds, hidden width 8, 3 layers, 20 training steps" in text


def test_other_numbers_give_other_words(output, tracker, monkeypatch):
    from tests.pipeline import sweep_samples

    monkeypatch.setitem(sweep_samples.DENSITY, "aggregated", 0.025)
    monkeypatch.setitem(sweep_samples.LOSS, "aggregated", (1.1, 1.1, 1.2))
    text = " ".join(_run(output, tracker, experiment("other", arms=("per_token", "aggregated"))).findings)
    assert "aggregated is sparser than per_token in all 3 layers, by a factor of 2.0" in text
    assert "held-out loss of aggregated is higher by 0.0333" in text
    assert "which includes 0" in text


def test_files_are_written_and_hold_no_nan(whole, tmp_path):
    paths = write_report(whole, tmp_path / "out")
    assert [path.name for path in paths] == [
        *("report.md", "report.html", "activation_by_layer.png", "loss_over_density.png"),
        *("results.json", "results.csv", "results.parquet", "results.tex"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:4])
    data = json.loads(paths[4].read_text(), parse_constant=lambda name: pytest.fail(name))
    none = data["rows"][2]["columns"]["held_out_loss"]
    assert none["mean"] is None
    assert none["seeds"] == {"0": 1.0, "1": 1.3, "2": None}
    assert data["rows"][1]["columns"]["held_out_loss"]["minus_reference"]["interval"] == pytest.approx([-0.1, -0.05])
    assert "| per\\_token" not in paths[0].read_text()
    assert paths[0].read_text().count("\n| per_token |") == 5  # at equal density, its mean and its three seeds


def test_unfinished_trials_are_counted_and_left_out(output, tracker):
    sample = experiment("part")
    report = _run(output, tracker, sample, unfinished={"aggregated-s0", "task_only-s0", "task_only-s1", "task_only-s2"})
    assert reporting.headline(report.results) == "5 of 9 trials finished (4 FAILED)."
    assert [row.arm for row in report.results.rows] == ["per_token", "aggregated"]
    assert report.differences[1]["held_out_loss"].seeds == 2
    assert report.findings[-1].endswith(
        "4 of 9 trials did not finish and are left out: aggregated-s0, task_only-s0, task_only-s1, task_only-s2."
    )


@pytest.mark.parametrize(
    ("arms", "seeds", "said"),
    [
        (("aggregated", "task_only"), (0, 1), "no finished per_token trial"),
        (("per_token", "aggregated"), (0,), "in the only seed that both have"),
        (("per_token",), (0, 1, 2), "Goodness in per_token"),
    ],
)
def test_sweeps_that_lack_something(output, tracker, arms, seeds, said):
    name = f"lacking-{'-'.join(arms)}-{len(seeds)}"
    report = _run(output, tracker, experiment(name, arms=arms, seeds=seeds))
    assert said in " ".join(report.findings)
    assert "nan" not in markdown(report).lower().replace("nano", "")


def test_a_grid_makes_rows_and_pairs_within_a_cell(output, tracker):
    sample = experiment("grid", arms=("per_token", "aggregated"), grid={"training.learning_rate": (1e-3, 1e-2)})
    report = _run(output, tracker, sample)
    cells = [(row.arm, dict(row.cell)) for row in report.results.rows]
    assert cells == [
        ("per_token", {"training.learning_rate": "0.001"}),
        ("aggregated", {"training.learning_rate": "0.001"}),
        ("per_token", {"training.learning_rate": "0.01"}),
        ("aggregated", {"training.learning_rate": "0.01"}),
    ]
    assert set(report.differences) == {1, 3}
    assert any(text.startswith("With training.learning_rate = 0.01: aggregated is denser") for text in report.findings)


def test_a_sweep_of_which_nothing_finished(output, tracker, tmp_path):
    sample = experiment("nothing", arms=("per_token",), seeds=(0,))
    report = _run(output, tracker, sample, unfinished={"per_token-s0"})
    assert [path.name for path in write_report(report, tmp_path)] == ["report.md", "report.html", "results.json"]
    assert "No trial has finished" in (tmp_path / "report.md").read_text()
    assert "No trial has finished" in (tmp_path / "report.html").read_text()
    print_report(report, Console(file=io.StringIO()))


def test_equal_losses_are_not_called_higher_by_nothing_and_no_mark_is_explained_that_is_not_there(
    output, tracker, monkeypatch
):
    from tests.pipeline import sweep_samples

    monkeypatch.setitem(sweep_samples.LOSS, "aggregated", sweep_samples.LOSS["per_token"])
    alike = _run(output, tracker, experiment("alike", arms=("per_token", "aggregated")))
    assert "held-out loss of aggregated differs by less than 0.0001 nats" in " ".join(alike.findings)
    screen = io.StringIO()
    print_report(_run(output, tracker, experiment("one", arms=("per_token",))), Console(file=screen, width=200))
    assert "best of its column" not in screen.getvalue()


def test_a_report_that_cannot_be_written_says_where_else(output, whole, tmp_path):
    place = Output(tmp_path).sweep("whole") / "report"
    place.parent.mkdir(parents=True)
    place.touch()
    with pytest.raises(UserError, match=f"^{place}: the report cannot be written .* --tracking-uri sqlite"):
        file_report(output.tracking_uri, "tests", "whole", tmp_path, Console(file=io.StringIO()))


def test_print_shows_the_table_and_the_words(whole):
    screen = io.StringIO()
    print_report(whole, Console(file=screen, width=200))
    text = screen.getvalue()
    assert "1.0167" in text
    assert "more columns" not in text
    assert "all 3 seeds agree" in text


def test_what_is_not_there_is_named(output, tracker, whole):
    with pytest.raises(UserError, match=r"no experiment 'nosuch'; there are: .*tests"):
        make_report(output.tracking_uri, "nosuch", "whole")
    with pytest.raises(UserError, match=r"no trial of a sweep 'who'; there are: .*whole"):
        make_report(output.tracking_uri, "tests", "who")


def test_names_cannot_break_the_page():
    assert escape("a|b <img src=x> `c` [d](e)\nf & g") == "a\\|b &lt;img src=x&gt; \\`c\\` \\[d\\](e) f &amp; g"


def test_a_setting_of_one_arm_is_no_cell_and_is_reported():
    """Of `sweep.arm_settings`: each arm has one value, where a grid gives every arm all of them."""
    from pipeline.reporting.results import _varying

    own = [("top_k", {"model.density": "0.05", "model.layers": layers}) for layers in ("2", "4")]
    others = [("per_token", {"model.layers": layers}) for layers in ("2", "4")]
    assert _varying([*own, *others]) == (
        ["model.layers"],
        {"per_token": {"model.density": "–"}, "top_k": {"model.density": "0.05"}},
    )
    assert _varying([*own, *own]) == (["model.layers"], {})


def test_results_are_written_where_a_setting_is_not_set_in_every_trial(whole):
    from dataclasses import replace as changed

    from pipeline.reporting.frames import results_frame

    rows = [
        changed(row, cell=(("model.density", "–" if row.arm == "per_token" else "0.05"), ("model.gate", str(place))))
        for place, row in enumerate(whole.results.rows)
    ]
    frame = results_frame(changed(whole.results, rows=rows, varying=["model.density", "model.gate"]))
    assert frame["model.density"].isna().sum() == 3
    assert set(frame["model.density"].dropna()) == {0.05}
    again = pd.read_parquet(io.BytesIO(frame.to_parquet(index=False)))
    assert list(again["model.density"].dropna()) == [0.05] * 6
