"""What the user sees, from spools written by hand."""

import datetime
import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import pipeline.running.live
from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.measures import ACTIVATION_RATE, TASK_LOSS, by_layer
from pipeline.records.spool import Spool
from pipeline.records.state import State
from pipeline.running.live import LiveView, clock, duration
from pipeline.running.notebook import as_html
from pipeline.running.progress import TrialProgress, all_left
from pipeline.settings.config import ModelConfig, SweepConfig, TrainingConfig
from pipeline.settings.trials import trials_of
from tests.pipeline.toy_training import toy_experiment


def some_trials(folder: Path, seeds: int = 1) -> list[TrialProgress]:
    """Three arms x seeds, of 100 steps and six layers."""
    experiment = toy_experiment(
        training=TrainingConfig(steps=100, warmup_steps=1, batch_tokens=64),
        model=ModelConfig(hidden=8, layers=6, heads=2),
        sweep=SweepConfig(arms=("per_token", "aggregated", "task_only"), seeds=tuple(range(seeds))),
    )
    return [TrialProgress(trial, TrialFolder(folder / trial.key)) for trial in trials_of(experiment)]


def report(trial: TrialProgress, step: int, loss: float) -> None:
    """Writes a line with loss and the activation of layers 0 to 5: 10 %, 20 %, ... 60 %."""
    rates = {by_layer(ACTIVATION_RATE, layer): (layer + 1) / 10 for layer in range(6)}
    Spool(trial.folder.spool).write(step, {TASK_LOSS: loss, "speed/tokens_per_second": 6120.4, **rates})


def shown(trials: list[TrialProgress], height: int = 40) -> str:
    """The table as text."""
    console = Console(file=io.StringIO(), width=130, height=height, force_terminal=True, color_system=None)
    console.print(LiveView("toy", trials, console, at_once=2).render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_spool_and_the_state_make_the_row(tmp_path: Path) -> None:
    first, second, third = trials = some_trials(tmp_path)
    first.read(State.RUNNING, now=1000.0)
    report(first, 20, 2.5)
    first.read(State.RUNNING, now=1010.0)
    report(first, 40, 1.25)
    assert not first.read(State.RUNNING, now=1020.0)
    assert (first.step, first.loss) == (40, 1.25)
    assert first.activation == {0: 0.1, 3: 0.4, 5: 0.6}  # first, middle and last of six layers
    assert first.seconds_left(now=1020.0) == 30.0  # 20 steps in 10 s, 60 to go
    assert second.read(State.FAILED, now=1020.0)
    row = next(line for line in shown(trials).splitlines() if "per_token-s0" in line)
    for part in ("running", "40/100", "1.250", "10.0 %", "40.0 %", "60.0 %"):
        assert part in row
    assert "toy: 0 of 3 done, 1 running, 1 waiting, 1 failed" in shown(trials)
    assert math.isnan(third.loss)


def test_a_damaged_spool_ends_no_view(tmp_path: Path) -> None:
    first = some_trials(tmp_path)[0]
    report(first, 20, 2.5)
    with first.folder.spool.open("a") as file:
        file.write("no line\n")
    report_again = '{"step": 40, "time_ms": 1, "metrics": {"train/task_loss": 1.0}}\n'
    with first.folder.spool.open("a") as file:
        file.write(report_again)
    for _ in range(2):
        first.read(State.RUNNING)
        assert (first.step, first.loss) == (20, 2.5)


def test_time_left_for_all_is_the_work_left_over_the_trials_at_once(tmp_path: Path) -> None:
    trials = some_trials(tmp_path, seeds=2)
    assert all_left(trials, 2, now=0.0) is None
    trials[0].read(State.RUNNING, now=0.0)
    trials[0].read(State.FINISHED, now=60.0)
    assert all_left(trials, 2, now=60.0) == 5 * 60 / 2
    trials[1].read(State.RUNNING, now=60.0)
    assert all_left(trials, 2, now=80.0) == (40 + 4 * 60) / 2  # it has not reported yet, but 20 s of it are over
    assert all_left(trials, 2, now=200.0) == 4 * 60 / 2
    for trial in trials[1:]:
        trial.read(State.FINISHED, now=60.0)
    assert all_left(trials, 2, now=60.0) == 0.0


def test_a_resumed_trial_is_timed_from_where_it_goes_on(tmp_path: Path) -> None:
    trial = some_trials(tmp_path)[0]
    report(trial, 80, 1.0)
    trial.read(State.WAITING, now=0.0)
    assert trial.step == 80
    trial.read(State.RUNNING, now=100.0)
    report(trial, 90, 1.0)
    trial.read(State.RUNNING, now=105.0)
    assert trial.seconds_left(now=105.0) is None  # one report gives no pace yet
    report(trial, 95, 1.0)
    trial.read(State.RUNNING, now=110.0)
    assert trial.seconds_left(now=110.0) == 5.0


def test_more_trials_than_lines_show_those_that_matter(tmp_path: Path) -> None:
    trials = some_trials(tmp_path, seeds=10)
    trials[25].read(State.RUNNING)
    trials[29].read(State.FAILED)
    text = shown(trials, height=20)
    assert trials[25].trial.key in text
    assert trials[29].trial.key in text
    assert "… and 18 more" in text
    assert len(text.splitlines()) <= 20


@pytest.mark.parametrize("columns", [80, 100, 112, 126])
def test_the_table_fits_the_screen(tmp_path: Path, columns: int) -> None:
    first, *others = trials = some_trials(tmp_path, seeds=3)
    name = f"{first.trial.key}-learning_rate_0.001"
    first.trial = first.trial.model_copy(update={"key": name})
    first.read(State.RUNNING, now=0.0)
    report(first, 99, 12.345)
    first.read(State.FINISHED, now=5999.0)
    others[0].read(State.FAILED)
    console = Console(file=io.StringIO(), width=columns, height=30, force_terminal=True, color_system=None)
    console.print(LiveView("toy", trials, console, at_once=2).render())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= columns
    row = next(line for line in lines if line.strip().startswith("per_token-s0"))
    wide = columns >= 112
    assert (name in row) == (columns >= 126)
    for part in ("12.345", "10.0 %" if wide else "10%", "100/100", "took 1 h 39 min" if wide else "1.67 h"):
        assert part in row


def test_the_end_is_shown_as_a_time_of_day() -> None:
    noon = datetime.datetime(2026, 3, 3, 12, 5).astimezone()
    assert clock(noon) == "Tue 12:05"  # some other day
    now = datetime.datetime.now().astimezone()
    assert clock(now) == f"{now:%H:%M}"


def test_a_notebook_gets_html_that_cannot_break_out(tmp_path: Path) -> None:
    trials = some_trials(tmp_path)
    report(trials[0], 10, 3.0)
    trials[0].read(State.RUNNING)
    html = as_html(LiveView("<b>toy", trials, Console(file=io.StringIO(), width=120)).render())
    assert html.startswith("<pre style=")
    assert "per_token-s0" in html
    assert "3.000" in html
    assert "<b>" not in html


def test_without_a_terminal_each_change_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = some_trials(tmp_path)
    console = Console(file=io.StringIO(), width=130)
    with LiveView("toy", trials, console) as view:
        view.update()
        trials[0].read(State.RUNNING, now=0.0)
        view.update()
        view.update()
        report(trials[0], 10, 3.0)
        trials[0].read(State.RUNNING, now=5.0)
        monkeypatch.setattr(pipeline.running.live, "_PLAIN_EVERY_S", 0.0)
        view.update()
        monkeypatch.undo()
        trials[0].read(State.FINISHED, now=61.0)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "per_token-s0: running",
        "per_token-s0: step 10 of 100, training loss 3.000, 6,120 tokens/s, active 10.0 % / 40.0 % / 60.0 %",
        "toy: 0 of 3 done, 1 running, 2 waiting",
        "per_token-s0: finished after 1 min 01 s, training loss 3.000, 6,120 tokens/s, active 10.0 % / 40.0 % / 60.0 %",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7805, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_chatter_goes_to_its_file_and_the_console_keeps_its_place(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\nfrom rich.console import Console\n"
        "from pipeline.running.redirect_output import redirect_output\n"
        "console = Console()\n"
        "with redirect_output(pathlib.Path(sys.argv[1]), console):\n"
        "    print('python'); print('error', file=sys.stderr); sys.stdout.flush(); os.write(1, b'deep down')\n"
        "    console.print('table')\n"
        "print('after')\n"
    )
    log = tmp_path / "ray.log"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(log)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ran.stdout, ran.stderr) == ("table\nafter\n", "")
    assert sorted(log.read_text().replace("deep down", "deep down\n").split("\n")) == [
        "",
        "deep down",
        "error",
        "python",
    ]


def test_a_trial_without_workers_waits_for_capacity_and_reports_it_once(tmp_path: Path) -> None:
    trials = some_trials(tmp_path)
    trials[0].read(State.RUNNING, now=1000.0)
    assert not trials[0].waits_for_room(now=1015.0)  # workers take a while to start
    assert trials[0].waits_for_room(now=1030.0)
    assert not trials[1].waits_for_room(now=1030.0)  # not taken up
    write_whole(trials[0].folder.placement, "[]")
    assert not trials[0].waits_for_room(now=1030.0)
    console = Console(file=io.StringIO(), width=130)
    view = LiveView("toy", trials, console)
    for waiting, free in (
        (True, None),
        (True, "0 CPUs"),
        (True, None),
        (True, "0.5 CPUs"),
        (False, None),
        (True, "1 CPUs"),
    ):
        view.note_taken(waiting, free)
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said == [
        "Waiting: other jobs hold the cluster; 0 CPUs free.",
        "Waiting: other jobs hold the cluster; 1 CPUs free.",
    ]
