"""Where wall time goes: clocks, what first and logged steps take beyond others, and how trials share the wall time."""

import json
import time
from pathlib import Path

import pytest

from pipeline.layout import TrialFolder
from pipeline.records.phases import (
    FIRST_STEPS,
    Clock,
    StepTimes,
    SweepPhases,
    TrialPhases,
    noting_driver,
    parse_phases,
    process_start,
    trial_record,
    write_phases,
)

SHORT = pytest.approx


def test_a_clock_has_no_gaps_and_no_overlaps() -> None:
    clock = Clock("command", 100.0)
    clock.enter("store", 103.0)
    clock.enter("data", 104.5)
    clock.enter("store", 104.0)  # the machine's clock was set back: no phase has negative length
    clock.enter("Ray", 106.5)
    assert clock.spans == [("command", 100.0, 103.0), ("store", 103.0, 104.5), ("store", 104.5, 106.5)]
    assert clock.seconds == {"command": 3.0, "store": 3.5, "data": 0.0}


def test_a_phase_within_another_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 13.0, 17.0, 18.0, 20.0])
    monkeypatch.setattr("pipeline.records.phases.time.time", lambda: next(now))
    clock = Clock("worker")  # 10
    clock.enter("steps")  # 12
    with pytest.raises(ZeroDivisionError), clock.within("logging extra"), clock.within("evaluation"):  # 13, 17
        raise ZeroDivisionError  # evaluation ends at 18, logging at 20
    assert clock.seconds == {"worker": 2.0, "steps": 1.0, "logging extra": 6.0, "evaluation": 1.0}  # 4 and 2
    assert sum(clock.seconds.values()) == 20.0 - 10.0
    assert clock.phase == "steps"


def test_parts_that_are_moved_come_from_their_phase_and_never_exceed_it() -> None:
    clock = Clock("steps", 0.0)
    clock.enter("worker", 10.0)
    clock.move("steps", {"compilation": 4.0, "data": 1.0})
    assert clock.seconds == {"steps": 5.0, "compilation": 4.0, "data": 1.0}
    clock.move("steps", {"logging extra": 7.0})
    assert clock.seconds == {"steps": 0.0, "compilation": 4.0, "data": 1.0, "logging extra": 5.0}


def test_compilation_is_what_the_first_steps_take_beyond_the_later_ones_of_their_kind() -> None:
    times = StepTimes()
    for step in range(1, FIRST_STEPS + 11):
        logged = step % 10 == 0
        usual = 3.0 if logged else 1.0
        times.add(usual + {1: 8.0, 10: 5.0}.get(step, 0.0), logged)
    # logged: 10, 20 and 30, which take 2 s more than others; compilation: 8 s in step 1, 5 s in step 10
    assert times.parts() == {"compilation": SHORT(13.0), "logging extra": SHORT(6.0)}


def test_a_short_run_compares_its_first_steps_with_the_shortest_of_them() -> None:
    times = StepTimes()
    for seconds, logged in ((9.0, False), (1.0, False), (2.0, False), (6.0, True)):
        times.add(seconds, logged)
    assert times.parts() == {"compilation": SHORT(9.0), "logging extra": SHORT(5.0)}  # 8 + 1; 6 - 1
    assert StepTimes().parts() == {"compilation": 0, "logging extra": 0}
    assert StepTimes([(True, 2.0), (True, 5.0)]).parts() == {"compilation": 3.0, "logging extra": 0.0}


def _sweep(trials: tuple[TrialPhases, ...]) -> SweepPhases:
    spans = (("command", 0.0, 4.0), ("data", 4.0, 6.0), ("trials", 6.0, 26.0), ("shutdown", 26.0, 27.0))
    return SweepPhases("s", "x", 2.0, spans, trials)


def test_the_parts_of_the_wall_time_add_up_to_it() -> None:
    first = TrialPhases("a", 10.0, 20.0, 1.0, {"driver": 4.0, "steps": 6.0})
    second = TrialPhases("b", 14.0, 24.0, 1.0, {"driver": 1.0, "steps": 5.0, "unheard of": 4.0})
    phases = _sweep((first, second))
    parts = phases.of_the_wall()
    # alone: 6-10 and 24-26. a has 4 s alone and half of 6 s, 7 in all, b as much.
    assert parts["Ray"] == SHORT(6.0)
    assert parts["driver"] == SHORT(7 * 0.4 + 7 * 0.1)
    assert parts["steps"] == SHORT(7 * 0.6 + 7 * 0.5)
    assert parts["other"] == SHORT(7 * 0.4)
    assert (parts["command"], parts["data"], parts["shutdown"]) == (4.0, 2.0, 1.0)
    assert sum(parts.values()) == SHORT(phases.wall) == SHORT(27.0)
    assert phases.steps_over_cores == SHORT((6 + 5) / 2)
    assert phases.wall_over_steps == SHORT(27 / 5.5)


def test_a_trial_with_more_workers_than_cores_spreads_over_the_cores_there_are() -> None:
    four = TrialPhases("a", 6.0, 26.0, 4.0, {"steps": 20.0})
    assert _sweep((four,)).steps_over_cores == 20.0
    assert _sweep(()).wall_over_steps is None


def test_the_record_of_a_sweep_is_read_back_whole(tmp_path: Path) -> None:
    folder, path = TrialFolder(tmp_path / "trial"), tmp_path / "phases.json"
    clock = Clock("command", time.time() - 5)
    with pytest.raises(OSError, match="no"), noting_driver(folder, "now"):
        raise OSError("no")  # noted however it ends
    assert trial_record(folder, "another", 2.0) is None
    driven = json.loads(folder.driven.read_text())
    assert driven["session"] == "now"
    assert driven["start"] <= driven["end"]
    folder.driven.write_text(json.dumps({"session": "now", "start": 10.0, "end": 20.0}))
    worker = {"seconds": {"worker": 1.0, "steps": 6.0}, "spans": [["worker", 12, 13], ["steps", 13, 19]]}
    folder.result.write_text(json.dumps({"phases": worker}))
    record = trial_record(folder, "now", 2.0)
    write_phases(path, "s", "now", 2.0, clock, {"a": record})
    phases = parse_phases(json.loads(path.read_text()))
    assert phases is not None
    assert phases.wall == SHORT(5.0, abs=1.0)
    (trial,) = phases.trials
    assert trial.seconds == {"worker": 1.0, "steps": 6.0, "driver": 3.0}  # what its workers do not account for
    assert trial.spans == (("worker", 12.0, 13.0), ("steps", 13.0, 19.0))


@pytest.mark.parametrize(
    ("worker", "expected"),
    [
        (None, {"other": 10.0}),  # failed or pruned: it says nothing
        ({"seconds": {"steps": 30.0, "worker": 10.0}}, {"steps": 7.5, "worker": 2.5, "driver": 0.0}),  # another clock
        ({"seconds": {"steps": -3.0}}, {"steps": 0.0, "driver": 10.0}),
    ],
)
def test_a_trial_accounts_for_its_whole_length_whatever_its_workers_left(worker, expected) -> None:
    trial = {"start": 10, "end": 20, "cores": 2, "worker": worker}
    told = {"sweep": "s", "session": "x", "cores": 2, "command": {"spans": [["trials", 0, 30]]}, "trials": {"a": trial}}
    phases = parse_phases(told)
    assert phases is not None
    assert phases.trials[0].seconds == expected
    assert sum(phases.of_the_wall().values()) == SHORT(30.0)


def test_a_disk_that_refuses_the_note_fails_no_trial(tmp_path: Path) -> None:
    (tmp_path / "trial").write_text("a file where the folder should be")
    with noting_driver(TrialFolder(tmp_path / "trial"), "now"):
        pass
    assert (tmp_path / "trial").is_file()


@pytest.mark.parametrize("damaged", [None, [], {}, {"trials": {}}, {"trials": {"a": 3}}, "text"])
def test_a_damaged_record_is_none(damaged) -> None:
    assert parse_phases(damaged) is None


def test_a_process_knows_when_it_was_started() -> None:
    assert time.time() - 7 * 24 * 3600 < process_start() <= time.time()
