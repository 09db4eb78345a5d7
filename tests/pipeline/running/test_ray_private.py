"""Ray's private names: all are there in the pinned version, and without any of them a sweep runs."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import ray_private
from pipeline.running.driver import explain, may_pass
from pipeline.running.ray_process import DEFAULTS
from pipeline.running.trainer import new_trainer
from tests import renames

TRAIN, TUNE = "ray.train", "ray.tune"


@pytest.fixture(autouse=True)
def probed_anew() -> Iterator[None]:
    ray_private._problem.cache_clear()
    yield
    ray_private._problem.cache_clear()


@pytest.mark.pinned
def test_the_pinned_version_has_all_names() -> None:
    assert ray_private.missing() == []


def _lean(patch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    patch.delattr(WorkerGroup, "_create_placement_group")


def _not_called(patch: pytest.MonkeyPatch) -> None:
    """The method is there, and nothing calls it any more: an override of it would note nothing."""
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    for name, method in list(vars(WorkerGroup).items()):
        if callable(method) and "_create_placement_group" in getattr(method, "__code__", _not_called.__code__).co_names:
            patch.setattr(WorkerGroup, name, lambda self: None)


def _other_signature(patch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.controller import TrainController

    patch.setattr(TrainController, "__init__", lambda self, everything: None)


def _no_request(patch: pytest.MonkeyPatch) -> None:
    """Ray no longer calls the method that we override, so its requests would go to a coordinator that does not run."""
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    for name in ("make_decision_for_non_running_worker_group", "make_decision_for_running_worker_group"):
        patch.setattr(FixedScalingPolicy, name, lambda self: None)


def _errors(patch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal import exceptions

    patch.delattr(exceptions, "WorkerGroupStartupTimeoutError")


def _silence(patch: pytest.MonkeyPatch) -> None:
    from ray.tune import progress_reporter

    patch.delattr(progress_reporter, "TrialProgressCallback")


def _concurrency(patch: pytest.MonkeyPatch) -> None:
    from ray.tune.search.basic_variant import BasicVariantGenerator

    patch.delattr(BasicVariantGenerator, "next_trial")


def _pruning(patch: pytest.MonkeyPatch) -> None:
    from ray.tune.schedulers import ASHAScheduler

    patch.setattr(ASHAScheduler, "on_trial_result", lambda *_: "CONTINUE")


def _init(patch: pytest.MonkeyPatch) -> None:
    import ray

    patch.setattr(ray, "init", lambda address=None: None)


def _agent_port(patch: pytest.MonkeyPatch) -> None:
    from ray._private.parameter import RayParams

    patch.setattr(RayParams, "__init__", lambda self, redis_address=None: None)


def _environment(patch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants

    patch.delattr(ray_constants, "ENABLE_RAY_CLUSTER")


@pytest.mark.parametrize(
    ("name", "remove"),
    [
        ("lean trainer", _lean),
        ("lean trainer", _not_called),
        ("lean trainer", _other_signature),
        ("lean trainer", _no_request),
        ("errors", _errors),
        ("silence", _silence),
        ("concurrency", _concurrency),
        ("pruning", _pruning),
        ("init", _init),
        ("agent port", _agent_port),
        ("environment", _environment),
    ],
)
def test_what_is_gone_is_reported_with_what_happens_instead(
    name: str, remove: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    (said,) = ray_private.missing()
    assert said.endswith(f"{ray_private.USES[name].without}.")
    assert not ray_private.has(name)


def test_without_its_parts_rays_own_trainer_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert type(new_trainer(print, held=tmp_path / "held")).__name__ == "LeanTrainer"
    ray_private._problem.cache_clear()
    _lean(monkeypatch)
    assert type(new_trainer(print, held=tmp_path / "held")).__name__ == "DataParallelTrainer"


def test_an_error_is_judged_without_an_import_that_could_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import RayTrainError, WorkerGroupStartupTimeoutError

    late, other = WorkerGroupStartupTimeoutError(2), RayTrainError("x")
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.exceptions", None)
    assert not may_pass(ControllerError(late))
    assert may_pass(ControllerError(other))
    assert not may_pass(ControllerError(ValueError("x")))
    assert explain(ControllerError(other)) == "RayTrainError: x"


def test_without_the_search_algorithms_limit_the_first_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([3, 5])
    _concurrency(monkeypatch)
    assert ray_private.trials_in_order(lambda: next(answers)).max_concurrent == 3
    assert next(answers) == 5


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"node:__internal_head__": 1.0, "node:10.0.0.5": 1.0}, {"node:__internal_head__": 0.001}),
        ({"node:10.0.0.5": 1.0}, {"node:10.0.0.5": 0.001}),
        ({"CPU": 1.0}, {}),
    ],
)
def test_the_head_is_found_by_its_address_too(
    there: dict[str, float], expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Context:
        gcs_address = "10.0.0.5:6379"

    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    assert ray_private.on_the_head() == expected


def test_an_agent_gets_a_free_port_only_where_it_is_asked_for() -> None:
    from ray._private.parameter import RayParams

    fixed = RayParams().dashboard_agent_listen_port
    assert fixed
    with ray_private.agent_on_a_free_port():
        assert RayParams().dashboard_agent_listen_port == 0
        assert RayParams(dashboard_agent_listen_port=7).dashboard_agent_listen_port == 7
    assert RayParams().dashboard_agent_listen_port == fixed


def test_without_the_agents_port_a_cluster_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.parameter import RayParams

    _agent_port(monkeypatch)
    before = RayParams.__init__
    with ray_private.agent_on_a_free_port():
        assert RayParams.__init__ is before


def test_the_options_of_a_cluster_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    expected: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "_temp_dir": "/tmp/ray"}
    assert ray_private.own_cluster_options("/tmp/ray") == expected
    ray_private._problem.cache_clear()
    _init(monkeypatch)
    monkeypatch.setenv("RAY_TMPDIR", "/far")
    assert ray_private.own_cluster_options("/tmp/ray") == {}
    assert os.environ["RAY_TMPDIR"] == "/tmp"


def test_workers_are_waited_for_for_hours_and_no_longer() -> None:
    assert 600 <= float(DEFAULTS["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) <= 6 * 3600


@pytest.mark.slow
def test_a_sweep_runs_on_a_ray_whose_private_names_are_others(tmp_path: Path) -> None:
    """The words stand in Ray's own source; a worker dies once, so that a trial is taken up again as well."""
    changed = [
        (TRAIN, "_create_placement_group", "_reserve"),
        (TRAIN, "worker_group_cls", "worker_group_class"),
        (TRAIN, "_initialize_and_run_controller", "_run_controller"),
        (TRAIN, "PlacementGroupCleanerCallback", "CleanerCallback"),
        (TRAIN, "WorkerGroupStartupTimeoutError", "StartTimeout"),
        (TRAIN, "RayTrainError", "TrainError"),
        (TRAIN, "get_address_and_port", "address_and_port"),
        (TRAIN, "_set_torch_distributed_env_vars", "_set_variables"),
        (TRAIN, "_shutdown_torch", "_end_torch"),
        (TRAIN, "TorchConfigContextManager", "OnDevice"),
        (TUNE, "TrialProgressCallback", "ProgressCallback"),
        ("ray._private.worker", "_node_ip_address", "_address_of_node"),
        ("ray._private.worker", "_temp_dir", "_folder"),
        ("ray._private", "ENABLE_RAY_CLUSTER", "CLUSTERS_ARE_ENABLED"),
    ]
    words = [sys.executable, "-m", "tests.pipeline.run_toy", str(tmp_path / "out")]
    words += [json.dumps({"kill_once": "task_only"}), str(tmp_path / "log"), "3"]
    environment = renames.environment(tmp_path, changed)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    for name in ("lean trainer", "errors", "silence", "init", "environment"):
        assert ray_private.USES[name].without in text
    assert len(list(tmp_path.rglob("result.json"))) == 1
    assert len(list(tmp_path.rglob("entered-*-0"))) == 2
