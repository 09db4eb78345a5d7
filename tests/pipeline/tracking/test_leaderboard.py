"""The view that the MLflow page is opened with."""

import base64
import json
import zlib

import pytest

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.tracking.leaderboard import (
    leaderboard_metrics,
    links,
    prototypes_view,
    report_links,
    share_leaderboard,
    view_state,
)
from pipeline.tracking.serve import serve
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool


def test_the_columns_are_few_and_of_the_first_middle_and_last_layer():
    assert leaderboard_metrics([0, 1, 2, 3, 4, 5]) == [
        "eval/loss",
        "eval/token_accuracy",
        "activation_rate/L0",
        "activation_rate/L3",
        "activation_rate/L5",
        "fraction_good/L3",
        "mutual_information/L3",
        "speed/step_seconds",
    ]
    assert leaderboard_metrics([0]).count("activation_rate/L0") == 1


def test_the_shared_view_is_stored_with_the_experiment_as_the_page_reads_it(tmp_path):
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    trial, folder = trials(output, experiment())[0]
    write_spool(trial, folder)
    tracker.start_trial(folder, trial, "sample", EXTRA)
    summary = tracker.start_summary(tmp_path, experiment())
    tracker.close("FINISHED")
    share_leaderboard(tracker._client, tracker.experiment_id)
    arms = view_state([0, 1, 2])
    for key, view in (("arms", arms), ("prototypes", prototypes_view(arms, 0, 20))):
        tag = json.loads(tracker._client.get_experiment(tracker.experiment_id).tags[f"mlflow.sharedViewState.{key}"])
        kind, _, packed = tag["state"].partition(";")
        assert kind == "deflate"
        assert json.loads(zlib.decompress(base64.b64decode(packed))) == view
    for link in links("http://127.0.0.1:5000", tracker.experiment_id).values():
        assert "workflowType=machine_learning" in link
        assert "viewStateShareKey=arms" in link or "viewStateShareKey=prototypes" in link
    (report,) = report_links(tracker._client, "http://127.0.0.1:5000", tracker.experiment_id).items()
    assert report[0] == "summary of sample"
    assert f"/runs/{summary}?" in report[1]
    with pytest.raises(UserError, match="no experiment 'nosuch'"):
        serve(output.tracking_uri, "nosuch", output.artifacts, None)
