"""A cluster of three nodes on one machine, each in a network namespace of its own; a fourth joins, one is killed.

python -m tests.drills a_node_is_killed_and_another_joins
"""

import json
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pipeline.layout import Output, TrialFolder
from pipeline.records.spool import read_spool
from tests.drills.namespaces import Network, why_not
from tests.drills.scene import Scene, Skipped
from tests.pipeline.ray_nodes import ROOT, RayNode, cluster_environment, own_disk, start_node

STEPS = 500  # so many that trials are left to run when the new node joins

NAME = "on-three-nodes"
EXPERIMENT = {
    "name": NAME,
    "data": {"max_tokens": 256, "dihedral_views": 2},
    "model": {"hidden": 16, "layers": 3, "heads": 2},
    "training": {
        "steps": STEPS,
        "warmup_steps": 4,
        "batch_tokens": 1024,
        "compile": "eager",
        "log_every": 10,
        "evaluate_every": 100,
        "checkpoint_every": 20,
        "prototype_snapshots": 2,
        "decode_tasks": 2,
    },
    "workers": {"count": 2, "cpus": 1.0, "timeout_s": 60, "max_failures": 3},
    "sweep": {"arms": ["per_token", "aggregated"], "seeds": [0, 1]},
}


@dataclass
class Drill:
    """Nodes by name, and what is measured."""

    place: Path
    ray_folder: Path  # a short path: Ray makes sockets under it, whose paths the system holds to 107 bytes
    network: Network
    seconds: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, RayNode] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        """Where the head takes jobs."""
        return f"http://{self.addresses['head']}:8265"

    @property
    def token(self) -> Path:
        """The cluster's token."""
        return self.place / "token"

    def lap(self, what: str) -> None:
        """Notes the seconds since the last one."""
        now = time.monotonic()
        self.seconds[what], self._last = now - self._last, now
        print(f"{self.seconds[what]:6.1f} s  {what}", flush=True)

    def join(self, name: str, number: int, cpus: int) -> None:
        """A node joins; the first one is the head."""
        address, inside = self.network.add(name, number)
        self.addresses[name] = address
        shared = {"TINY_ONN_OUTPUT": str(self.place / "shared")}
        options = [f"--node-ip-address={address}", f"--num-cpus={cpus}", "--num-gpus=0"]
        options.append("--object-store-memory=100000000")
        inside = [*inside, *own_disk(self.ray_folder, self.place / f"disk-{name}")]
        if name == "head":
            options += ["--head", "--port=6379", f"--dashboard-host={address}", f"--temp-dir={self.ray_folder}"]
        else:
            options.append(f"--address={self.addresses['head']}:6379")
        environment = cluster_environment(self.token, **shared)
        self.nodes[name] = start_node(options, environment, self.place / f"{name}.log", inside)

    def laptop(self, *words: str, token: Path | None = None) -> subprocess.Popen[str]:
        """`tiny-onn WORDS` in a namespace that is no node."""
        inside = self.laptop_inside
        environment = cluster_environment(token or self.token, PYTHONPATH=str(ROOT))
        return subprocess.Popen(
            [*inside, sys.executable, "-m", "pipeline.cli", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    laptop_inside: Sequence[str] = ()

    def trial(self, key: str) -> TrialFolder:
        """The folder of one trial."""
        return Output(self.place / "shared").trial(NAME, key)

    def steps(self) -> dict[str, int]:
        """The last step that each trial has reported."""
        by_trial = {}
        for arm in EXPERIMENT["sweep"]["arms"]:  # type: ignore[index]
            for seed in EXPERIMENT["sweep"]["seeds"]:  # type: ignore[index]
                lines, _ = read_spool(self.trial(f"{arm}-s{seed}").spool)
                by_trial[f"{arm}-s{seed}"] = max((line.step for line in lines), default=0)
        return by_trial

    def running(self) -> list[str]:
        """The trials that have taken a step and have no result."""
        return [key for key, step in self.steps().items() if step and not self.trial(key).result.exists()]

    def placement(self, key: str) -> dict[int, str]:
        """Rank -> the name of its node, in the trial's last attempt."""
        names = {address: name for name, address in self.addresses.items()}
        path = self.trial(key).placement
        return {each["rank"]: names[each["node"]] for each in json.loads(path.read_text())} if path.exists() else {}

    def wait(self, what: str, until: Callable[[], bool], job: subprocess.Popen[str], seconds: float = 300) -> None:
        """Until it is so.

        Raises:
            AssertionError: it was not in time, or what follows the job has ended before.
        """
        deadline = time.monotonic() + seconds
        while not until():
            assert job.poll() is None, f"ended while waiting until {what}:\n{job.communicate()[0]}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}; steps {self.steps()}"
            for node in self.nodes.values():
                node.processes()  # so that it is known what to end
            time.sleep(0.5)


def rehearse(place: Path) -> str:
    """Runs the drill in `place`; returns what was seen.

    Raises:
        AssertionError: it did not go as it should.
    """
    place.mkdir(parents=True, exist_ok=True)
    for name in ("token", "wrong"):
        (place / name).touch(mode=0o600)  # of one that others can read, every command warns
        (place / name).write_text(secrets.token_hex(16))
    config = place / "experiment.yaml"
    config.write_text(yaml.safe_dump(EXPERIMENT))
    with Network() as network, tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:
        drill = Drill(place, Path(ray_folder), network)
        try:
            return _rehearse(drill, config)
        finally:
            for node in reversed(drill.nodes.values()):
                node.stop()
            drill.lap("all nodes stopped")


def _rehearse(drill: Drill, config: Path) -> str:
    drill.join("head", 1, cpus=1)
    _, drill.laptop_inside = drill.network.add("laptop", 100)
    _wait_for_head(drill)
    drill.lap("head up")
    drill.join("near", 2, cpus=1)
    drill.join("far", 3, cpus=2)
    for address, token, said in (
        (drill.url, drill.place / "wrong", "refuses the token"),
        (f"http://{drill.network.nowhere()}:8265", drill.token, "nothing answers"),
    ):
        began = time.monotonic()
        refused = drill.laptop("submit", str(config), "--address", address, token=token)
        printed, _ = refused.communicate(timeout=60)
        assert refused.returncode == 2, printed
        assert said in printed, printed
        print(f"{time.monotonic() - began:6.1f} s  refused: {said}", flush=True)
    drill.lap("refusals")

    job = drill.laptop("submit", str(config), "--address", drill.url)
    drill.wait("two trials run", lambda: len(drill.running()) == 2, job)
    drill.lap("two trials in training")
    places = {key: drill.placement(key) for key in drill.running()}
    for key, place in places.items():
        print(f"          {key}: " + ", ".join(f"rank {rank} on {node}" for rank, node in place.items()), flush=True)
    across = [key for key, place in places.items() if set(place.values()) == {"head", "near"}]
    assert across, places
    assert any(set(place.values()) == {"far"} for place in places.values()), places

    drill.nodes.pop("near").kill()
    killed_at = drill.steps()[across[0]]
    drill.wait("the other trial ends", lambda: any(drill.trial(k).result.exists() for k in places), job)
    drill.lap(f"node `near` killed (step {killed_at} of {across[0]}), the other trial done")
    job.send_signal(signal.SIGINT)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == 130, printed
    assert "tiny-onn jobs stop" in printed, printed
    job = drill.laptop("jobs", "logs", NAME, "--address", drill.url)
    drill.wait("the struck trial goes on", lambda: drill.placement(across[0]) == {0: "far", 1: "far"}, job)
    drill.lap("detached; the struck trial has moved to `far`")

    drill.join("new", 4, cpus=2)
    drill.wait("two trials run", lambda: any("new" in drill.placement(k).values() for k in drill.running()), job)
    fresh = next(key for key in drill.running() if "new" in drill.placement(key).values())
    drill.lap(f"node `new` added, {fresh} trains on it")
    printed_by_job, _ = job.communicate(timeout=400)
    drill.lap("the job ended")
    assert job.returncode == 0, printed_by_job
    # Ray takes some seconds to notice that a node is gone: before the new one has joined, after it, or at once with it.
    # Whatever was reported, in the end as many trials run at once as in the beginning.
    changes = re.findall(r"Concurrency changed from (\d) to (\d)\.", printed_by_job)
    assert sum(int(now) - int(before) for before, now in changes) == 0, printed_by_job
    results = {key: json.loads(drill.trial(key).result.read_text()) for key in drill.steps()}
    assert {result["steps"] for result in results.values()} == {STEPS}, results
    attempts = drill.laptop("jobs", "status", NAME, "--address", drill.url)
    printed, _ = attempts.communicate(timeout=60)
    assert attempts.returncode == 0, printed
    assert "SUCCEEDED" in printed, printed
    assert "Not all of it is tracked" not in printed_by_job, printed_by_job
    return f"4 of 4 finished; {across[0]} lost a node at step {killed_at} and went on; {fresh} ran on the new one"


def _wait_for_head(drill: Drill) -> None:
    """From the laptop: the test's own namespace has no way to the cluster."""
    head, deadline = drill.nodes["head"], time.monotonic() + 120
    while time.monotonic() < deadline:
        assert head.process.poll() is None, head.log.read_text()
        asked = drill.laptop("jobs", "list", "--address", drill.url)
        printed, _ = asked.communicate(timeout=60)
        if asked.returncode == 0:
            return
        time.sleep(0.5)
    raise AssertionError(f"the head did not come up: {printed}\n{head.log.read_text()}")


def a_node_is_killed_and_another_joins(scene: Scene) -> str:
    """A cluster of three nodes in network namespaces, submitted to from a fourth, loses a node and gains one."""
    reason = why_not()
    if reason:
        raise Skipped(reason)
    return rehearse(scene.output / "cluster")


DRILLS = (a_node_is_killed_and_another_joins,)
