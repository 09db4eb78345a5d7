"""The view that the MLflow page is opened with."""

import base64
import json
import zlib

import pytest

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.tracking.leaderboard import (
    PrototypePage,
    density_view,
    leaderboard_metrics,
    links,
    prototype_links,
    prototype_pages,
    prototypes_view,
    report_links,
    share_leaderboard,
    view_state,
)
from pipeline.tracking.serve import serve
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sweep_samples import EXTRA, experiment, metrics_at, trials, write_spool

OF_SAMPLE = "tags.role = 'trial' and tags.sweep = 'sample' and tags.seed = '0'"


def test_the_columns_are_few_and_of_the_first_middle_and_last_layer():
    assert leaderboard_metrics([0, 1, 2, 3, 4, 5]) == [
        "held_out/loss",
        "held_out/token_accuracy",
        "activation_rate/L0",
        "activation_rate/L3",
        "activation_rate/L5",
        "fraction_good/L3",
        "mutual_information/L3",
        "speed/step_seconds",
    ]
    assert leaderboard_metrics([0]).count("activation_rate/L0") == 1


def test_older_runs_and_evaluation_tasks_have_their_columns():
    def columns(*recorded):
        return [name for name in view_state([0], recorded=recorded)["selectedColumns"] if "/L" not in name][:-1]

    held_out = ["metrics.`held_out/loss`", "metrics.`held_out/token_accuracy`"]
    older = ["metrics.`eval/loss`", "metrics.`eval/token_accuracy`"]
    assert columns() == columns("held_out/loss") == held_out
    assert columns("eval/loss", "eval/token_accuracy") == older
    both = columns("eval/loss", "eval/token_accuracy", "held_out/loss", "held_out/token_accuracy")
    assert both == [held_out[0], older[0], held_out[1], older[1]]
    evaluation = [f"evaluation/{measure}" for measure in ("loss", "token_accuracy", "tasks_exact", "pass_at_2")]
    assert columns(*evaluation) == [*held_out, *(f"metrics.`{name}`" for name in evaluation)]
    assert view_state([0], recorded=["eval/loss"])["orderByKey"] == "metrics.`eval/loss`"
    assert view_state([0], recorded=["eval/loss", "held_out/loss"])["orderByKey"] == "metrics.`held_out/loss`"
    charts = view_state([0], recorded=["eval/loss", "evaluation/loss"])["compareRunCharts"]
    scales = {chart["metricKey"]: chart["scaleType"] for chart in charts}
    assert (scales["eval/loss"], scales["evaluation/loss"], "held_out/loss" in scales) == ("log", "log", False)


def test_runs_are_grouped_by_cell_and_each_is_a_dot_over_its_density(tmp_path):
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    sample = experiment("grid", arms=("per_token",), grid={"model.gain": (1.0, 2.0)})
    for trial, folder in trials(output, sample):
        write_spool(trial, folder)
        tracker.start_trial(folder, trial, "grid", EXTRA)
    tracker.close("FINISHED")
    share_leaderboard(tracker._client, tracker.experiment_id)
    tags = tracker._client.get_experiment(tracker.experiment_id).tags
    arms, density = (
        json.loads(zlib.decompress(base64.b64decode(json.loads(tags[f"mlflow.sharedViewState.{key}"])["state"][8:])))
        for key in ("arms", "density")
    )
    assert [group["groupByData"] for group in arms["groupBy"]["groupByKeys"]] == ["arm", "model.gain"]
    assert arms["selectedColumns"][1] == "metrics.`held_out/density`"
    (chart,) = density["compareRunCharts"]
    assert (chart["type"], chart["xaxis"]["key"], chart["yaxis"]["key"]) == (
        *("SCATTER", "held_out/density", "held_out/loss"),
    )
    assert density["groupBy"] is None
    older = density_view(arms, ["eval/loss"])["compareRunCharts"][0]
    assert older["yaxis"]["key"] == "eval/loss"


def test_the_shared_view_is_stored_with_the_experiment_as_the_page_reads_it(tmp_path):
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    trial, folder = trials(output, experiment())[0]
    write_spool(trial, folder)
    tracker.start_trial(folder, trial, "sample", EXTRA)
    summary = tracker.start_summary(tmp_path, experiment())
    tracker.close("FINISHED")
    share_leaderboard(tracker._client, tracker.experiment_id)
    recorded = set(metrics_at(trial, 20))
    arms = view_state([0, 1, 2], recorded=recorded)
    for key, view in (
        *(("arms", arms), ("density", density_view(arms, recorded))),
        ("prototypes", prototypes_view(arms, PrototypePage("prototypes", "", OF_SAMPLE, 20))),
    ):
        tag = json.loads(tracker._client.get_experiment(tracker.experiment_id).tags[f"mlflow.sharedViewState.{key}"])
        kind, _, packed = tag["state"].partition(";")
        assert kind == "deflate"
        assert json.loads(zlib.decompress(base64.b64decode(packed))) == view
    for link in links("http://127.0.0.1:5000", tracker.experiment_id).values():
        assert "workflowType=machine_learning" in link
        assert any(f"viewStateShareKey={key}" in link for key in ("arms", "density", "prototypes"))
    (report,) = report_links(tracker._client, "http://127.0.0.1:5000", tracker.experiment_id).items()
    assert report[0] == "summary of sample"
    assert f"/runs/{summary}?" in report[1]
    with pytest.raises(UserError, match="no experiment 'nosuch'"):
        serve(output.tracking_uri, "nosuch", output.artifacts, None)


def test_the_prototypes_of_all_arms_and_sweeps_are_shown_ten_at_a_time(tmp_path):
    """The page of MLflow shows images of ten runs; each view has at most so many, and together they have all."""
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    few = experiment("few", arms=("per_token", "aggregated"), seeds=(2, 1))
    many = experiment(
        "many", arms=("per_token",), seeds=(0, 1), grid={"model.gain": tuple(0.5 * n for n in range(1, 13))}
    )
    for sample in (few, many):
        for trial, folder in trials(output, sample):
            tracker.start_trial(folder, trial, sample.name, EXTRA)
    tracker.close("FINISHED")
    client, experiment_id = tracker._client, tracker.experiment_id
    runs = client.search_runs([experiment_id])
    pages = prototype_pages(runs)
    assert [page.key for page in pages] == ["prototypes", "prototypes-1", "prototypes-2"]
    assert [page.title for page in pages] == [
        "prototypes of many, 1 of 2",
        "prototypes of many, 2 of 2",
        "prototypes of few",
    ]
    shown = [client.search_runs([experiment_id], page.search) for page in pages]
    assert [len(each) for each in shown] == [10, 2, 2]
    assert {(run.data.tags["sweep"], run.data.tags["seed"]) for each in shown for run in each} == {
        ("many", "0"),
        ("few", "1"),
    }
    assert len({run.info.run_id for each in shown for run in each}) == 14
    share_leaderboard(client, experiment_id)
    tags = client.get_experiment(experiment_id).tags
    assert all(f"mlflow.sharedViewState.{page.key}" in tags for page in pages)
    assert list(prototype_links(client, "http://127.0.0.1:1", experiment_id)) == [page.title for page in pages[1:]]
    assert prototype_pages([]) == []
