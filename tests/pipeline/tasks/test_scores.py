"""A task's own score as what a study concludes from, a scheduler prunes by and draws are ranked by."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.data.contract import BUILT_IN, find_task
from pipeline.errors import UserError
from pipeline.layout import Output, TrialFolder
from pipeline.planning.preflight import check_metrics
from pipeline.records.pruned import write_pruned
from pipeline.records.spool import Spool
from pipeline.reporting.files import markdown
from pipeline.run import file_report
from pipeline.settings.built_in_tasks import BUILT_IN_TASKS
from pipeline.settings.config import Experiment
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import trials_of
from pipeline.settings.wrong_settings import setting_names
from pipeline.tracking.tracker import Tracker
from tests.pipeline.pruning_samples import PolledPruner

OWN = "tests.pipeline.tasks.own"
RATES = [0.1, 0.2, 0.3, 0.4]


def experiment(
    task: str,
    primary: str = "held_out/loss",
    metric: str = "held_out/loss",
    order: str = "mixed",
    grid: Any = None,
    rates: Any = RATES,
) -> Experiment:
    sweep = {
        "arms": ["per_token", "top_k"],
        "seeds": [0, 1],
        "grid": grid or {},
        "search": {"samples": len(rates), "space": {"training.learning_rate": {"choice": rates}}},
        "scheduler": {"asha": {"grace_steps": 10, "reduction_factor": 2, "metric": metric}},
    }
    study = {
        "question": "?",
        "intervention": "?",
        "expectation": "?",
        "primary_metric": primary,
        "primary_arm": "top_k",
    }
    values = {
        "name": "scored",
        "data": {"task": task, "max_tokens": 64, "order": order},
        "model": {"hidden": 8, "layers": 1, "heads": 2, "density": 0.5},
        "training": {"steps": 40, "warmup_steps": 1, "batch_tokens": 64, "log_every": 5, "evaluate_every": 5},
        "sweep": sweep,
        "study": {**study, "primary_cell": {field: each[-1] for field, each in (grid or {}).items()}},
    }
    return validate_experiment(values, "test")


def test_what_settings_know_of_the_built_in_tasks_is_what_the_tasks_declare() -> None:
    assert BUILT_IN_TASKS.keys() == BUILT_IN.keys()
    for name, its in BUILT_IN_TASKS.items():
        assert its.scores == tuple(f"held_out/{score.name}" for score in find_task(name).scores)
        assert set(its.settings) <= set(setting_names(Experiment))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"task": "arc", "primary": "held_out/bits_per_byte"}, "study.primary_metric: found 'held_out/bits_per_byte'.*"
         "which data.task: arc does not measure; it has no scores of its own"),
        ({"task": "text", "metric": "held_out/bits_per_bite"}, r"asha.metric: found 'held_out/bits_per_bite' \(did you "
         "mean 'held_out/bits_per_byte'"),
        ({"task": "text", "metric": "evaluation/bits_per_byte"}, "metric: found 'evaluation/bits_per_byte'.*or held"),
        ({"task": "text", "metric": "held_out/density"}, "metric: found 'held_out/density'.*expected one of"),
        ({"task": "text", "primary": "bits_per_byte"}, r"primary_metric: found 'bits_per_byte'"),
        ({"task": "text", "primary": "forgetting/increase"}, "is only measured with data.order: sequential"),
    ],
)  # fmt: skip
def test_what_is_not_measured_is_refused_with_the_settings(words: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiment(**words)  # type: ignore[arg-type]


def test_what_is_measured_is_taken() -> None:
    experiment("text", "held_out/bits_per_byte", "held_out/bits_per_byte")
    experiment("text", "forgetting/increase", order="sequential")
    experiment("text", "forgetting/increase", grid={"data.order": ["mixed", "sequential"]})
    for name in ("third", "hits", "nothing"):
        experiment(f"{OWN}:TASK", f"held_out/{name}", f"held_out/{name}")  # which of them there is, the task says


@pytest.mark.parametrize(
    ("task", "primary", "metric", "message"),
    [
        (
            "TASK",
            "held_out/hits",
            "held_out/loss",
            r"study.primary_metric: found 'held_out/hits'.*scores: held_out/third",
        ),
        ("SCORED", "held_out/plain", "held_out/plain", r"asha.metric: found 'held_out/plain'.*which end is better"),
        ("SCORED", "held_out/plain", "held_out/third", r"asha.metric: found 'held_out/third'.*does not measure"),
    ],
)
def test_of_a_task_of_ones_own_it_is_refused_before_anything_starts(
    task: str, primary: str, metric: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_metrics(experiment(f"{OWN}:{task}", primary, metric))
    check_metrics(experiment(f"{OWN}:SCORED", "held_out/plain", "held_out/hits"))


@pytest.mark.parametrize(
    ("task", "metric", "left"),
    [
        (f"{OWN}:SCORED", "held_out/hits", 0.4),
        (f"{OWN}:TASK", "held_out/third", 0.1),
        ("text", "held_out/bits_per_byte", 0.1),
    ],
)
def test_a_scheduler_prunes_by_it_in_its_direction(tmp_path: Path, task: str, metric: str, left: float) -> None:
    """The score is the learning rate: of four draws the best comes to the end, where it is seen first."""
    searched = experiment(task, metric=metric)
    assert searched.sweep is not None
    pairs = [(trial, TrialFolder(tmp_path / trial.key)) for trial in trials_of(searched)]
    pruner = PolledPruner(searched.sweep, pairs)
    order = sorted(pairs, key=lambda pair: abs(pair[0].experiment.training.learning_rate - left))
    for step in range(5, 40, 5):
        for trial, folder in order:
            if not folder.ended:
                Spool(folder.spool).write(step, {metric: trial.experiment.training.learning_rate})
                pruner.prune()
                if folder.prune.exists():
                    write_pruned(folder, step)
    on = [trial.experiment.training.learning_rate for trial, folder in pairs if not folder.ended]
    assert on == [left] * 4  # of two arms and two seeds


def test_a_study_concludes_from_it_and_draws_are_ranked_by_it(tmp_path: Path) -> None:
    searched, output = experiment(f"{OWN}:SCORED", "held_out/hits", rates=[0.1, 0.4]), Output(tmp_path)
    assert searched.sweep is not None
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    tracker.start_summary(output.sweep(searched.name), searched)
    facts = {"item": "row", "scores": [score.facts() for score in find_task(f"{OWN}:SCORED").scores]}
    extra = {"data_name": "own", "data_hash": "0123456789abcdef", "data_counts": json.dumps(facts)}
    for trial in trials_of(searched):
        training, folder = trial.experiment.training, output.trial(searched.name, trial.key)
        hits = training.learning_rate + 0.05 * (training.arm == "top_k") + 0.01 * training.seed
        Spool(folder.spool).write(40, {"held_out/loss": hits, "held_out/density": 0.25, "held_out/hits": hits})
        delivery = tracker.start_trial(folder, trial, searched.name, extra)
        tracker.end_trial(delivery, "FINISHED")
    console = Console(file=io.StringIO(), width=200)
    report, files = file_report(output.tracking_uri, "tests", searched.name, output.root, console)
    for ranking in report.samples:
        rates = [float(ranking.settings(row)["training.learning_rate"]) for row in ranking.ranked]
        assert rates == [0.4, 0.1]
    text = " ".join(markdown(report).replace("\\_", "_").split())
    assert "is training.learning_rate 0.4: hits 45.5 % over 2 seeds, standard deviation 0.7" in text
    assert "The highest of several means is too high by chance" in text
    page = next(path for path in files if path.suffix == ".html").read_text()
    assert "samples of each arm with the highest hits" in page
    assert "hits (%)" in page
    table = next(path for path in files if path.name == "results.csv").read_text()
    assert "hits" in table.splitlines()[0].split(",")


def test_the_primary_comparison_is_of_the_score(tmp_path: Path) -> None:
    whole = experiment(f"{OWN}:SCORED", "held_out/hits")
    assert whole.sweep is not None
    sweep = whole.sweep.model_copy(update={"search": None, "scheduler": None, "seeds": (0, 1, 2)})
    plain, output = whole.model_copy(update={"sweep": sweep}), Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    tracker.start_summary(output.sweep(plain.name), plain)
    facts = {"item": "row", "scores": [score.facts() for score in find_task(f"{OWN}:SCORED").scores]}
    extra = {"data_name": "own", "data_hash": "0123456789abcdef", "data_counts": json.dumps(facts)}
    for trial in trials_of(plain):
        training, folder = trial.experiment.training, output.trial(plain.name, trial.key)
        hits = 0.5 + 0.1 * (training.arm == "top_k") + 0.01 * training.seed
        Spool(folder.spool).write(40, {"held_out/loss": 1.0, "held_out/density": 0.25, "held_out/hits": hits})
        delivery = tracker.start_trial(folder, trial, plain.name, extra)
        tracker.end_trial(delivery, "FINISHED")
    report, _ = file_report(
        output.tracking_uri, "tests", plain.name, output.root, Console(file=io.StringIO(), width=200)
    )
    assert report.primary is not None
    assert report.primary.name == "held_out/hits of top_k against per_token"
    place, key = report.primary.key or (-1, "")
    assert report.results.rows[place].arm == "top_k"
    assert report.differences[place][key].mean == pytest.approx(0.1)
    assert report.comparisons[place, key].primary
    assert "+10.0" in markdown(report)
