"""Which trials are pruned, from spools written by hand; and a sweep that prunes, on a real Ray cluster."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.records.spool
from pipeline.layout import Output, TrialFolder
from pipeline.measures import HELD_OUT_LOSS
from pipeline.records.pruned import pruned_at, settle, write_pruned
from pipeline.records.spool import Line, Spool, read_spool
from pipeline.records.state import State, state_of
from pipeline.reporting.files import markdown
from pipeline.reporting.report import make_report
from pipeline.running.pruning import Pruner, stratum_of
from pipeline.settings.config import Experiment
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import Trial, trials_of
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from pipeline.training.worker import run_training
from tests.pipeline import sweep_samples
from tests.pipeline.pruning_samples import PolledPruner
from tests.pipeline.samples import small_data, small_experiment

RATES = [0.1, 0.2, 0.3, 0.4]


def experiment(seeds: int = 1, name: str = "search", **asha: Any) -> Experiment:
    """Two arms x seeds x four learning rates, 40 steps; at steps 10 and 20 the best half goes on."""
    return validate_experiment(
        {
            "name": name,
            "data": {"max_tokens": 64},
            "model": {"hidden": 8, "layers": 1, "heads": 2},
            "training": {"steps": 40, "warmup_steps": 1, "batch_tokens": 64, "log_every": 5, "evaluate_every": 5},
            "sweep": {
                "arms": ["per_token", "task_only"],
                "seeds": list(range(seeds)),
                "search": {"samples": 4, "space": {"training.learning_rate": {"choice": RATES}}},
                "scheduler": {"asha": {"grace_steps": 10, "reduction_factor": 2, **asha}},
            },
        },
        "test",
    )


def placed(root: Path, searched: Experiment) -> list[tuple[Trial, TrialFolder]]:
    return [(trial, TrialFolder(root / trial.key)) for trial in trials_of(searched)]


def loss_of(trial: Trial) -> float:
    """The learning rate, and for the arm `none` a hundred more: every one of its losses is worse."""
    training = trial.experiment.training
    return training.learning_rate + (100 if training.arm == "task_only" else 0)


def run_by_hand(pairs: list[tuple[Trial, TrialFolder]], pruner: Pruner) -> dict[str, int]:
    """Every trial side by side, five steps at a time, the best rates first; returns where each was pruned."""
    order = sorted(pairs, key=lambda pair: pair[0].experiment.training.learning_rate)
    for step in range(5, 45, 5):
        for trial, folder in order:
            if folder.ended:
                continue
            Spool(folder.spool).write(step, {HELD_OUT_LOSS: loss_of(trial)})
            pruner.prune()
            if folder.prune.exists():
                write_pruned(folder, step)
            elif step == 40:
                folder.result.write_text("{}")
    return {trial.key: step for trial, folder in pairs if (step := pruned_at(folder)) is not None}


def rates_left(pairs: list[tuple[Trial, TrialFolder]]) -> dict[str, list[float]]:
    """The learning rates that came to the end, by arm."""
    left: dict[str, list[float]] = {"per_token": [], "task_only": []}
    for trial, folder in pairs:
        if folder.result.exists():
            left[trial.experiment.training.arm].append(trial.experiment.training.learning_rate)
    return left


def test_no_arm_is_pruned_by_comparison_with_another(tmp_path: Path) -> None:
    """`none` is worse by a hundred everywhere, and yet its own best setting comes to the end, as per_token's does."""
    searched = experiment()
    pairs = placed(tmp_path, searched)
    assert searched.sweep is not None
    pruned = run_by_hand(pairs, PolledPruner(searched.sweep, pairs))
    assert rates_left(pairs) == {"per_token": [0.1], "task_only": [0.1]}
    # The second to come to step 10 is behind the median of one, and so is each that follows: ASHA does not wait.
    assert sorted(pruned.values()) == [10] * 6


def test_across_arms_the_worse_arm_goes_if_that_is_asked_for(tmp_path: Path) -> None:
    searched = experiment(across_arms=True)
    pairs = placed(tmp_path, searched)
    assert searched.sweep is not None
    pruned = run_by_hand(pairs, PolledPruner(searched.sweep, pairs))
    assert rates_left(pairs) == {"per_token": [0.1], "task_only": []}
    assert len(pruned) == 7


def test_the_best_come_last_and_are_kept(tmp_path: Path) -> None:
    """From the worst to the best: each is better than all before it, so that none is pruned."""
    searched = experiment()
    pairs = placed(tmp_path, searched)
    assert searched.sweep is not None
    pruner = PolledPruner(searched.sweep, pairs)
    for trial, folder in sorted(pairs, key=lambda pair: -pair[0].experiment.training.learning_rate):
        Spool(folder.spool).write(10, {HELD_OUT_LOSS: loss_of(trial)})
        assert pruner.prune() == []


def test_what_competes_are_the_drawn_settings_of_an_arm_and_a_seed() -> None:
    searched = experiment(seeds=3)
    assert searched.sweep is not None
    strata = [stratum_of(trial, searched.sweep) for trial in trials_of(searched)]
    assert sorted(strata.count(each) for each in set(strata)) == [4] * 6
    across = experiment(seeds=3, across_arms=True)
    assert across.sweep is not None
    strata = [stratum_of(trial, across.sweep) for trial in trials_of(across)]
    assert sorted(strata.count(each) for each in set(strata)) == [8] * 3


def test_a_resumed_sweep_knows_what_was_measured_and_prunes_nothing_in_hindsight(tmp_path: Path) -> None:
    searched = experiment()
    assert searched.sweep is not None
    pairs = [pair for pair in placed(tmp_path, searched) if pair[0].experiment.training.arm == "task_only"]
    by_rate = {trial.experiment.training.learning_rate: folder for trial, folder in pairs}
    for rate in (0.2, 0.3):  # by an earlier command, which was interrupted before it compared them
        Spool(by_rate[rate].spool).write(10, {HELD_OUT_LOSS: rate})
    pruner = PolledPruner(searched.sweep, pairs)
    assert pruner.prune() == []
    Spool(by_rate[0.4].spool).write(10, {HELD_OUT_LOSS: 0.4})
    Spool(by_rate[0.1].spool).write(10, {HELD_OUT_LOSS: 0.1})
    assert len(pruner.prune()) == 1
    assert json.loads(by_rate[0.4].prune.read_text()) == {"step": 10, "metric": HELD_OUT_LOSS, "value": 0.4}
    assert [rate for rate, folder in by_rate.items() if folder.prune.exists()] == [0.4]


def test_a_loss_that_is_not_finite_is_behind_every_other(tmp_path: Path) -> None:
    searched = experiment()
    assert searched.sweep is not None
    pairs = [pair for pair in placed(tmp_path, searched) if pair[0].experiment.training.arm == "task_only"]
    pruner = PolledPruner(searched.sweep, pairs)
    for (_, folder), loss in zip(pairs, (5.0, math.nan, math.inf, 4.0), strict=True):
        Spool(folder.spool).write(10, {HELD_OUT_LOSS: loss})
        pruner.prune()
    assert [folder.prune.exists() for _, folder in pairs] == [False, True, True, False]


def test_the_last_step_prunes_no_trial_and_a_trial_without_the_metric_continues(tmp_path: Path) -> None:
    searched = experiment()
    assert searched.sweep is not None
    pairs = [pair for pair in placed(tmp_path, searched) if pair[0].experiment.training.arm == "task_only"]
    pruner = PolledPruner(searched.sweep, pairs)
    Spool(pairs[0][1].spool).write(10, {HELD_OUT_LOSS: 1.0})
    Spool(pairs[1][1].spool).write(40, {HELD_OUT_LOSS: 2.0})
    Spool(pairs[2][1].spool).write(10, {"train/task_loss": 2.0})
    assert pruner.prune() == []


def test_a_trial_that_was_asked_to_stop_stops_when_its_sweep_is_resumed(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    settle(folder)
    assert not folder.ended
    Spool(folder.spool).write(10, {HELD_OUT_LOSS: 1.0})
    Spool(folder.spool).write(15, {HELD_OUT_LOSS: 1.0})
    folder.prune.write_text("{}")
    settle(folder)
    assert pruned_at(folder) == 15
    assert state_of(folder, "a command") is State.PRUNED
    folder.result.write_text("{}")  # its workers were quicker than the word
    assert state_of(folder, "a command") is State.FINISHED


def test_workers_that_are_asked_to_stop_stop_at_the_next_logged_step(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "trial")
    folder.root.mkdir()

    def tell(step: int) -> None:
        if step == 4:
            folder.prune.write_text("{}")

    data = small_data(tmp_path / "data").folder
    run_training(small_experiment(log_every=1), folder, data, torch.device("cpu"), tell)
    assert pruned_at(folder) == 4
    assert not folder.result.exists()
    assert [line.step for line in read_spool(folder.spool)[0]] == [1, 2, 3, 4]


def test_a_pruned_run_is_finished_and_tagged_and_in_no_mean(tmp_path: Path) -> None:
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    sample = sweep_samples.experiment(
        "pruned", arms=("per_token", "task_only"), seeds=(0,), grid={"model.gain": (0.5, 1.0)}
    )
    for trial, folder in sweep_samples.trials(output, sample):
        early = trial.key == "task_only-s0-gain_0.5"
        sweep_samples.write_spool(trial, folder, (0, 10) if early else (0, 10, 20))
        if early:
            write_pruned(folder, 10)
        delivery = tracker.start_trial(folder, trial, "pruned", sweep_samples.EXTRA)
        tracker.end_trial(delivery, "FINISHED")
    report = make_report(output.tracking_uri, "tests", "pruned")
    assert report.results.varying == ["model.gain"]
    assert [(row.arm, row.cell[0][1]) for row in report.results.rows] == [
        ("per_token", "0.5"),
        ("per_token", "1.0"),
        ("task_only", "1.0"),
    ]
    text = markdown(report)
    assert "3 of 4 trials finished (1 PRUNED)." in text
    assert "1 of 4 trials were pruned" in text
    assert "did not finish" not in text
    client = open_store(output.tracking_uri)
    recorded = client.get_experiment_by_name("tests")
    assert recorded is not None
    (run,) = client.search_runs([recorded.experiment_id], "tags.pruned_at_step = '10'")
    assert (run.info.status, run.data.tags["trial"]) == ("FINISHED", "task_only-s0-gain_0.5")


@pytest.mark.slow
def test_a_sweep_prunes_on_ray_and_does_not_repeat_what_was_pruned(tmp_path: Path) -> None:
    from tests.pipeline.running.test_sweep import sweep
    from tests.pipeline.toy_training import RecordingTracker

    searched = experiment(metric="train/task_loss").model_copy(
        update={"description": json.dumps({"sleep_s": 0.1, "losses": {"per_token": 1.0, "task_only": 100.0}})}
    )
    small = searched.workers.model_copy(update={"cpus": 0.25, "timeout_s": 30})
    trials = tuple(
        trial.model_copy(update={"experiment": trial.experiment.model_copy(update={"workers": small})})
        for trial in trials_of(searched)
    )
    tracker = RecordingTracker()
    outcome = sweep(tmp_path, searched, tracker, trials=trials)
    places = [(trial, Output(tmp_path).trial("search", trial.key)) for trial in trials]
    left = rates_left(places)
    assert outcome.exit_code == 0, outcome
    assert outcome.pruned >= 2
    assert outcome.finished + outcome.pruned == outcome.total == 8
    assert min(left["per_token"]) == min(left["task_only"]) == 0.1
    assert set(tracker.ended().values()) == {"FINISHED"}
    for _, folder in places:
        step = pruned_at(folder)
        assert folder.result.exists() == (step is None)
        assert step is None or 10 <= step < 40
    again = sweep(tmp_path, searched, RecordingTracker(), trials=trials, resume=True)
    assert (again.finished, again.pruned, again.exit_code) == (outcome.finished, outcome.pruned, 0)


def test_each_line_is_read_once_for_the_table_and_the_pruner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before there was a pruner counts too; a line after damage never does."""
    searched = experiment()
    assert searched.sweep is not None
    pairs = [pair for pair in placed(tmp_path, searched) if pair[0].experiment.training.arm == "task_only"][:2]
    (_, first), (_, second) = pairs
    Spool(first.spool).write(10, {HELD_OUT_LOSS: 1.0})
    pruner = PolledPruner(searched.sweep, pairs)
    opened = []
    read = pipeline.records.spool.spool_lines

    def noting(path: Path, offset: int = 0) -> Iterator[Line]:
        opened.append((path, offset))
        return read(path, offset)

    monkeypatch.setattr(pipeline.records.spool, "spool_lines", noting)
    assert pruner.prune() == []
    assert opened == [(first.spool, first.spool.stat().st_size), (second.spool, 0)]
    Spool(second.spool).write(10, {HELD_OUT_LOSS: 2.0})
    assert pruner.prune() == [pairs[1][0].key]
    with first.spool.open("a") as file:
        file.write("damaged\n")
    opened.clear()
    assert pruner.prune() == []
    assert pruner.prune() == []
    assert [path for path, _ in opened].count(first.spool) == 1
