"""The whole command, its tracker killed, stopped and brought back under it; and the command itself killed."""

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.layout import Output, TrialFolder
from pipeline.records.delivery import read_delivery
from pipeline.records.spool import read_spool
from tests.pipeline.arc_samples import random_task, write_tasks
from tests.pipeline.delivery_samples import files_of, statuses
from tests.pipeline.mlflow_server import MlflowServer, wait_for
from tests.pipeline.secret_samples import SECRET, USER_AND_SECRET, assert_no_secret
from tests.pipeline.slow_cost import PACE
from tests.pipeline.sockets import listening, reachable_from_elsewhere

ROOT = Path(__file__).parents[2]
KEYS = ("tests.pipeline.slow_cost_SLOW-s0", "task_only-s0")

pytestmark = pytest.mark.slow


def config_in(folder: Path) -> Path:
    """A sweep of a slow arm, which takes a second a step until folder/pace says otherwise, and a quick one."""
    (folder / "pace").write_text("0.25")
    write_tasks(folder / "tasks", [random_task(f"t{i:02d}", i) for i in range(12)])
    settings = {
        "name": "try",
        "data": {"dataset": "folder", "folder": str(folder / "tasks"), "max_tokens": 200, "dihedral_views": 2},
        "model": {"hidden": 8, "layers": 1, "heads": 2},
        "training": {"steps": 300, "warmup_steps": 1, "batch_tokens": 400, "compile": "eager", "log_every": 1,
                     "evaluate_every": 100, "checkpoint_every": 10, "prototype_snapshots": 2, "decode_tasks": 1},
        "workers": {"cpus": 0.5},
        "sweep": {"arms": ["tests.pipeline.slow_cost:SLOW", "task_only"], "seeds": [0]},
    }  # fmt: skip
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(log: Path, *words: str, **more: str) -> subprocess.Popen[bytes]:
    """`tiny-onn` in a process of its own; what it says goes to `log`."""
    environment = {"PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "2", PACE: str(log.parent / "pace")}
    with log.open("ab") as screen:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *words],
            cwd=ROOT,
            env={**os.environ, **environment, **more},
            stdout=screen,
            stderr=screen,
        )


def logged(folder: TrialFolder) -> list[tuple[str, int]]:
    """Each (metric, step) that training wrote down, in order."""
    return [(name, line.step) for line in read_spool(folder.spool)[0] for name in line.metrics]


def delivered(store: Output, folder: TrialFolder) -> list[tuple[str, int]]:
    """Each (metric, step) of the trial's run, in the order of their arrival."""
    run_id = read_delivery(folder.delivery).run_id
    if not run_id:  # and so, perhaps, a store whose tables are still being made
        return []
    with sqlite3.connect(store.root / "mlflow.db") as database:
        rows = database.execute("select key, step from metrics where run_uuid = ? order by rowid", [run_id])
        return [(str(key), int(step)) for key, step in rows]


def assert_delivered(store: Output, folders: list[TrialFolder]) -> None:
    for folder in folders:
        there = delivered(store, folder)
        assert Counter(there) == Counter(logged(folder))
        assert [step for _, step in there] == sorted(step for _, step in there)
        assert len({step for _, step in there}) >= 5


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """The command and all that it has started, at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()


def test_a_tracker_down_at_the_start_stopped_in_mid_run_and_killed_at_the_end(tmp_path: Path) -> None:
    output, store, log = Output(tmp_path / "out"), Output(tmp_path / "store"), tmp_path / "log"
    server = MlflowServer(store)
    uri = server.uri.replace("://", f"://{USER_AND_SECRET}@")
    slow, quick = folders = [output.trial("try", key) for key in KEYS]
    words = ["ablate", str(config_in(tmp_path)), "--output", str(output.root), "--tracking-uri", uri]
    process = start(log, *words, "--allow-offline-tracking")
    try:
        wait_for(lambda: len(read_spool(slow.spool)[0]) >= 2 or process.poll() is not None, 200)
        assert process.poll() is None, log.read_text()
        assert reachable_from_elsewhere(listening(process.pid)) == set()
        assert len(listening(process.pid)) > 3  # Ray's
        server.start()
        wait_for(lambda: len(delivered(store, slow)) > 10, 150)
        server.send(signal.SIGSTOP)
        before = len(read_spool(slow.spool)[0])
        wait_for(lambda: len(read_spool(slow.spool)[0]) >= before + 8, 150)  # training goes on
        there = len(delivered(store, slow))
        server.send(signal.SIGCONT)
        wait_for(lambda: len(delivered(store, slow)) > there, 150)
        server.stop()
        assert not slow.result.exists(), "training was over too soon to tell"
        (tmp_path / "pace").write_text("0")
        assert process.wait(timeout=300) == 1, log.read_text()  # as runs are left RUNNING
        said = log.read_text()
        assert "Training starts anyway" in said
        (line,) = [each.strip() for each in said.splitlines() if "tiny-onn sync" in each]
        assert line == (
            "MLFLOW_TRACKING_USERNAME=me MLFLOW_TRACKING_PASSWORD=*** "
            f"tiny-onn sync try --output {output.root} --tracking-uri {server.uri}"
        )
        assert "--resume" not in said
        server.start()
        user, _, _, *asked = shlex.split(line)
        environment = dict([user.split("=")], MLFLOW_TRACKING_PASSWORD=SECRET)
        assert start(log, *asked, **environment).wait(timeout=200) == 0, log.read_text()
        assert "try: 2 of 2 trials delivered now" in log.read_text()
        assert_delivered(store, folders)
        assert statuses(store, "try") == Counter({"FINISHED": 3})
        assert "report.md" in files_of(store, read_delivery(output.sweep("try") / "mlflow_summary.json").run_id)
        images = [name for name in files_of(store, read_delivery(quick.delivery).run_id) if name.endswith(".png")]
        assert len(images) == len(set(images))
        assert start(log, *asked, **environment).wait(timeout=200) == 0
        assert "try: nothing was outstanding; 2 FINISHED." in log.read_text()
        assert_no_secret(output.root, store.root, texts=(log.read_text(),))
    finally:
        kill_all(process) if process.poll() is None else None
        server.stop()


def test_a_command_killed_and_interrupted_leaves_no_run_running_and_no_point_twice(tmp_path: Path) -> None:
    output, log = Output(tmp_path / "out"), tmp_path / "log"
    slow, quick = (output.trial("try", key) for key in KEYS)
    words = ["ablate", str(config_in(tmp_path)), "--output", str(output.root)]
    sync = ["sync", "--output", str(output.root)]

    process = start(log, *words)
    try:
        wait_for(lambda: len(delivered(output, slow)) > 10, 200)
        kill_all(process)
        assert statuses(output, "try")["RUNNING"] >= 2
        assert start(log, *sync).wait(timeout=200) == 0
        assert statuses(output, "try")["RUNNING"] == 0
        assert statuses(output, "try")["KILLED"] >= 2

        process = start(log, *words, "--resume")
        before = len(read_spool(slow.spool)[0])
        wait_for(lambda: len(read_spool(slow.spool)[0]) > before, 200)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130, log.read_text()
        assert statuses(output, "try")["RUNNING"] == 0
        assert not slow.result.exists(), "training was over too soon to tell"

        (tmp_path / "pace").write_text("0")
        process = start(log, *words, "--resume")
        assert process.wait(timeout=300) == 0, log.read_text()
        assert statuses(output, "try") == Counter({"FINISHED": 3})
        assert_delivered(output, [slow, quick])
    finally:
        kill_all(process) if process.poll() is None else None
