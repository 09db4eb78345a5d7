"""A search's draws, ranked by their mean over seeds, and the sweep that runs the best again with fresh seeds."""

import io
import math
import shlex
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

from pipeline import api
from pipeline.cli import main
from pipeline.layout import Output
from pipeline.records.spool import Spool
from pipeline.reporting.best_samples import reruns
from pipeline.reporting.files import markdown
from pipeline.reporting.page import html
from pipeline.run import _rerun_lines, file_report
from pipeline.settings.config import Experiment, replace
from pipeline.settings.experiment_file import read_experiment
from pipeline.settings.search import sample
from pipeline.settings.trials import trials_of
from pipeline.tracking.destination import Destination
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sweep_samples import EXTRA, experiment

LOSSES = {  # of draws 1 to 4, by seed
    "per_token": [(1.5, 1.7), (1.0, 1.4), (1.1, 1.2), (0.1, math.nan)],
    "aggregated": [(1.3, 1.3), (1.9, 1.9), (0.2, None), (1.4, 1.1)],  # of the third a seed was not finished
}


def search(grid: dict | None = None) -> Experiment:
    fields = {
        "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
        "model.density": {"choice": [None, 0.25, 0.5]},
    }
    sweep = {
        "arms": list(LOSSES),
        "seeds": [0, 3],
        "search": {"samples": 4, "space": fields},
        "grid": grid or {},
        "arm_settings": {"aggregated": {"training.clip_norm": 2.0}},
    }
    study = {"question": "?", "intervention": "?", "primary_metric": "held_out_loss", "expectation": "?"}
    return replace(experiment("searched"), {"sweep": sweep, "study": study}, "test")


def file(output: Output, searched: Experiment, factor: dict[str, float] | None = None):
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    draws = sample(searched.sweep.search)
    tracker.start_summary(output.sweep(searched.name), searched)
    for trial in trials_of(searched):
        training = trial.experiment.training
        number = draws.index(
            {"training.learning_rate": training.learning_rate, "model.density": trial.experiment.model.density}
        )
        loss = LOSSES[training.arm][number][[0, 3].index(training.seed)]
        folder = output.trial(searched.name, trial.key)
        values = {} if loss is None else {"held_out/loss": loss * (factor or {}).get(str(training.warmup_steps), 1.0)}
        Spool(folder.spool).write(20, {**values, "held_out/density": 0.25})
        delivery = tracker.start_trial(folder, trial, searched.name, EXTRA)
        tracker.end_trial(delivery, "FAILED" if loss is None else "FINISHED")
    console = Console(file=io.StringIO(), width=200)
    made, files = file_report(output.tracking_uri, "tests", searched.name, output.root, console)
    return made, files, console.file.getvalue()


@pytest.fixture(scope="module")
def filed(tmp_path_factory):
    return file(Output(tmp_path_factory.mktemp("draws")), search())


def test_draws_are_ranked_by_their_mean_over_all_seeds(filed):
    report, _, _ = filed
    draws = sample(search().sweep.search)
    expected = {"per_token": [3, 2, 1], "aggregated": [4, 1, 2]}  # by hand: 1.15, 1.2, 1.6; 1.25, 1.3, 1.9
    assert [ranking.arm for ranking in report.samples] == ["per_token", "aggregated"]
    for ranking in report.samples:
        rates = [ranking.settings(row)["training.learning_rate"] for row in ranking.ranked]
        wanted = [draws[number - 1]["training.learning_rate"] for number in expected[ranking.arm]]
        assert [float(rate) for rate in rates] == wanted
        assert ranking.incomplete == 1


def test_the_report_says_mean_spread_and_what_they_are_worth(filed):
    report, files, printed = filed
    rate = sample(search().sweep.search)[2]["training.learning_rate"]
    deviation = statistics.stdev([1.1, 1.2])
    for text in (" ".join(each.replace("\\_", "_").split()) for each in (markdown(report), printed)):
        assert f"The best of 3 ranked samples of per_token is training.learning_rate {rate}" in text
        assert f"held-out loss 1.1500 nats over 2 seeds, standard deviation {deviation:.4f}" in text
        assert "Not ranked: 1 sample without all seeds (pruned, or not finished)" in text
        assert "too low by chance" in text
    table = markdown(report).split("## Best samples")[1].split("\n## ")[0]
    lines = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("|")][2:]
    assert [[each.strip().replace("\\", "") for each in line] for line in lines] == [
        [arm, str(rank)] for arm in ("per_token", "aggregated") for rank in (1, 2, 3)
    ]
    page = next(path for path in files if path.suffix == ".html").read_text()
    assert "Best samples" in page
    assert page == html(report)


def test_the_command_that_is_printed_runs_the_best_draw_of_each_arm_with_fresh_seeds(filed):
    _, files, printed = filed
    path = next(path for path in files if path.name == "best_samples.yaml")
    (line,) = [line for line in printed.splitlines() if line.startswith("Each arm's best sample, with fresh seeds: ")]
    assert f"tiny-onn ablate {path}" in line
    again, draws, before = read_experiment(path), sample(search().sweep.search), search()
    assert again.name == "searched-best"
    assert again.sweep.seeds == (4, 5, 6)
    assert again.sweep.search is None
    best = {"per_token": draws[2], "aggregated": draws[3]}
    assert {arm: dict(own) for arm, own in again.sweep.arm_settings.items()} == {
        "per_token": best["per_token"],
        "aggregated": {"training.clip_norm": 2.0, **best["aggregated"]},
    }
    for trial in trials_of(again):
        arm = trial.experiment.training.arm
        assert trial.experiment.training.learning_rate == best[arm]["training.learning_rate"]
        assert trial.experiment.model.density == best[arm]["model.density"]
        assert (trial.experiment.data, trial.experiment.workers) == (before.data, before.workers)


@pytest.mark.parametrize(
    ("destination", "address", "storage"),
    [
        (Destination(), None, None),
        (Destination("sqlite:////tmp/with space/mlflow.db", "other"), "10.0.0.5:6379", "s3://bucket/a folder"),
    ],
)
def test_the_printed_command_reruns_the_best_where_the_search_ran(filed, monkeypatch, destination, address, storage):
    """It is pasted: the command's own parser takes it, and its settings make the trials."""
    _, files, printed = filed
    (made,) = _rerun_lines(files, Path("/tmp/some where"), destination, address, storage)
    called = []

    def ablate(config, changes, output, **options):
        called.append((config, changes, output, options))
        return SimpleNamespace(exit_code=0)

    monkeypatch.setattr("pipeline.api.ablate", ablate)
    lines = [made] if address else [made, next(line for line in printed.splitlines() if "fresh seeds: " in line)]
    for line in lines:
        words = shlex.split(line.partition("fresh seeds: ")[2])
        assert words[0] == "tiny-onn"
        ran = CliRunner().invoke(main, words[1:])
        assert ran.exit_code == 0, ran.output
    config, changes, output, options = called[0]
    assert changes == {}
    assert output == Path("/tmp/some where")
    assert len(api.read(config).sweep.seeds) == 3
    asked = (options["tracking_uri"], options["mlflow_experiment"], options["address"], options["storage"])
    assert asked == (destination.uri, destination.experiment, address, storage)
    if not address:  # what `report` prints names the store's experiment, which is not the default one
        assert called[1][3]["mlflow_experiment"] == "tests"
        assert called[1][3]["tracking_uri"] is None


def test_of_a_grid_each_cell_has_its_own_best(tmp_path):
    searched = search({"training.warmup_steps": [1, 2]})
    report, files, _ = file(Output(tmp_path), searched, {"2": 0.5})
    assert [(ranking.arm, dict(ranking.cell)) for ranking in report.samples] == [
        (arm, {"training.warmup_steps": value}) for value in ("1", "2") for arm in LOSSES
    ]
    again = [read_experiment(path) for path in files if path.name.startswith("best_samples")]
    assert [each.name for each in again] == ["searched-best-1", "searched-best-2"]
    for value, each in zip((1, 2), again, strict=True):
        assert {trial.experiment.training.warmup_steps for trial in trials_of(each)} == {value}


def test_a_sweep_without_a_search_or_whose_settings_are_not_known_has_none(filed):
    report, _, _ = filed
    assert reruns((), search()) == {}
    from pipeline.reporting.artifacts import Artifacts, _settings
    from pipeline.reporting.report import report_of

    for sweep in (None, experiment("sample")):
        made = report_of(report.results, Artifacts(sweep=sweep))
        assert made.samples == ()
        assert "Best samples" not in markdown(made)
    for text in ("", "[1]", '{"name": 3}', '{"name": "x", "nosuch": 1}'):
        assert _settings(text) is None
