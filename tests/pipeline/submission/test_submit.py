"""`tiny-onn submit` to a real cluster: two Ray nodes on loopback, behind a token."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline.layout import Output
from pipeline.records.delivery import read_delivery
from tests.pipeline.ray_nodes import ROOT, cluster_environment, own_disk, start_node, wait_for_jobs_api

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a second node needs a disk of its own, and so root")
HEAD, OTHER = "127.0.0.2", "127.0.0.3"
EXPERIMENT = {
    "name": "tiny",
    "data": {"max_tokens": 256, "dihedral_views": 2, "rows_per_group": 4},
    "model": {"hidden": 8, "layers": 2, "heads": 2},
    "training": {
        "arm": "task_only",
        "steps": 4,
        "warmup_steps": 1,
        "batch_tokens": 512,
        "compile": "eager",
        "prototype_snapshots": 0,
        "decode_tasks": 0,
    },
    "workers": {"count": 2, "timeout_s": 60},
}


@dataclass(frozen=True)
class Place:
    """A cluster that takes jobs at `url`, and what a user of it has."""

    url: str
    folder: Path

    @property
    def output(self) -> Output:
        """What the head was told to write to."""
        return Output(self.folder / "shared")

    def start(self, *words: str, token: str = "token", **more: str) -> subprocess.Popen[str]:
        """`tiny-onn WORDS --address ...`, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *words, "--address", self.url],
            cwd=ROOT,
            env=cluster_environment(self.folder / token, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, token: str = "token", **more: str) -> tuple[int, str]:
        """Its exit code, and all that it printed."""
        process = self.start(*words, token=token, **more)
        printed, _ = process.communicate(timeout=240)
        return process.returncode, printed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A head and one more node, with one CPU each."""
    folder = tmp_path_factory.mktemp("c")
    for name in ("token", "wrong"):
        (folder / name).write_text(secrets.token_hex(16))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    gcs, dashboard, agents = free_port(), free_port(), (free_port(), free_port())
    environment = cluster_environment(folder / "token", TINY_ONN_OUTPUT=str(folder / "shared"))
    ray_folder = folder / "ray"
    ray_folder.mkdir()
    common = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"]
    listens = [f"--port={gcs}", f"--dashboard-host={HEAD}", f"--dashboard-port={dashboard}"]
    nodes = []
    try:
        head = ["--head", *listens, f"--temp-dir={ray_folder}", f"--dashboard-agent-listen-port={agents[0]}"]
        nodes.append(start_node([*head, *common, f"--node-ip-address={HEAD}"], environment, folder / "head.log"))
        url = f"http://{HEAD}:{dashboard}"
        wait_for_jobs_api(url, (folder / "token").read_text(), nodes[0])
        joins = [f"--address={HEAD}:{gcs}", f"--dashboard-agent-listen-port={agents[1]}"]
        apart = own_disk(ray_folder, folder / "disk")
        nodes.append(
            start_node([*joins, *common, f"--node-ip-address={OTHER}"], environment, folder / "other.log", apart)
        )
        yield Place(url, folder)
    finally:
        for node in reversed(nodes):
            node.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.pinned
def test_a_trial_runs_on_two_nodes_and_its_exit_code_comes_back(place: Place) -> None:
    code, printed = place.run("submit", str(place.folder / "tiny.yaml"), token="wrong")
    assert code == 2, printed
    assert "refuses the token" in printed

    code, printed = place.run("submit", str(place.folder / "tiny.yaml"))
    assert code == 0, printed
    assert "Sending" in printed
    assert "task_only-s0: finished" in printed
    assert "Not all of it is tracked" not in printed
    trial = place.output.trial("tiny", "task_only-s0")
    where = json.loads(trial.placement.read_text())
    assert [(each["rank"], each["interface"]) for each in where] == [(0, "lo"), (1, "lo")]
    assert {each["node"] for each in where} == {HEAD, OTHER}
    assert json.loads(trial.result.read_text())["steps"] == 4
    assert read_delivery(trial.delivery).ended == "FINISHED"
    assert (place.output.root / "mlflow.db").exists()

    code, printed = place.run("submit", str(place.folder / "tiny.yaml"))
    assert code == 2, printed
    assert f"tiny.yaml --address {place.url} --resume" in printed


@pytest.mark.slow
def test_a_job_is_detached_from_stopped_and_resumed_by_its_name(place: Place) -> None:
    long = ("submit", str(place.folder / "tiny.yaml"), "--name", "long")
    long += ("--set", "training.steps=20000", "--set", "training.checkpoint_every=10")
    code, printed = place.run(*long, "--detach")
    assert code == 0, printed
    assert "tiny-onn jobs stop long" in printed
    trial = place.output.trial("long", "task_only-s0")
    deadline = time.monotonic() + 120
    while not trial.checkpoints.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert list(trial.checkpoints.glob("step-*"))
    code, printed = place.run(*long, "--resume")
    assert code == 2, printed
    assert "a job of this name runs" in printed
    code, printed = place.run("jobs", "stop", "long")
    assert (code, "long: STOPPED" in printed) == (0, True), printed
    code, printed = place.run("jobs", "status", "long")
    assert code == 143, printed
    code, printed = place.run("jobs", "logs", "long", "--no-follow")
    assert "--name" not in printed.partition("Go on with:")[2]  # the command as it was typed, with --set name=long
    assert "--set name=long --resume" in printed, printed
    assert read_delivery(trial.delivery).ended == "KILLED"

    follower = place.start(*long, "--resume")
    time.sleep(20)
    follower.kill()  # the laptop goes away
    code, printed = place.run("jobs", "status", "long")
    assert (code, "RUNNING" in printed) == (0, True), printed
    assert place.run("jobs", "stop", "long")[0] == 0


@pytest.mark.slow
def test_what_the_cluster_lacks_is_refused_there_with_exit_code_2(place: Place) -> None:
    pins = (ROOT / "constraints.txt").read_text().replace("\ntorch==", "\ntorch==1.")
    (place.folder / "other.txt").write_text(pins)
    words = ("submit", str(place.folder / "tiny.yaml"), "--constraints", str(place.folder / "other.txt"), "--name", "x")
    code, printed = place.run(*words)
    assert code == 2, printed
    assert "differs from the constraints file: torch is" in printed
    three = ("--set", "workers.count=3", "--set", "training.batch_tokens=1024")
    code, printed = place.run("submit", str(place.folder / "tiny.yaml"), "--name", "y", *three)
    assert code == 2, printed
    assert "workers.cpus: a trial asks for 3 CPUs" in printed
    code, printed = place.run("submit", str(place.folder / "tiny.yaml"), "--name", "y")
    assert code == 0, printed  # nothing is left of what was refused


_OWN_TASK = """
from dataclasses import replace

from my_rows import rows
from pipeline.tasks import Format, Rows, Source, Splits, Task


def read(config):
    made = rows(40)
    return Source("counting", lambda: Splits(Rows(made[8:], 32), Rows(made[:8], 8)))


COUNTING = Task("counting", Format(vocabulary=16), read, item="row", group=lambda task_id: task_id[-1])
"""
_OWN_ROWS = """
import numpy as np

from pipeline.tasks import Sequence


def rows(number):
    return [Sequence((np.arange(5 + n % 3) + n) % 16, (), np.arange(5 + n % 3) > 0, f"r{n}") for n in range(number)]
"""
_OWN_MODEL = """
from torch import nn

from tiny_onn import SparseProtoLinear


class Small(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.embed = nn.Embedding(settings.vocabulary, settings.hidden)
        self.up = SparseProtoLinear(settings.hidden, settings.hidden, **settings.routing)
        self.head = nn.Linear(settings.hidden, settings.outputs)

    def forward(self, tokens):
        return self.head(self.up(self.embed(tokens)))


def build(settings):
    return Small(settings)
"""


@pytest.mark.pinned
def test_a_task_and_a_model_of_ones_own_reach_the_workers_of_all_nodes(place: Place) -> None:
    folder = place.folder / "mine"
    folder.mkdir()
    for name, code in (("my_task", _OWN_TASK), ("my_rows", _OWN_ROWS), ("my_model", _OWN_MODEL)):
        (folder / f"{name}.py").write_text(code)
    experiment = EXPERIMENT | {
        "name": "own",
        "data": {"task": "my_task:COUNTING", "max_tokens": 16, "rows_per_group": 4, "order": "sequential"},
        "model": {"build": "my_model:build", "hidden": 8},
        "training": {**EXPERIMENT["training"], "steps": 12, "arm": "per_token", "batch_tokens": 64},  # type: ignore[dict-item]
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(experiment))
    words, includes = ["submit", str(folder / "own.yaml")], [f"my_{name}.py" for name in ("model", "rows", "task")]
    code, printed = place.run(*words, PYTHONPATH=str(folder))
    assert code == 2, printed
    options = " ".join(f"--include {folder / name}" for name in includes)
    assert f"Add to the command: {options}" in " ".join(printed.split("\n"))
    code, printed = place.run(*words, *options.split(), PYTHONPATH=str(folder))
    assert code == 0, printed
    assert "per_token-s0: finished" in printed
    trial = place.output.trial("own", "per_token-s0")
    assert {each["node"] for each in json.loads(trial.placement.read_text())} == {HEAD, OTHER}
    assert "forgetting/increase" in json.loads(trial.result.read_text())["metrics"]
