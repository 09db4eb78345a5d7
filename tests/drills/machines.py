"""Faults of the machines: disks, memory, nodes and the head of a cluster, a process that stands still."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.running.tuner import DRIVER_BYTES
from tests.drills.faults import Fault
from tests.drills.scene import STEPS, TRIAL, Scene, Skipped, all_gone, points, processes_under, same_result, until
from tests.drills.survive import MIDDLE, NO_RETRY, ONE, attempts


@contextlib.contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        raise Skipped(f"a small disk cannot be mounted here ({done.stderr.decode().strip()}); it takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def the_disk_is_full(scene: Scene) -> str:
    """Checkpoints go to a disk that has room for one and a half; then there is room, and --resume."""
    assert scene.reference is not None
    last = scene.reference.trial().checkpoints / f"step-{STEPS:06d}"
    size = sum(path.stat().st_size for path in last.iterdir())
    folder = scene.trial().checkpoints
    with _small_disk(folder, f"{int(1.5 * size) // 1024}k"):
        scene.run("train", *ONE).expect(1, "failed: ", "The checkpoint of step 4 is whole", "make room on the disk")
        assert [path.name for path in folder.iterdir()] == ["step-000004"]
        assert attempts(scene) == 1
        points(scene, TRIAL, "FAILED")
        _remount(folder, f"size={10 * size // 1024}k")
        scene.run("train", *ONE, "--resume").expect(0)
        same_result(scene)
    return "both ranks stop; the last whole checkpoint is named and all that is left; resumed: same result"


def the_disk_turns_read_only(scene: Scene) -> str:
    """The disk with the checkpoints turns read-only in step 7; then it is mended, and --resume."""
    folder = scene.trial().checkpoints
    with _small_disk(folder, "10m"):
        process = scene.start_with("train", *ONE, faults=[Fault("hold", rank=0, step=MIDDLE)])
        scene.held(process)
        _remount(folder, "ro")
        scene.let_go()
        scene.wait(process).expect(1, "Read-only file system", "The checkpoint of step 4 is whole")
        _remount(folder, "rw")
        scene.run("train", *ONE, "--resume").expect(0)
        same_result(scene)
    return "both ranks stop and say so; resumed: same result"


def a_rank_stands_still(scene: Scene) -> str:
    """SIGSTOP of rank 1 in step 7, with workers.timeout_s=10 and without another attempt; then --resume."""
    options = (*ONE, *NO_RETRY, "--set", "workers.timeout_s=10")
    process = scene.start_with("train", *options, faults=[Fault("stop", "forward", rank=1, step=MIDDLE)])
    workers = []

    def stopped() -> bool:
        workers[:] = [pid for pid, line in processes_under(process.pid).items() if _state(pid) == "T"]
        return bool(workers)

    until(stopped, process)
    ended = scene.wait(process).expect(1, "rank 1 did not arrive where the others waited")
    assert ended.seconds < 120, ended.seconds
    assert not os.path.exists(f"/proc/{workers[0]}")
    points(scene, TRIAL, "FAILED")
    scene.run("train", *options, "--resume").expect(0)
    same_result(scene)
    return f"exit code 1 {ended.seconds:.0f} s later, rank 1 named, no process left; resumed: same result"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def the_head_is_killed(scene: Scene) -> str:
    """SIGKILL of the cluster's head (GCS) in step 7; then --resume."""
    process = scene.start_with("train", *ONE, faults=[Fault("hold", rank=0, step=MIDDLE)])
    scene.held(process)
    began = processes_under(process.pid)
    heads = [pid for pid, line in began.items() if "gcs_server" in line.split()[0]]
    assert len(heads) == 1, began
    os.kill(heads[0], signal.SIGKILL)
    ended = scene.wait(process).expect(1, "the head of the Ray cluster, 127.0.0.1:", "does not answer", "--resume")
    assert ended.seconds < 120, ended.seconds
    all_gone(began, limit_s=120)
    points(scene, TRIAL, "FAILED")
    scene.run("train", *ONE, "--resume").expect(0)
    same_result(scene)
    return f"exit code 1 after {ended.seconds:.0f} s, said so, no process left; resumed in the same run, same result"


def a_worker_takes_too_much_memory(scene: Scene) -> str:
    """Rank 1 takes 9 GB more than there was in use, where Ray is told to stand 6 GB more; in every attempt."""
    used, whole = _memory()
    if used + 12e9 > whole:
        raise Skipped(f"{whole / 1e9:.0f} GB of memory, {used / 1e9:.0f} in use: no room to try it")
    scene.environment = {"RAY_memory_usage_threshold": f"{(used + 6e9) / whole:.3f}"}
    ended = scene.run("train", *ONE, faults=[Fault("hoard", rank=1, step=MIDDLE, times=9, value=9e9)])
    ended.expect(1, "memory")
    assert (scene.output / "faults" / "hoarding-1").exists(), ended.printed
    assert 1 <= attempts(scene) <= 4  # once again as workers.max_failures says, of the workers and of their driver
    points(scene, TRIAL, "FAILED")
    return f"killed by Ray, given up after {attempts(scene)} attempts: {_texts(scene)[:200]}"


def _texts(scene: Scene) -> str:
    return scene.trial().failure.read_text().splitlines()[0]


def _memory() -> tuple[float, float]:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    whole, free = (int(lines[name].split()[0]) * 1024.0 for name in ("MemTotal", "MemAvailable"))
    return whole - free, whole


@contextlib.contextmanager
def _three_nodes(head_memory: float | None = None) -> Iterator[Any]:
    """Ray's own cluster of three nodes with a CPU each, in processes of this machine; and the two that are no head."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    head = {"num_cpus": 1, "include_dashboard": False} | ({"memory": head_memory} if head_memory else {})
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(2)]
    finally:
        cluster.shutdown()


def _under(node: Any) -> dict[int, str]:
    return processes_under(node.all_processes["raylet"][0].process.pid)


def a_node_leaves(scene: Scene) -> str:
    """Three machines of one CPU each; one of the two that hold a worker is ended in step 7."""
    with _three_nodes() as (cluster, others):
        options = (*ONE, "--set", "workers.cpus=1", "--address", cluster.address)
        process = scene.start_with("train", *options, faults=[Fault("hold", step=MIDDLE)])
        workers = {scene.held(process, rank) for rank in range(2)}
        left = next(node for node in others if workers & _under(node).keys())
        began = time.monotonic()
        cluster.remove_node(left)
        scene.wait(process).expect(0, "was taken up again")
        took = time.monotonic() - began
    same_result(scene)
    return f"taken up on the machines that are left, finished {took:.0f} s later, same result"


def the_node_of_a_trials_driver_leaves(scene: Scene) -> str:
    """The same, and it is the one whose process drives the trial; the head has no room for drivers."""
    with _three_nodes(head_memory=DRIVER_BYTES / 2) as (cluster, others):
        options = (*ONE, "--set", "workers.cpus=1", "--address", cluster.address)
        process = scene.start_with("train", *options, faults=[Fault("hold", step=MIDDLE)])
        scene.held(process)
        drives = {node: [line for line in _under(node).values() if "ImplicitFunc" in line] for node in others}
        assert sorted(map(len, drives.values())) == [0, 1], drives
        left = next(node for node, trials in drives.items() if trials)
        began = time.monotonic()
        cluster.remove_node(left)
        scene.wait(process).expect(0, "the process that drove the trial ended without a word")
        took = time.monotonic() - began
    same_result(scene)
    return f"another machine drives it on, finished {took:.0f} s later: {attempts(scene)} attempts, same result"


DRILLS = (
    the_disk_is_full,
    the_disk_turns_read_only,
    a_rank_stands_still,
    the_head_is_killed,
    a_worker_takes_too_much_memory,
    a_node_leaves,
    the_node_of_a_trials_driver_leaves,
)
