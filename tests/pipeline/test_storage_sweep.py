"""Whole sweeps in a storage: a worker is killed, a driver stopped or asleep, and an empty folder goes on from there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.remote.index import checkpoints_in, has_ended
from pipeline.remote.trial import RemoteTrial
from pipeline.storage.opening import open_storage
from pipeline.tracking.store import open_store
from tests.pipeline.object_store import object_store
from tests.pipeline.samples import SMALL

ROOT = Path(__file__).parents[2]
ARMS = ("per_token", "task_only")


def _config(folder: Path, arms: tuple[str, ...], steps: int) -> Path:
    training = {"steps": steps, "batch_tokens": 2048, "log_every": 4, "evaluate_every": 120, "checkpoint_every": 20}
    experiment = {
        **SMALL,
        "data": {"max_tokens": 256, "dihedral_views": 2, "rows_per_group": 4},
        "training": {**SMALL["training"], **training},
        "workers": {"count": 2, "cpus": 0.5, "timeout_s": 60},
        "sweep": {"arms": list(arms), "seeds": [0], "max_concurrent": 1},
    }
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(experiment))
    return config


def _command(config: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "ablate", str(config), "--output", str(output), *more]


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _workers_of(driver: int) -> list[int]:
    """Ray's training workers in the sessions that a driver has started."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                pid = int(entry.name)
                while pid not in (0, 1, driver):
                    pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                pids += [int(entry.name)] if pid == driver else []
        except (OSError, ValueError):
            continue
    return pids


def _wait(what: str, look, process: subprocess.Popen[str], limit_s: float = 240.0) -> None:
    deadline = time.monotonic() + limit_s
    while not look():
        assert process.poll() is None, f"ended before {what}:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_goes_on_from_the_storage_on_another_machine_bit_equal(tmp_path: Path) -> None:
    config = _config(tmp_path, ARMS, steps=240)
    with object_store() as store:
        storage = store.storage()
        trials = [RemoteTrial(storage / "sweeps" / "small" / "trials", f"{arm}-s0") for arm in ARMS]
        sweep = _command(config, tmp_path / "here", "--storage", store.uri())
        process = _start(sweep)
        _wait("a checkpoint", lambda: checkpoints_in(trials[0].index()), process)
        for pid in _workers_of(process.pid)[:1]:
            os.kill(pid, signal.SIGKILL)
            break
        else:
            raise AssertionError("no worker was found")
        _wait("the second trial's checkpoint", lambda: checkpoints_in(trials[1].index()), process)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=120)[0]
        assert process.returncode == 130, printed
        assert f"--storage '{store.uri()}' --resume" in printed
        assert has_ended(trials[0].index()), printed
        assert not has_ended(trials[1].index()), printed
        attempt = trials[0].attempt()
        assert attempt is not None
        assert attempt["failure"] is None, attempt
        elsewhere = _command(config, tmp_path / "there", "--storage", store.uri(), "--resume")
        done = subprocess.run(elsewhere, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 trial to run, 1 ended before" in done.stdout
        parts = {trial.key: trial.newest(trial.attempt())[0] for trial in trials}
        last = Path("checkpoints") / "step-000240" / "state.safetensors"
        put = {key: (part.files / last.as_posix()).read_bytes() for key, part in parts.items()}
        noted = [json.loads(line) for line in (trials[1].noted() or "").splitlines()]
        assert [each["attempt"] for each in noted] == [1, 2]
    reference = subprocess.run(
        _command(config, tmp_path / "reference"), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert reference.returncode == 0, reference.stdout + reference.stderr
    for arm in ARMS:
        place = Path("sweeps") / "small" / "trials" / f"{arm}-s0"
        one, other = (json.loads((tmp_path / o / place / "result.json").read_text()) for o in ("there", "reference"))
        slow = {name for name in one["metrics"] if name.startswith("speed/")}
        assert {n: v for n, v in one["metrics"].items() if n not in slow} == {
            n: v for n, v in other["metrics"].items() if n not in slow
        }
        state = tmp_path / "reference" / place / "checkpoints" / "step-000240" / "state.safetensors"
        assert put[f"{arm}-s0"] == state.read_bytes()
        assert not (tmp_path / "there" / place / "checkpoints").exists()
    for output in ("there",):  # an MLflow of its own, which now has every point once
        client = open_store(f"sqlite:///{tmp_path / output / 'mlflow.db'}")
        recorded = client.get_experiment_by_name("tiny-onn")
        assert recorded is not None
        for run in client.search_runs([recorded.experiment_id], "tags.arm = 'per_token'"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/task_loss")]
            assert steps == list(range(4, 241, 4))


@pytest.mark.slow
def test_a_driver_that_slept_leaves_the_sweep_to_the_one_that_took_it_over(tmp_path: Path) -> None:
    config = _config(tmp_path, ("per_token",), steps=2000)
    storage = tmp_path / "storage"
    trial = RemoteTrial(open_storage(str(storage)) / "sweeps" / "small" / "trials", "per_token-s0")
    mlflow = ("--storage", str(storage), "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    sleeper = _start(_command(config, tmp_path / "here", *mlflow))
    _wait("a checkpoint", lambda: checkpoints_in(trial.index()), sleeper)
    sleeper.send_signal(signal.SIGSTOP)
    heir = _start(_command(config, tmp_path / "there", *mlflow, "--resume"))
    try:
        _wait("its attempt", lambda: (trial.attempt() or {})["attempt"] == 2, heir)
        sleeper.send_signal(signal.SIGCONT)
        said = sleeper.communicate(timeout=120)[0]
        assert sleeper.returncode == 1, said
        assert f"The sweep was taken over by process {heir.pid} on " in " ".join(said.split())
        assert "--resume" not in said
        assert heir.poll() is None
        told = heir.communicate(timeout=400)[0]
        assert heir.returncode == 0, told
    finally:
        for process in (sleeper, heir):
            if process.poll() is None:
                process.kill()
    client = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    recorded = client.get_experiment_by_name("tiny-onn")
    assert recorded is not None
    runs = client.search_runs([recorded.experiment_id])
    assert sorted((run.data.tags["role"], run.info.status) for run in runs) == [
        ("summary", "FINISHED"),
        ("trial", "FINISHED"),
    ]
    (run,) = [run for run in runs if run.data.tags["role"] == "trial"]
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/task_loss")]
    assert sorted(set(steps)) == list(range(4, 2001, 4))
    assert len(steps) == len(set(steps))
