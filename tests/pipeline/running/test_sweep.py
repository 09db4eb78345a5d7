"""The sweep on real Ray clusters: failures, resumption, refusals and signals."""

import contextlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pipeline.running.sweep
from pipeline.errors import UserError
from pipeline.layout import Output, TrialFolder
from pipeline.records.attempts import last_attempt
from pipeline.running.run_options import RunOptions
from pipeline.running.sweep import SweepOutcome, run_sweep
from pipeline.settings.config import Experiment, SweepConfig, WorkersConfig
from pipeline.settings.trials import Trial, every_trial, trials_of
from tests.pipeline.sockets import listening, reachable_from_elsewhere
from tests.pipeline.toy_training import RecordingTracker, toy_data, toy_experiment, toy_train

ROOT = Path(__file__).parents[3]


def sweep(
    output: Path,
    experiment: Experiment,
    tracker: RecordingTracker,
    screen: io.StringIO | None = None,
    trials: tuple[Trial, ...] = (),
    report: Callable[[], list[Path]] | None = None,
    **options: Any,
) -> SweepOutcome:
    """run_sweep with the toy's parts."""
    return run_sweep(
        experiment,
        trials or trials_of(experiment),
        toy_data(output / "data"),
        RunOptions(
            Output(output),
            command="tiny-onn ablate toy.yaml",
            console=Console(file=screen or io.StringIO(), width=160),
            **options,
        ),
        train_fn=toy_train,
        tracker=tracker,
        report=report,
    )


def result(folder: TrialFolder) -> dict[str, Any]:
    """A finished trial's result.json."""
    return json.loads(folder.result.read_text())


def ray_processes() -> set[str]:
    """The pids of Ray's processes on this machine."""
    names = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith(b"ray::") or b"raylet/raylet" in line or b"gcs/gcs_server" in line:
                names.add(entry.name)
    return names


def test_failures_do_not_stop_the_others_and_resume_runs_only_what_is_missing(tmp_path: Path) -> None:
    wish = json.dumps({"raise": ["aggregated", 0], "kill_once": "task_only"})
    experiment = toy_experiment(description=wish)
    first, *rest = trials_of(experiment)
    pair = WorkersConfig(count=2, cpus=0.5, timeout_s=30)
    trials = (first.model_copy(update={"experiment": first.experiment.model_copy(update={"workers": pair})}), *rest)
    tracker, screen = RecordingTracker(), io.StringIO()
    made: list[int] = []

    def report() -> list[Path]:
        made.append(len(tracker.ended()))
        return [tmp_path / "report.md"]

    outcome = sweep(tmp_path, experiment, tracker, screen, trials, report=report)

    output = Output(tmp_path)
    good, bad, killed = (output.trial("toy", f"{arm}-s0") for arm in ("per_token", "aggregated", "task_only"))
    assert (outcome.finished, outcome.failed, outcome.total, outcome.exit_code) == (2, 1, 3, 1), outcome
    assert result(good)["metrics"] == {"sum_of_ranks": 3.0, "world": 2}  # 1 + 2, reduced by gloo
    assert (killed.root / "killed-once").exists()
    assert result(killed)["metrics"] == {"sum_of_ranks": 1.0, "world": 1}
    assert "rank 0: ValueError: the loss of aggregated is not finite" in bad.failure.read_text()
    assert "rank 0: ValueError" in outcome.failures["aggregated-s0"]
    assert tracker.ended() == {"per_token-s0": "FINISHED", "aggregated-s0": "FAILED", "task_only-s0": "FINISHED"}
    assert tracker.calls[-2:] == [("end_summary", "FAILED", "report.md"), ("close", "FAILED")]
    assert tracker.threads == {"courier"}
    assert made == [3]  # the report came when every trial had been shipped
    assert "1 of 3 trials failed" in screen.getvalue()
    private = [path for path in output.sweep("toy").rglob("ray") if path.is_dir()]
    assert len(private) == 4  # of the sweep and its trials: what Ray keeps there may hold the password of a storage
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o700}
    assert "tiny-onn ablate toy.yaml --resume" in screen.getvalue()

    before = {folder: (folder.result.stat().st_mtime_ns, last_attempt(folder)) for folder in (good, killed)}
    failed = last_attempt(bad)
    assert failed is not None  # the first, unless Ray lost a process at its start, as it may on a crowded machine
    with pytest.raises(UserError, match="--resume"):
        sweep(tmp_path, experiment, RecordingTracker())
    mended = experiment.model_copy(update={"description": ""})
    tracker = RecordingTracker()
    outcome = sweep(tmp_path, mended, tracker, resume=True)
    assert outcome.exit_code == 0
    assert {folder: (folder.result.stat().st_mtime_ns, last_attempt(folder)) for folder in before} == before
    assert result(bad)["attempt"] == failed.number + 1
    assert not bad.failure.exists()
    assert set(tracker.ended().values()) == {"FINISHED"}
    assert tracker.calls[-1] == ("close", "FINISHED")


def finish_by_hand(output: Path, experiment: Experiment) -> None:
    """Writes every trial's settings and result."""
    for trial in every_trial(experiment):
        folder = Output(output).trial(experiment.name, trial.key)
        folder.root.mkdir(parents=True)
        folder.config.write_text(trial.experiment.model_dump_json())
        folder.result.write_text('{"metrics": {}, "steps": 3, "seconds": 1}')


def no_ray(*_: Any) -> Any:
    """Stands where Ray would be started."""
    raise AssertionError("Ray was started")


def test_ray_is_not_started_when_all_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.running.sweep, "connect", no_ray)
    experiment = toy_experiment()
    finish_by_hand(tmp_path, experiment)
    tracker = RecordingTracker()
    outcome = sweep(tmp_path, experiment, tracker, resume=True)
    assert (outcome.finished, outcome.exit_code) == (3, 0)
    assert set(tracker.ended().values()) == {"FINISHED"}  # what an earlier command could not ship is shipped now


def test_a_trial_alone_has_no_summary_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.running.sweep, "connect", no_ray)
    (trial,) = trials_of(toy_experiment(arms=("task_only",)))
    finish_by_hand(tmp_path, trial.experiment)
    tracker = RecordingTracker()
    run_sweep(
        trial.experiment,
        [trial],
        toy_data(tmp_path / "data"),
        RunOptions(
            Output(tmp_path), resume=True, command="tiny-onn train toy.yaml", console=Console(file=io.StringIO())
        ),
        train_fn=toy_train,
        tracker=tracker,
    )
    assert {call[0] for call in tracker.calls} == {"start", "end", "close"}


def test_more_cpus_than_there_are_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.running.sweep, "connect", no_ray)
    tracker = RecordingTracker()
    with pytest.raises(UserError, match=r"workers\.cpus.*512 CPUs"):
        sweep(tmp_path, toy_experiment(workers=WorkersConfig(count=2, cpus=256.0)), tracker)
    assert tracker.calls == []
    assert not (tmp_path / "sweeps").exists()


def test_a_cell_of_the_grid_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.running.sweep, "connect", no_ray)
    grid = SweepConfig(arms=("task_only",), seeds=(0,), grid={"workers.cpus": (0.5, 999.0)})
    with pytest.raises(UserError, match="999"):
        sweep(tmp_path, toy_experiment(sweep=grid), RecordingTracker())


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_stop_the_sweep_cleanly(tmp_path: Path, sent: int, code: int) -> None:
    """Ctrl-C twice in the middle of training; SIGTERM while Ray is still starting; and in training a SIGHUP to all
    processes at once, Ray's included, as a terminal sends it that is closed."""
    output, log = tmp_path / "out", tmp_path / "log"
    mark = f"mark-{uuid.uuid4().hex}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.run_toy", str(output), '{"sleep_s": 0.2}', str(log)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TOY_MARK": mark},
        start_new_session=True,
    )
    folder = Output(output).trial("toy", "task_only-s0")
    awaited = folder.spool if sent != signal.SIGTERM else Output(output).sweep("toy") / "sweep.json"
    deadline = time.monotonic() + 120
    while not awaited.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert awaited.exists()
    if sent == signal.SIGINT:  # it trains: whoever is on another machine must find no door
        assert reachable_from_elsewhere(listening(process.pid)) == set()
    began = time.monotonic()
    for _ in range(2 if sent == signal.SIGINT else 1):
        os.killpg(process.pid, sent) if sent == signal.SIGHUP else process.send_signal(sent)
        time.sleep(0.3)
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == code, printed
    assert time.monotonic() - began < 60  # a few seconds; Ray, still starting, takes longer on a machine under load
    assert "tiny-onn ablate toy.yaml --resume" in printed
    told = log.read_text().splitlines()
    assert told[-1] == "close KILLED"
    if sent != signal.SIGTERM:
        assert "end task_only-s0 KILLED" in told
    assert not folder.result.exists()
    assert not folder.failure.exists()
    deadline = time.monotonic() + 60
    while (left := left_of(process.pid, mark)) and time.monotonic() < deadline:  # what has lost its raylet ends itself
        time.sleep(0.2)
    assert left == {}


def left_of(session: int, mark: str) -> dict[str, bytes]:
    """Ray's processes that a command has left, by its session or what is in their environment: other commands may have
    such processes at the same time, and leave some."""
    processes = {}
    for pid in ray_processes():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if session_of(pid) == session or mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                processes[pid] = line
    return processes


def session_of(pid: str) -> int:
    """The session that a process belongs to; 0 when it is gone."""
    try:
        return os.getsid(int(pid))
    except ProcessLookupError:
        return 0
