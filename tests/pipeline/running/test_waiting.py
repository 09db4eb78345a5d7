"""What does not move says after half a minute what it waits for."""

import io
import time
from pathlib import Path

from rich.console import Console

from pipeline.layout import Output
from pipeline.records.state import State
from pipeline.running.progress import TrialProgress
from pipeline.running.waiting import Standstill, report_waiting
from pipeline.settings.trials import trials_of
from tests.pipeline.toy_training import toy_experiment


def test_a_long_wait_is_reported_repeatedly_and_a_short_one_is_not() -> None:
    screen = io.StringIO()
    with report_waiting(Console(file=screen), "Ray to start", first_s=0.05):
        time.sleep(0.6)
    said = screen.getvalue()
    assert said.startswith("Still waiting, for ")
    assert "now: Ray to start." in said
    assert 2 <= said.count("Still waiting") <= 4
    time.sleep(0.3)
    assert screen.getvalue() == said
    screen = io.StringIO()
    with report_waiting(Console(file=screen), "nothing", first_s=30):
        pass
    assert screen.getvalue() == ""


def test_trials_that_stand_still_say_why_and_movement_ends_it(tmp_path: Path) -> None:
    progress = [TrialProgress(trial, Output(tmp_path).trial("toy", trial.key)) for trial in trials_of(toy_experiment())]
    still = Standstill()
    assert still.check(progress, 0) is None
    assert still.check(progress, 29) is None
    assert still.check(progress, 30) == (
        "Nothing has moved for 30 s: the next trial waits for Ray to start its process."
    )
    assert still.check(progress, 31) is None
    assert still.check(progress, 119) is None
    assert "for 120 s" in str(still.check(progress, 120))
    progress[0].state = State.RUNNING
    assert still.check(progress, 200) is None
    assert "per_token-s0 waits for its workers to be started by Ray" in str(still.check(progress, 230))
    progress[0].folder.root.mkdir(parents=True)
    progress[0].folder.placement.touch()
    assert still.check(progress, 231) is None
    assert "which report every 10 steps and have reported step 0" in str(still.check(progress, 262))
    for one in progress:
        one.state = State.FINISHED
    assert still.check(progress, 300) is None
    assert still.check(progress, 999) is None
