"""The functions behind the commands, called as from a notebook."""

import asyncio
import io
import json
import math
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import api
from pipeline.errors import UserError
from pipeline.interrupts import Interrupts
from pipeline.layout import Output
from pipeline.records.spool import Spool
from pipeline.reporting.frames import curves_frame, results_frame
from pipeline.reporting.results import read_results
from pipeline.run import Outcome
from pipeline.running import sweep
from pipeline.settings.changes import command_words
from pipeline.settings.trials import trials_of
from pipeline.tracking.tracker import Tracker
from tests.pipeline import sweep_samples
from tests.pipeline.samples import write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_changes_go_on_top_of_the_scale(config: Path) -> None:
    assert api.read(config).model.layers == 1
    read = api.read(config, {"training.steps": 4}, "deep")
    assert (read.model.layers, read.training.steps) == (3, 4)
    with pytest.raises(UserError, match=r"'training.stepps' is no setting \(did you mean 'training.steps'\?\)"):
        api.read(config, {"training.stepps": 4})
    assert api.read(config, {"model": {"layers": 2}}).model.hidden == 8


@pytest.mark.parametrize("changes", ["training.steps=4", ["training.steps=4"], {1: 4}])
def test_changes_that_are_no_settings_by_name_are_refused(config: Path, changes: Any) -> None:
    with pytest.raises(UserError, match=r"changes: found .*; expected settings by name"):
        api.read(config, changes)


def test_a_call_is_recorded_as_the_command_that_does_the_same() -> None:
    words = command_words("ablate", Path("a b.yaml"), {"training.steps": 4, "training.arm": "task_only"}, "gpu", "runs")
    assert shlex.join(words) == (
        "tiny-onn ablate 'a b.yaml' --scale gpu --set training.steps=4 --set training.arm=task_only --output runs"
    )


def test_what_is_refused_is_an_error_with_the_message_of_the_command(config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"workers\.cpus: a trial asks for 999 CPUs"):
        api.ablate(config, {"workers.cpus": 999.0}, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no mlflow\.db"):
        api.report("look", tmp_path / "out")


def test_results_are_a_row_for_each_trial(tmp_path: Path) -> None:
    output = Output(tmp_path)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    sample = sweep_samples.experiment("frames", arms=("per_token", "task_only"), grid={"model.gain": (0.5, 1.0)})
    for trial, folder in sweep_samples.trials(output, sample):
        sweep_samples.write_spool(trial, folder)
        delivery = tracker.start_trial(folder, trial, sample.name, sweep_samples.EXTRA)
        tracker.end_trial(delivery, "FAILED" if trial.key == "task_only-s2-gain_1.0" else "FINISHED")
    outcome = Outcome("frames", tmp_path, sweep.SweepOutcome(11, 12), trials_of(sample), None, "tests")
    frame = outcome.results()
    assert frame.equals(results_frame(read_results(output.tracking_uri, "tests", "frames")))
    assert len(frame) == 11
    assert list(frame.columns[:3]) == ["arm", "seed", "model.gain"]
    assert frame.groupby(["arm", "model.gain"])["held_out_loss"].mean()["per_token", 0.5] == pytest.approx(1.1)
    assert outcome.curves().loc[20, "task_only-s1-gain_0.5"] == 2.0
    assert outcome.curves().shape == (3, 12)
    with pytest.raises(UserError, match=r"no trial has measured it \(did you mean 'held_out/loss'\?\)"):
        outcome.curves("held_out/lost")


def test_a_curve_has_no_value_where_nothing_was_measured(tmp_path: Path) -> None:
    for name, steps in (("a", (1, 2)), ("b", (2, 3))):
        for step in steps:
            Spool(tmp_path / name).write(step, {"held_out/loss": float(step)})
    frame = curves_frame({"a": tmp_path / "a", "b": tmp_path / "b", "c": tmp_path / "c"}, "held_out/loss")
    assert list(frame.index) == [1, 2, 3]
    assert list(frame.columns) == ["a", "b"]
    assert math.isnan(frame.loc[3, "a"])
    assert frame.loc[2, "b"] == 2.0


def test_a_curve_of_an_older_run_is_found_by_either_name(tmp_path: Path) -> None:
    Spool(tmp_path / "old").write(1, {"eval/loss": 1.0})
    Spool(tmp_path / "new").write(1, {"held_out/loss": 2.0})
    spools = {"old": tmp_path / "old", "new": tmp_path / "new"}
    for name in ("eval/loss", "held_out/loss"):
        assert curves_frame(spools, name).loc[1].to_dict() == {"old": 1.0, "new": 2.0}


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    seen: list[object] = []

    def enter() -> None:
        with Interrupts() as interrupts:
            interrupts.hold()
            seen.append(interrupts.signal)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.slow
def test_a_sweep_from_a_thread_beside_a_running_loop(config: Path, tmp_path: Path) -> None:
    """As in a notebook: an event loop runs in the thread of the call, and that is not the main one."""
    screen, outcomes = io.StringIO(), []

    async def cell() -> None:
        console = Console(file=screen, width=120)
        for _ in range(2):  # the second time, all has been done
            outcomes.append(api.ablate(config, {"training.steps": 6}, tmp_path / "out", console=console))

    thread = threading.Thread(target=lambda: asyncio.run(cell()))
    thread.start()
    thread.join()
    first, second = outcomes
    assert first.exit_code == second.exit_code == 0
    frame = second.results()
    assert list(frame["arm"]) == ["per_token", "task_only"]
    assert frame["held_out_loss"].between(0, 10).all()
    assert list(first.curves().index) == [2, 4, 6]
    assert screen.getvalue().count("look: 2 trials to run") == 1
    made = api.report("look", tmp_path / "out", console=Console(file=screen, width=120))
    assert made.results.finished == 2
    result = json.loads(Output(tmp_path / "out").trial("look", "task_only-s0").result.read_text())
    assert result["metrics"]["held_out/loss"] == pytest.approx(frame["held_out_loss"][1])
