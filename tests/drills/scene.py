"""One drill's place: a tiny experiment in a folder of its own, the command that runs it, and what came of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.layout import Output, TrialFolder
from pipeline.records.spool import read_spool
from tests.drills.faults import Fault, plant

ROOT = Path(__file__).parents[2]
NAME = "drill"
STEPS = 12
EXPERIMENT = {
    "name": NAME,
    "data": {"max_tokens": 256, "dihedral_views": 2, "rows_per_group": 4},
    "model": {"hidden": 8, "layers": 2, "heads": 2},
    "training": {
        "steps": STEPS,
        "warmup_steps": 2,
        "batch_tokens": 1024,
        "compile": "eager",
        "log_every": 2,
        "evaluate_every": 4,
        "checkpoint_every": 4,
        "check_replicas_every": 4,
        "keep_checkpoints": 2,
        "prototype_snapshots": 2,
        "decode_tasks": 2,
    },
    "workers": {"count": 2, "cpus": 0.5, "timeout_s": 60},
    "sweep": {"arms": ["per_token"], "seeds": [0, 1], "max_concurrent": 1},
}
TRIAL = "per_token-s0"


class Skipped(Exception):
    """A drill cannot be tried here; the message says why."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, all that it printed, and the seconds that it took."""

    code: int
    printed: str
    seconds: float

    def expect(self, code: int, *said: str) -> "Ended":
        """Itself, if it ended with `code` and said all that."""
        assert self.code == code, f"exit code {self.code}, expected {code}:\n{self.printed}"
        flat = " ".join(self.printed.split())
        for words in said:
            assert words in flat, f"{words!r} was not said:\n{self.printed}"
        return self


@dataclass
class Scene:
    """A folder, `output`, in which the tiny experiment runs; `reference` is where it has run undisturbed.

    What is in the folder is removed, but where `anew` is false.
    """

    output: Path
    reference: "Scene | None" = None
    environment: dict[str, str | None] = field(default_factory=dict)
    anew: bool = True
    _running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.anew:
            return
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        (self.output / "drill.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        plant(self.output)
        if self.reference is not None:  # the data is the same, and preparing it takes seconds
            (self.output / "data").symlink_to(self.reference.output / "data")

    def trial(self, key: str = TRIAL) -> TrialFolder:
        """The folder of one trial."""
        return Output(self.output).trial(NAME, key)

    def start(self, command: str, *options: str) -> subprocess.Popen[str]:
        """`tiny-onn command`, in a process of its own."""
        words = [command, str(self.output / "drill.yaml"), "--output", str(self.output), *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.drills.command", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment(),
        )
        self._running.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        changed = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        return {name: value for name, value in changed.items() if value is not None}

    def run(self, command: str, *options: str, faults: Iterable[Fault] = ()) -> Ended:
        """Runs `tiny-onn command` to its end, with these faults planted."""
        return self.wait(self.start_with(command, *options, faults=faults))

    def start_with(self, command: str, *options: str, faults: Iterable[Fault] = ()) -> subprocess.Popen[str]:
        """Starts `tiny-onn command`, with these faults planted."""
        plant(self.output, *faults)
        return self.start(command, *options)

    def wait(self, process: subprocess.Popen[str], limit_s: float = 600) -> Ended:
        """Waits for the end of a command."""
        began = time.monotonic()
        printed, _ = process.communicate(timeout=limit_s)
        return Ended(process.returncode, printed, time.monotonic() - began)

    def held(self, process: subprocess.Popen[str], rank: int = 0) -> int:
        """Waits until a worker holds (Fault "hold"); returns its pid."""
        mark = self.output / "faults" / f"held-{rank}"
        until(lambda: mark.exists() and mark.read_text() != "", process)
        return int(mark.read_text())

    def let_go(self) -> None:
        """Has workers that hold go on."""
        (self.output / "faults" / "let-go").touch()

    def end(self) -> None:
        """Ends what is still running."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, limit_s: float = 300) -> None:
    """Waits for a condition, as long as the process lives."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended before its time:\n{process.communicate()[0]}")
        time.sleep(0.05)


def all_gone(processes: dict[int, str], limit_s: float) -> float:
    """Waits until these processes are gone; returns the seconds that it took."""
    began = time.monotonic()
    while left := {pid: line for pid, line in processes.items() if _alive(pid)}:
        assert time.monotonic() - began < limit_s, f"still there: {left}"
        time.sleep(0.1)
    return time.monotonic() - began


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def same_result(scene: Scene, *keys: str) -> None:
    """Each trial (the first by default) ended as the undisturbed one did.

    The last checkpoint, with Adam's moments, is equal bit for bit; the spool has the same lines and MLflow the same
    points, but for times; there is one run a trial, and it is FINISHED.
    """
    assert scene.reference is not None
    for key in keys or (TRIAL,):
        here, there = scene.trial(key), scene.reference.trial(key)
        assert here.result.exists(), f"{key} has no result"
        last = f"step-{STEPS:06d}"
        states = [(folder.checkpoints / last / "state.safetensors").read_bytes() for folder in (here, there)]
        assert states[0] == states[1], f"{key}: other parameters than undisturbed"
        assert _lines(here) == _lines(there), f"{key}: other metrics than undisturbed"
        last_metrics = [_without_speed(result(folder)["metrics"]) for folder in (here, there)]
        assert last_metrics[0] == last_metrics[1], f"{key}: another result than undisturbed"
        assert points(scene, key, "FINISHED") == points(scene.reference, key, "FINISHED"), f"{key}: other points"


def points(scene: Scene, key: str, status: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric's (step, value) in MLflow, in order; of the only run of this trial, which has this status."""
    from mlflow import MlflowClient

    client = MlflowClient(Output(scene.output).tracking_uri)
    experiment = client.get_experiment_by_name("tiny-onn")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.sweep = '{NAME}' and tags.trial = '{key}'")
    assert [run.info.status for run in runs] == [status], f"{key}: runs {[run.info.status for run in runs]}"
    names = [name for name in runs[0].data.metrics if not name.startswith("speed/")]
    histories = {name: client.get_metric_history(runs[0].info.run_id, name) for name in names}
    return {name: sorted((point.step, point.value) for point in history) for name, history in sorted(histories.items())}


def summary_status(scene: Scene) -> list[str]:
    """The status of every summary run: there should be one."""
    from mlflow import MlflowClient

    client = MlflowClient(Output(scene.output).tracking_uri)
    experiment = client.get_experiment_by_name("tiny-onn")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.sweep = '{NAME}' and tags.role = 'summary'")
    return [run.info.status for run in runs]


def _lines(folder: TrialFolder) -> list[tuple[int, dict[str, float]]]:
    lines, _ = read_spool(folder.spool)
    return [(line.step, _without_speed(line.metrics)) for line in lines]


def _without_speed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("speed/")}


def result(folder: TrialFolder) -> dict[str, Any]:
    """A finished trial's result.json."""
    return json.loads(folder.result.read_text())


def processes_under(pid: int) -> dict[int, str]:
    """The processes that came of `pid`, with their command lines."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:  # gone meanwhile
                continue
    processes: dict[int, str] = {}
    for each in lines:
        above = each
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and each != pid:
            processes[each] = lines[each]
    return processes
