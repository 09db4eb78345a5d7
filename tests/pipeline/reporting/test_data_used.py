"""What a report says of its data, from runs in a real store."""

import json
from pathlib import Path

import pytest

from pipeline.data.manifest import Leak
from pipeline.data.shards import prepare
from pipeline.layout import Output
from pipeline.reporting.data_used import data_words, parse_data
from pipeline.reporting.files import write_report
from pipeline.reporting.findings import limits
from pipeline.reporting.report import Report, make_report
from pipeline.reporting.results import Results, Row, TrialResult
from pipeline.running.sweep import data_tags
from pipeline.settings.config import DataConfig
from pipeline.tasks import Examples, Measured
from pipeline.tracking.tracker import Tracker
from tests.pipeline.arc_samples import random_task, write_tasks
from tests.pipeline.sweep_samples import experiment, trials, write_spool

SCORES = {"held_out/pairs_exact": 0.25, "held_out/tasks_exact": 0.125, "held_out/pass_at_2": 0.5}
OF_EVALUATION = {"evaluation/loss": 2.5, "evaluation/pass_at_2": 0.75}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data_used")


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    """Of trials on a folder with 20 tasks, one of them too long, a bad file, and of three evaluation tasks one leak
    and one that is too long."""
    tasks = [random_task(f"t{i:02d}", i) for i in range(20)]
    source = write_tasks(root / "tasks", [*tasks, random_task("long", 50, side=25)])
    write_tasks(source / "evaluation", [random_task("e", 60), random_task("huge", 51, side=25)])
    (source / "bad.json").write_text("[")
    prepared = prepare(DataConfig(dataset="folder", folder=str(source), max_tokens=200), root / "data")
    leaks = (Leak(split="evaluation", task="e", train_task="t03"),)
    prepared = type(prepared)(prepared.folder, prepared.manifest.model_copy(update={"leakage": leaks}))
    output, sample = Output(root / "out"), experiment("used", arms=("per_token",), seeds=(0, 1))
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    for trial, folder in trials(output, sample):
        write_spool(trial, folder, steps=(0, 10))
        line = {"step": 20, "time_ms": 1, "metrics": {"held_out/loss": 1.0, **SCORES, **OF_EVALUATION}}
        with folder.spool.open("a") as file:
            file.write(json.dumps(line) + "\n")
        delivery = tracker.start_trial(folder, trial, sample.name, data_tags(prepared))
        tracker.end_trial(delivery, "FINISHED")
    tracker.close("FINISHED")
    return make_report(output.tracking_uri, "tests", sample.name)


def test_the_report_says_what_was_scored_left_out_refused_and_leaks(report: Report, root: Path) -> None:
    source = root / "tasks"
    (text,) = [paragraph for paragraph in report.findings if paragraph.startswith("Data: ")]
    for said in (
        f"Data: folder in {source}; 16 tasks trained on (1 too long to train on or hold out); 4 held-out tasks scored; "
        "1 evaluation tasks scored, 1 too long to score.",
        "1 leak: evaluation task e is related to t03.",
        f"1 file refused: {source}/bad.json: not valid JSON",
        "Of the held-out tasks that were decoded, by arm: per_token: 25.0 % pairs exactly right, 12.5 % tasks exactly "
        "right, 50.0 % right in two attempts (pass_at_2).",
        "Of the evaluation tasks that were decoded, by arm: per_token: 75.0 % right in two attempts (pass_at_2).",
    ):
        assert said in text


def test_results_json_holds_the_data_and_all_scores(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    (data,) = written["data"]
    assert data["name"] == "folder"
    assert data["leaks"] == {"number": 1, "first": ["evaluation task e is related to t03"]}
    assert data["refused"]["number"] == 1
    assert data["evaluation"]["too_long_tasks"] == 1
    assert data["prepared"].startswith("/")
    scores = written["rows"][0]["scores"]
    assert scores == {
        name: {"0": value, "1": value} for name, value in {**SCORES, **OF_EVALUATION, "held_out/loss": 1.0}.items()
    }
    assert "1 evaluation tasks scored, 1 too long to score" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "profile",
    [
        "",
        "no JSON",
        "[1]",
        '{"train": 8}',
        '{"held_out": {"tasks": "many"}}',
        "[" * 5000,
        '{"held_out": {"tasks": true}}',
    ],
)
def test_what_says_nothing_of_itself_is_passed_over(profile: str) -> None:
    results = Results("s", [], {}, 0, [], data=(("arc-agi-2", profile),))
    assert data_words(results) == []
    assert parse_data("arc-agi-2", profile)["name"] == "arc-agi-2"


def test_results_on_tasks_for_selection_say_so() -> None:
    told = {"held_out": {"tasks": 3}, "train": {"tasks": 8}, "held_out_for": "selection"}
    (text,) = data_words(Results("s", [], {}, 0, [], data=(("d", json.dumps(told)),)))
    assert text.endswith(
        "3 held-out tasks scored. The held-out tasks are there to choose settings by; those of the "
        "test are set aside, unused."
    )


def test_what_a_store_says_cannot_break_the_report() -> None:
    told = {
        "held_out": {"tasks": 3, "too_long_tasks": None},
        "leaks": {"number": 2, "first": [1, "x\x1b[31m"]},
        "refused": 3,
    }
    (text,) = data_words(Results("s", [], {}, 0, [], data=(("d", json.dumps(told)),)))
    assert text == "Data: d; None tasks trained on; 3 held-out tasks scored. 2 leaks: x [31m, ...."


def test_scores_that_are_all_zero_are_reported_in_few_words() -> None:
    row = Row(
        "a", (), {0: TrialResult("r", "a", 0, {}, {}, {"held_out/pairs_exact": 0.0, "held_out/pass_at_2": 0.0}, {})}
    )
    words = "Of the held-out tasks that were decoded no arm got a single pair right, in one attempt or two."
    assert data_words(Results("s", [row], {}, 0, [])) == [words]


def test_what_a_task_of_ones_own_measures_of_its_examples_is_worded_as_it_says() -> None:
    examples = Examples(
        lambda *given: [],
        measured=(Measured("length", "tokens", unit="", scale=1.0, digits=2), Measured("right", "rightly ended")),
        all_zero="nothing was ended",
        not_drawn="how texts end",
    )
    told = {"held_out": {"tasks": 3}, "train": {"tasks": 8}, "item": "text", "examples": examples.facts()}

    def results(**metrics: float) -> Results:
        prefixed = {f"held_out/{name}": value for name, value in metrics.items()}
        row = Row("a", (), {0: TrialResult("r", "a", 0, {"data.task": "my:TASK"}, {}, prefixed, {})})
        return Results("s", [row], {}, 0, [], data=(("d", json.dumps(told)),))

    assert data_words(results(length=7.125, right=0.25))[0].endswith(
        "Of the held-out texts that were decoded, by arm: a: 7.12 tokens, 25.0 % rightly ended."
    )
    assert data_words(results(length=0.0, right=0.0))[0].endswith("texts that were decoded nothing was ended.")
    assert "other data, how texts end." in limits(results())
    assert "nor how" not in limits(results(right=0.0))


@pytest.mark.parametrize(
    "told", [3, {"measured": 7}, {"measured": [3, {"name": "x"}, {"name": "x", "title": 1}], "all_zero": [1]}]
)
def test_what_somebody_else_wrote_of_examples_is_passed_over(told: object) -> None:
    row = Row("a", (), {0: TrialResult("r", "a", 0, {"data.task": "my:TASK"}, {}, {"held_out/x": 1.0}, {})})
    results = Results("s", [row], {}, 0, [], data=(("d", json.dumps({"examples": told})),))
    assert data_words(results) == []
    assert "nor" not in limits(results).split("Step times")[0]


def test_tasks_in_sequence_are_reported_with_their_number() -> None:
    def trial(order: str, **metrics: float) -> TrialResult:
        return TrialResult(f"r-{order}", "a", 0, {"data.order": order}, {}, metrics, {})

    def words(*trials: TrialResult) -> list[str]:
        rows = [Row("a", (("data.order", each.params["data.order"]),), {0: each}) for each in trials]
        return data_words(Results("s", rows, {}, 0, []))

    sequence, mixed = trial("sequential", **{"train/task": 52.0}), trial("mixed")
    assert words(mixed) == []
    assert words(sequence)[0].startswith("Trained on one after the other of 52 tasks, in the same order")
    assert words(mixed, sequence)[0].startswith("With data.order = sequential trained on one after")
