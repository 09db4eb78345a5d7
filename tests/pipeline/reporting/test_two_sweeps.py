"""Two sweeps side by side: paired by arm, setting and seed, from the store, by the command and the function."""

import io

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from pipeline import api
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.reporting.results import Results, Row, TrialResult
from pipeline.reporting.two_sweeps import compare_sweeps, frame, table, words
from pipeline.tracking.tracker import Tracker
from tests.pipeline import sweep_samples
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool


def results(sweep: str, losses: dict[tuple[str, str], dict[int, float]], varying: bool, **params: str) -> Results:
    rows = []
    for (arm, density), of_seeds in losses.items():
        settings = {"model.density": density, **params}

        def trial(seed: int, loss: float, arm: str = arm, settings: dict[str, str] = settings) -> TrialResult:
            return TrialResult(f"{sweep}{arm}{seed}", arm, seed, settings, {}, {"held_out/loss": loss}, {})

        cell = (("model.density", density),) if varying else ()
        rows.append(Row(arm, cell, {seed: trial(seed, loss) for seed, loss in of_seeds.items()}))
    return Results(sweep, rows, {"FINISHED": 1}, 0, ["model.density"] if varying else [])


def test_rows_are_paired_by_what_they_are_also_where_one_sweep_does_not_vary_it() -> None:
    first = results(
        "first",
        {("none", "0.05"): {0: 1.0, 1: 2.0}, ("none", "0.2"): {0: 0.5}, ("mine", "0.05"): {0: 1.0}},
        True,
        **{"training.steps": "200", "name": "first"},
    )
    second = results(
        "second", {("task_only", "0.05"): {1: 2.5, 2: 9.0}}, False, **{"training.steps": "600", "name": "second"}
    )
    both = compare_sweeps(first, second)
    ((place, differences),) = both.differences.items()
    assert place == ("task_only", (("model.density", "0.05"),))  # its name today
    assert differences["held_out_loss"].values == {1: 0.5}
    assert both.changed == [("training.steps", "200", "600")]
    alone = ("task_only, model.density 0.2", "mine, model.density 0.05")
    assert both.alone == [f"{each} is in first alone" for each in alone]
    assert "training.steps 200 -> 600" in " ".join(words(both))
    assert table(both).rows[0][-1].text == "+0.5000"
    (line,) = frame(both).to_dict("records")
    assert (line["held_out_loss_first"], line["held_out_loss_second"]) == (2.0, 2.5)
    assert line["held_out_loss_difference"] == 0.5


def test_what_is_the_same_is_reported_and_what_shares_nothing_too() -> None:
    one, other = (results(n, {("mine", "0.05"): {0: 1.25, 1: 1.5}}, False) for n in ("a", "b"))
    assert "the same in every seed, to the last digit" in " ".join(words(compare_sweeps(one, other)))
    apart = results("c", {("mine", "0.05"): {7: 1.0}}, False)
    assert "nothing to compare" in words(compare_sweeps(one, apart))[-1]
    elsewhere = results("d", {("others", "0.05"): {0: 1.0}}, False)
    assert "mine is in a alone." in words(compare_sweeps(one, elsewhere))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    output = Output(tmp_path_factory.mktemp("two"))
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    with pytest.MonkeyPatch.context() as patch:
        for name, loss in (("before", 1.0), ("after", 0.75)):
            patch.setitem(sweep_samples.LOSS, "per_token", (loss, loss + 0.2, loss + 0.1))
            sample = experiment(name, arms=("per_token", "aggregated"))
            for trial, folder in trials(output, sample):
                write_spool(trial, folder)
                delivery = tracker.start_trial(folder, trial, name, EXTRA)
                tracker.end_trial(delivery, "FINISHED")
    return output


def test_results_are_read_without_running_anything(output: Output) -> None:
    frame = api.results("before", output.root, mlflow_experiment="tests")
    assert frame["held_out_loss"].tolist() == pytest.approx([1.0, 1.2, 1.1, 0.9, 1.15, 1.0])
    api.report("before", output.root, mlflow_experiment="tests", console=Console(file=io.StringIO()), file=False)
    folder = output.sweep("before") / "report"
    for filed in (pd.read_csv(folder / "results.csv"), pd.read_parquet(folder / "results.parquet")):
        pd.testing.assert_frame_equal(filed, frame, check_dtype=False)
    with pytest.raises(UserError, match=r"holds no mlflow\.db"):
        api.results("before", output.root / "elsewhere")


def test_the_command_compares_two_sweeps(output: Output) -> None:
    options = ["--output", str(output.root), "--experiment", "tests"]
    done = CliRunner().invoke(main, ["report", "before", "after", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "after less before, paired by arm, setting and seed." in done.output
    assert "-0.2500" in done.output
    folder = output.sweep("after") / "report"
    text = (folder / "less-before.md").read_text()
    assert "| per_token | 3 | -0.2500 \\[-0.2500, -0.2500\\] |" in text
    assert "| aggregated | 3 | +0.0000 \\[" in text
    data = pd.read_csv(folder / "less-before.csv")
    assert data.loc[data["arm"] == "per_token", "held_out_loss_difference"].tolist() == pytest.approx([-0.25] * 3)
    for words_of, said in ((["a", "b", "c"], "found 3 names"), (["a", "b", "--no-file"], "are for one sweep")):
        refused = CliRunner().invoke(main, ["report", *words_of, *options])
        assert refused.exit_code == 2
        assert said in refused.output
