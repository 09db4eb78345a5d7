"""Trials follow the room that a cluster has, wait for it together, and lie where they should."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline.running.capacity
import pipeline.running.cluster
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.running.capacity import Capacity
from pipeline.running.cluster import Resources, connect
from pipeline.running.driver import name_of
from pipeline.running.progress import TrialProgress
from pipeline.running.tuner import DRIVER_BYTES, TunerJob, tune_trials
from pipeline.settings.config import SweepConfig, TrainingConfig, WorkersConfig
from pipeline.settings.trials import trials_of
from pipeline.training.rendezvous import interface_of
from tests.drills.scene import processes_under
from tests.pipeline.toy_training import toy_data, toy_experiment, toy_train

PAIR = WorkersConfig(count=2, cpus=1.0)


def test_room_grows_and_shrinks_with_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [(Resources(2), Resources(1))]
    monkeypatch.setattr(pipeline.running.capacity, "nodes", lambda: there[-1])
    monkeypatch.setattr(pipeline.running.capacity, "_POLL_EVERY_S", 0.0)
    capacity = Capacity([PAIR, PAIR, WorkersConfig(count=1)], wanted=4)
    assert (capacity.at_once, capacity.refresh()) == (1, 1)
    there.append((Resources(2), Resources(1), Resources(4)))
    assert capacity.refresh() == 3
    there.append((Resources(2), Resources(64)))
    assert capacity.refresh() == 4  # not more than are wanted
    there.append((Resources(1),))
    assert capacity.refresh() == 1
    assert "2 CPUs" in str(capacity.lacking)
    there.append((Resources(2),))
    assert (capacity.refresh(), capacity.lacking) == (1, None)
    there.append(())
    with pytest.raises(UserError, match=r"workers\.cpus"):
        Capacity([PAIR], wanted=1)


def test_room_that_others_have_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.running.capacity, "nodes", lambda: (Resources(4, 1),))
    free = {"CPU": 2.0}
    monkeypatch.setattr("ray.available_resources", lambda: free)
    capacity = Capacity([PAIR], wanted=1)
    assert capacity.taken is None
    free["CPU"] = 1.5
    assert capacity.taken == "1.5 CPUs"
    free.clear()  # Ray leaves out what is used up
    assert Capacity([WorkersConfig(count=1, gpus=1.0)], wanted=1).taken == "0 CPUs and 0 GPUs"


def test_loopback_has_an_interface_and_an_unknown_address_none() -> None:
    assert interface_of("127.0.0.1") == interface_of("127.0.0.9") == "lo"
    assert interface_of("203.0.113.7") is None


@pytest.mark.slow
def test_three_trials_of_two_workers_on_two_cpus_queue_and_all_finish(tmp_path: Path) -> None:
    """All three are let loose at once: had Ray Train taken workers one by one, each would hold one CPU for ever."""
    experiment = toy_experiment(workers=PAIR, sweep=SweepConfig(arms=("task_only",), seeds=(0, 1, 2)))
    places = [Output(tmp_path).trial("toy", trial.key) for trial in trials_of(experiment)]
    left = [TrialProgress(trial, place) for trial, place in zip(trials_of(experiment), places, strict=True)]
    job = TunerJob(tmp_path, "session", left, str(toy_data(tmp_path / "data").folder), name_of(toy_train), False)
    faults: list[BaseException] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.running.cluster, "local_resources", lambda: Resources(2))
        with connect(None):
            thread = threading.Thread(target=tune_trials, args=(job, lambda: 3, faults), daemon=True)
            thread.start()
            thread.join(timeout=240)
            assert not thread.is_alive()
    assert faults == []
    results = [json.loads(place.result.read_text()) for place in places]
    assert [result["metrics"]["world"] for result in results] == [2, 2, 2]
    assert {result["attempt"] for result in results} == {1}  # waiting is no failure
    entered = sorted(float((place.root / "entered-1-0").read_text()) for place in places)
    ended = sorted(place.result.stat().st_mtime for place in places)
    assert entered[1] > ended[0]  # and they did run one after another
    assert entered[2] > ended[1]


@pytest.fixture
def three_nodes() -> Iterator[dict[str, str]]:
    """A head without CPUs and two nodes with two: address and port in `address`, node id -> name in the rest."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    try:
        made = {name: cluster.add_node(num_cpus=2, object_store_memory=80_000_000) for name in ("one", "two")}
        yield {"address": cluster.address, **{node.node_id: name for name, node in made.items()}}
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_a_trials_workers_lie_together_and_trials_apart(three_nodes: dict[str, str]) -> None:
    """Ray's own placement groups, asked as Ray Train asks: a group for each trial, PACK."""
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    with connect(three_nodes["address"]):
        groups = []
        for _ in range(2):
            groups.append(placement_group([{"CPU": 1.0}] * 2, strategy="PACK"))
            ray.get(groups[-1].ready(), timeout=60)
        homes = [set(placement_group_table(group)["bundles_to_node_id"].values()) for group in groups]
        third = placement_group([{"CPU": 1.0}] * 2, strategy="PACK")
        time.sleep(2.0)
        assert placement_group_table(third)["state"] == "PENDING"  # it holds nothing while it waits
    assert sorted(three_nodes[node] for home in homes for node in home) == ["one", "two"]


@pytest.mark.slow
def test_trials_are_driven_from_several_nodes(tmp_path: Path) -> None:
    """Each trial's driver asks for memory, and goes to where there is most of it left."""
    from ray.cluster_utils import Cluster

    wish = json.dumps({"sleep_s": 0.2})
    experiment = toy_experiment(
        arms=("task_only",),
        description=wish,
        training=TrainingConfig(steps=1000, warmup_steps=1, batch_tokens=64),
        sweep=SweepConfig(arms=("task_only",), seeds=(0, 1, 2)),
    )
    places = [Output(tmp_path).trial("toy", trial.key) for trial in trials_of(experiment)]
    left = [TrialProgress(trial, place) for trial, place in zip(trials_of(experiment), places, strict=True)]
    data = str(toy_data(tmp_path / "data").folder)
    job = TunerJob(tmp_path, "session", left, data, name_of(toy_train), False, spread=True)
    small = {"num_cpus": 1, "memory": 2 * DRIVER_BYTES, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "memory": 0.5 * DRIVER_BYTES})
    try:
        nodes = [cluster.head_node, *(cluster.add_node(**small) for _ in range(2))]
        with connect(cluster.address):
            thread = threading.Thread(target=tune_trials, args=(job, lambda: 3, []), daemon=True)
            thread.start()
            deadline = time.monotonic() + 120
            while not all(place.spool.exists() for place in places):
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.5)
            drivers = [sum("ImplicitFunc" in line for line in _started_by(node).values()) for node in nodes]
            job.stop.touch()
            thread.join(timeout=30)
    finally:
        cluster.shutdown()
    assert drivers[0] == 0  # no room there
    assert sorted(drivers[1:]) == [1, 2]


def _started_by(node: Any) -> dict[int, str]:
    return processes_under(node.all_processes["raylet"][0].process.pid)
