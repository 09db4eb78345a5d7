"""What a command says before it starts, against numbers worked by hand."""

from pathlib import Path

import pytest

from pipeline.planning import opening
from pipeline.planning.opening import opening_words, rough_seconds
from pipeline.planning.preflight import parameters_of
from pipeline.running.cluster import Resources
from pipeline.settings.experiment_file import read_experiment
from pipeline.settings.trials import trials_of

ROOT = Path(__file__).parents[3]
# The arms of the run that took 8 min 10 s.
FILED = ("per_token", "aggregated", "metric_only", "opening", "top_k", "switch", "task_only", "dense")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "local_resources", lambda: Resources(2.0))


def test_what_how_long_and_where() -> None:
    experiment = read_experiment(ROOT / "experiments" / "ablation.yaml")
    trials = [each for each in trials_of(experiment, "t") if each.experiment.training.arm in FILED]
    what, question, time, where = opening_words(experiment, trials[:-3], 3, Path("runs"), None)
    assert what == f"What:     21 trials, 8 arms x 3 seeds ({', '.join(FILED)}); 3 have ended before"
    assert question.startswith("Question: At the density that per_token reaches")
    assert time.startswith("How long: roughly 8 min, 2 at once, if little else runs on this machine; ")
    assert where == "Result:   runs/sweeps/ablation/report/report.html"
    assert opening_words(experiment, [], 24, Path("runs"), None) == []


def test_the_filed_ablation_took_the_time_that_is_shown() -> None:
    """8 min 10 s on two idle cores; and one trial by hand."""
    every = trials_of(read_experiment(ROOT / "experiments" / "ablation.yaml"), "t")
    trials = [each for each in every if each.experiment.training.arm in FILED]
    assert parameters_of(trials[0].experiment) == 205_200
    one = 6 + 1.3 * 200 * 0.7 * 1536 * (1.04e-4 + 7.8e-11 * 205_200)
    assert rough_seconds(trials[:1], 1) == pytest.approx(25 + one, rel=1e-12)
    assert rough_seconds(trials, 2) == pytest.approx(490, rel=0.1)


def test_no_time_is_estimated_for_another_cluster() -> None:
    experiment = read_experiment(ROOT / "experiments" / "smoke.yaml")
    trials = trials_of(experiment, "t")
    lines = opening_words(experiment, trials, 0, Path("/x"), "10.0.0.1:6379")
    assert lines[0] == "What:     4 trials, 2 arms x 2 seeds (per_token, aggregated)"
    assert lines[1].startswith("How long: not known beforehand")
    assert lines[2] == "Result:   /x/sweeps/smoke/report/report.html"
