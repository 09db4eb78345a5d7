"""What the report and MLflow's table show of a task that is not ARC."""

import json
from typing import Any

from pipeline.reporting.artifacts import Artifacts, _texts
from pipeline.reporting.columns import columns_of, score_columns
from pipeline.reporting.data_used import data_words
from pipeline.reporting.findings import limits
from pipeline.reporting.page import html
from pipeline.reporting.report import Report
from pipeline.reporting.results import Results, Row, TrialResult
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import every_trial
from pipeline.tasks.text import TEXT
from pipeline.tracking.describe import describe_trial
from pipeline.tracking.leaderboard import leaderboard_metrics

COUNTS = {"tasks": 3, "rows": 9, "tokens": 90, "labelled_tokens": 81, "too_long_tasks": 0, "too_long_views": 0}


def results(scores: Any) -> Results:
    def trial(arm: str, bits: float) -> TrialResult:
        metrics = {"held_out/loss": bits * 0.69, "held_out/bits_per_byte": bits, "held_out/density": 0.1}
        return TrialResult(f"run-{arm}", arm, 0, {"data.task": "text"}, {}, metrics, {})

    facts = {**dict.fromkeys(("train", "held_out", "evaluation"), COUNTS), "item": "document", "scores": scores}
    rows = [Row(arm, (), {0: trial(arm, bits)}) for arm, bits in (("per_token", 2.5), ("top_k", 2.25))]
    return Results("x", rows, {"FINISHED": 2}, 0, [], data=(("text", json.dumps(facts)),))


def test_a_tasks_scores_are_columns_and_its_texts_are_shown_as_text() -> None:
    read = results([score.facts() for score in TEXT.scores])
    example = {"task_id": "topic", "pair": 3, "given": "The <b>if", "predicted": "<script>\x1b[2J", "target": "stmt"}
    filed = Artifacts(texts={"run-per_token": _texts(json.dumps([example, {**example, "pair": "x"}, 7]))})
    assert [len(texts) for texts in filed.texts.values()] == [1]
    page = html(Report(read, columns_of(read), {}, {}, [], filed))
    assert "bits per byte (bits)" in page
    assert "2.2500" in page
    assert "&lt;script&gt;\\x1b[2J" in page
    assert "The &lt;b&gt;if" in page
    assert "<script>" not in page
    assert "topic, part 3" in page


def test_words_name_what_the_rows_are_of_and_no_grids() -> None:
    read = results([])
    assert data_words(read)[0].startswith("Data: text; 3 documents trained on; 3 held-out documents scored;")
    assert "the data text" in limits(read)
    assert "whole tasks are solved" not in limits(read)


def test_settings_that_are_of_arc_alone_are_no_params_of_another_task() -> None:
    def params(**data: str) -> set[str]:
        experiment = validate_experiment({"name": "x", "data": data}, "test")
        return set(describe_trial(every_trial(experiment)[0], "x", {}).params)

    of_arc = {"data.dataset", "data.dihedral_views", "data.colour_permutations", "training.vote_views"}
    assert params() - params(task="text") == of_arc


def test_facts_that_somebody_else_wrote_make_no_column() -> None:
    good = TEXT.scores[0].facts()
    bad = [3, {}, {**good, "digits": 99}, {**good, "scale": "1"}, {**good, "name": 1}]
    assert [column.key for column in score_columns(results([*bad, good, good]))] == ["bits_per_byte"]
    assert score_columns(results("x")) == []


def test_the_leaderboard_has_a_column_for_each_score_and_none_for_those_that_the_report_tells() -> None:
    names = {"held_out/bits_per_byte", "held_out/loss", "held_out/pairs_exact", "evaluation/bits_per_byte"}
    assert set(leaderboard_metrics([0], names)) - set(leaderboard_metrics([0])) == {"held_out/bits_per_byte"}
