"""Every private name of Ray that this project uses: where it is, how it is probed, and what happens without it.

No other file names one. `missing` probes all of them in the way in which they are used; whatever Ray lacks, or has with
another signature, is not used: a public way takes its place, which may be slower. Nothing of Ray is imported before a
function here is called, and no function here raises because a name is gone.
"""

import asyncio
import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from pipeline.files import write_whole


@dataclass(frozen=True)
class Use:
    """A private part of Ray. `probe` raises where Ray has it no longer; `without` says what a user then has."""

    what: str
    without: str
    probe: Callable[[], object]


def missing() -> list[str]:
    """A sentence for each part that this version of Ray lacks; sorted as in `USES`."""
    import ray

    problems = {name: _problem(name) for name in USES}
    return [
        f"Ray {ray.__version__} lacks {USES[name].what} ({problem}): {USES[name].without}."
        for name, problem in problems.items()
        if problem
    ]


def has(name: str) -> bool:
    """Whether this version of Ray has the part `name` of `USES`."""
    return _problem(name) is None


@functools.cache
def _problem(name: str) -> str | None:
    try:
        USES[name].probe()
    except Exception as error:  # whatever an import or a look at a signature raises
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def _takes(function: Any, *arguments: str, **named: Any) -> None:
    """`function` can be called with so many arguments, and those named."""
    inspect.signature(function).bind(*arguments, **named)


def _is_called(owner: type, name: str) -> None:
    """Some method of `owner` calls what is named so: an override of it has an effect."""
    methods = [each for each in vars(owner).values() if isinstance(each, FunctionType)]
    if not any(name in method.__code__.co_names for method in methods):
        raise AttributeError(f"{owner.__name__} does not call {name}")


# Ray Train with few processes


def _probe_lean_trainer() -> None:
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
    from ray.train.v2.api.config import ScalingConfig

    trainer = own_trainer()
    assert isinstance(DatasetsCallback, type)
    assert isinstance(PlacementGroupCleanerCallback, type)
    for name in ("_create_default_callbacks", "_initialize_and_run_controller"):
        _is_called(trainer, name)
    _takes(trainer._create_default_callbacks, "self")
    given = ("train_fn_ref", "scaling_policy", "failure_policy", "train_run_context", "callbacks", "validation_config")
    _takes(trainer._initialize_and_run_controller, "self", **dict.fromkeys(given))
    _takes(TrainController, **dict.fromkeys(given))
    if not inspect.iscoroutinefunction(TrainController.run):
        raise TypeError("TrainController.run is no coroutine")
    _takes(TrainController.get_result, "self")
    if TrainController.worker_group_cls is not WorkerGroup:
        raise TypeError("TrainController.worker_group_cls is another class")
    _is_called(TrainController, "worker_group_cls")
    _is_called(FixedScalingPolicy, "_maybe_send_resource_request")
    _is_called(ScalingPolicy, "_cancel_resource_request")
    _takes(ScalingPolicy.after_controller_start, "self", "train_run_context")
    FixedScalingPolicy(scaling_config=ScalingConfig(num_workers=1))._cancel_resource_request()  # though none was sent
    _is_called(WorkerGroup, "_create_placement_group")
    _takes(WorkerGroup._create_placement_group, "self", "scaling_config", "worker_group_context")


def own_trainer() -> Any:
    """Ray Train's own trainer."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


@functools.cache
def lean_trainer() -> Any:
    """A trainer whose controller runs in this process, without Ray's cleaner of placement groups.

    Nor does it tell Ray Data's coordinator what it needs, another process, which the first trial would wait for: an
    autoscaler sees the workers' placement group.

    It notes what it holds of the cluster in the file `held`, an argument of its own. Should its process die, this has
    to be given back: Ray gives back what an actor has reserved only when the whole job has ended, and whoever takes the
    trial up again would wait until then. Only where `has("lean trainer")`.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    not_needed = (DatasetsCallback, PlacementGroupCleanerCallback)

    class SilentPolicy(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class LeanTrainer(own_trainer()):  # type: ignore[misc]
        def __init__(self, *arguments: Any, held: Path, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._held = held

        def _create_default_callbacks(self) -> list[Any]:
            return [each for each in super()._create_default_callbacks() if not isinstance(each, not_needed)]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            held = self._held

            class NotedWorkerGroup(WorkerGroup):
                def _create_placement_group(self, *arguments: Any, **named: Any) -> Any:
                    handle = super()._create_placement_group(*arguments, **named)
                    write_whole(held, handle.placement_group.id.hex())
                    return handle

            class Controller(TrainController):
                worker_group_cls = NotedWorkerGroup

            policy = SilentPolicy(scaling_config=arguments["scaling_policy"].scaling_config)
            controller = Controller(**{**arguments, "scaling_policy": policy})
            asyncio.run(controller.run())
            return controller.get_result()

    return LeanTrainer


# Why a trial failed


def _probe_errors() -> None:
    from ray.train.v2._internal.exceptions import (
        RayTrainError,
        WorkerGroupStartupTimeoutError,
        WorkerHealthCheckFailedError,
    )

    if not issubclass(WorkerGroupStartupTimeoutError, RayTrainError):
        raise TypeError("WorkerGroupStartupTimeoutError is no RayTrainError")
    if WorkerHealthCheckFailedError("", KeyError("x")).health_check_failure.args != ("x",):
        raise TypeError("WorkerHealthCheckFailedError has another cause")


def is_rays(error: BaseException) -> bool:
    """Whether Ray itself raised it, by the module of its class: no import that could fail in the place of `error`."""
    return any(kind.__module__.partition(".")[0] == "ray" for kind in type(error).__mro__)


def is_startup_timeout(error: BaseException) -> bool:
    """Whether a trial's workers could not be started in time, for want of resources."""
    return any(kind.__name__ == "WorkerGroupStartupTimeoutError" for kind in type(error).__mro__)


def root_cause(error: BaseException) -> BaseException:
    """What Ray has wrapped: with a traceback a worker's own exception, with the worker's data that of its death."""
    inner = getattr(error, "_base_exc", error)
    cause: BaseException = getattr(inner, "health_check_failure", inner)
    return cause if isinstance(cause, BaseException) else error


def exit_detail(text: str) -> str:
    """Of the text of a worker's death, how it ended; "" where it is another text."""
    return text.partition("Worker exit detail: ")[2].partition(" Some common causes")[0]


# Ray Tune


def _probe_silence() -> None:
    from ray.tune.progress_reporter import TrialProgressCallback

    _is_called(TrialProgressCallback, "_print")
    _takes(TrialProgressCallback._print, "self", "msg")
    _takes(TrialProgressCallback.display_result, "self", "trial", "result", "error", "done")


def silent_callbacks() -> list[Any]:
    """A callback in the place of Tune's own, which tells of each trial even when it is told to be silent."""
    if not has("silence"):
        return []
    from ray.tune.progress_reporter import TrialProgressCallback

    class Silent(TrialProgressCallback):
        def _print(self, msg: str) -> None:
            pass

        def display_result(self, *_: Any, **__: Any) -> None:
            pass

    return [Silent()]


def _probe_concurrency() -> None:
    from ray.tune.search.basic_variant import BasicVariantGenerator

    generator = BasicVariantGenerator(max_concurrent=1)
    generator.max_concurrent = 2
    _takes(generator.next_trial)
    if "max_concurrent" not in BasicVariantGenerator.next_trial.__code__.co_names:
        raise AttributeError("BasicVariantGenerator.next_trial does not look at max_concurrent")


def trials_in_order(at_once: Callable[[], int]) -> Any:
    """A search algorithm that gives out trials in their order. `at_once` is asked before each; without Ray's private
    part, once."""
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if not has("concurrency"):
        return BasicVariantGenerator(max_concurrent=at_once())

    class AsCapacityAllows(BasicVariantGenerator):
        """Tune asks for the next trial all the time, and takes None for "not now"."""

        def next_trial(self) -> Any:
            self.max_concurrent = at_once()
            return super().next_trial()

    return AsCapacityAllows()


def on_the_head() -> dict[str, float]:
    """The resources that keep a task on the head of the cluster that this process is connected to."""
    import ray

    there = ray.cluster_resources()
    name = "node:__internal_head__"
    if name not in there:  # then its address, which is documented
        name = f"node:{ray.get_runtime_context().gcs_address.rpartition(':')[0].strip('[]')}"
    return {name: 0.001} if name in there else {}


def _probe_pruning() -> None:
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        time_attr="step", metric="m", mode="min", max_t=9, grace_period=1, reduction_factor=2, stop_last_trials=False
    )
    answers = []
    for key, value in (("good", 1.0), ("bad", 2.0)):
        scheduler.on_trial_add(None, tune_trial(key))  # type: ignore[arg-type]
        answers.append(scheduler.on_trial_result(None, tune_trial(key), {"step": 1, "m": value}))  # type: ignore[arg-type]
    if answers != ["CONTINUE", "STOP"]:
        raise TypeError(f"ASHAScheduler answered {answers}")


@dataclass(frozen=True)
class _TuneTrial:
    trial_id: str


def tune_trial(key: str) -> Any:
    """All that ASHA reads of one of Tune's trials."""
    return _TuneTrial(key)


# What Ray reads when it is imported


_CONSTANTS = {  # the variable that each is read from, and what it is without
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1"),
    "ENABLE_RAY_CLUSTER": ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1" if sys.platform == "linux" else "0"),
}


def _probe_init() -> None:
    import ray

    init = inspect.unwrap(ray.init)
    known = {*inspect.signature(init).parameters, *init.__code__.co_consts}  # it looks for them among its **kwargs
    if lacking := {"_node_ip_address", "_temp_dir"} - known:
        raise TypeError(f"ray.init takes no {', '.join(sorted(lacking))}")


def own_cluster_options(folder: str | None) -> dict[str, Any]:
    """For `ray.init`, of a cluster of our own: it listens on 127.0.0.1, and keeps its sockets in `folder`, if given.

    Without these options Ray follows the environment: RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which `ray_process` sets,
    and RAY_TMPDIR.
    """
    if has("init"):
        return {"_node_ip_address": "127.0.0.1", **({"_temp_dir": folder} if folder else {})}
    if folder:
        os.environ["RAY_TMPDIR"] = str(Path(folder).parent)
    return {}


def _probe_agent_port() -> None:
    from ray._private.parameter import RayParams

    _takes(RayParams, dashboard_agent_listen_port=0)


@contextlib.contextmanager
def agent_on_a_free_port() -> Iterator[None]:
    """Has a cluster that is started meanwhile take any free port for its agent, which ray.init cannot be told.

    By itself it takes 52365. Where another cluster of this machine has that, the agent tries again and again, and the
    start waits for it: some four seconds.
    """
    if not has("agent port"):
        yield
        return
    from ray._private.parameter import RayParams

    made = RayParams.__init__

    @functools.wraps(made)
    def init(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **{"dashboard_agent_listen_port": 0, **options})

    setattr(RayParams, "__init__", init)  # noqa: B010 - mypy knows it as a method
    try:
        yield
    finally:
        setattr(RayParams, "__init__", made)  # noqa: B010


def _probe_environment() -> None:
    import ray._raylet
    from ray._private import ray_constants

    raylet: Any = ray._raylet
    for name in _CONSTANTS:
        if not isinstance(getattr(ray_constants, name), bool):
            raise TypeError(f"ray_constants.{name} is no bool")
    if not callable(raylet.Config.initialize) or not callable(raylet.AuthenticationTokenLoader.instance().reset_cache):
        raise TypeError("Config.initialize or AuthenticationTokenLoader.reset_cache cannot be called")


def read_environment_again() -> None:
    """Has Ray, where it is imported, read its configuration and token from the environment anew.

    In this order: a thread that still ends would look for the token of a mode that is over.
    """
    raylet: Any = sys.modules.get("ray._raylet")
    if raylet is not None:
        with contextlib.suppress(AttributeError):
            raylet.Config.initialize("")
            raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def environment_of_now() -> Iterator[None]:
    """Has Ray follow the environment as it is now in what it reads when it is imported, which may have been long ago.

    These are its hook for `uv run`, and whether it takes 127.0.0.1 for this machine's address: a cluster of our own
    that follows another one would otherwise listen to all the world.
    """
    constants: Any = sys.modules.get("ray._private.ray_constants")
    before = {name: getattr(constants, name) for name in _CONSTANTS if hasattr(constants, name)}
    for name in before:
        variable, default = _CONSTANTS[name]
        setattr(constants, name, os.environ.get(variable, default) in ("1", "true", "True"))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


USES = {
    "lean trainer": Use(
        "parts of Ray Train's trainer and worker group",
        "its own trainer runs, with three more processes for each trial, so that trials start more slowly",
        _probe_lean_trainer,
    ),
    "errors": Use(
        "the errors of Ray Train",
        "the reason why a trial failed may be told less exactly",
        _probe_errors,
    ),
    "silence": Use(
        "the callback that prints Tune's table", "Tune's own lines stand beside the table in a notebook", _probe_silence
    ),
    "concurrency": Use(
        "the search algorithm's limit of concurrent trials",
        "as many trials run at once as the cluster had capacity for at the start, also when it grows or shrinks",
        _probe_concurrency,
    ),
    "pruning": Use("ASHA as it is called here", "no trial is pruned; every trial takes all its steps", _probe_pruning),
    "init": Use(
        "the options of ray.init for address and folder",
        "the environment says both; if `ss -tln` shows Ray on another address than 127.0.0.1, stop and use ray 2.60",
        _probe_init,
    ),
    "agent port": Use(
        "the port of a node's agent",
        "a sweep starts some seconds later where another one runs on the same machine",
        _probe_agent_port,
    ),
    "environment": Use(
        "what reads its configuration and token again",
        "use a new process for each cluster, as the second one of a process may not be reached",
        _probe_environment,
    ),
}
