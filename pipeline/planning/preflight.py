"""Everything that can be known to fail before anything starts, in the order in which it is quickest to know."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline import measures, mlflow_private
from pipeline.data.contract import find_task, score_problem
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.sequential import open_loader
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.running.cluster import check_address, fit, local_resources
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.tasks.check import check_model, check_task
from pipeline.tracking.destination import Destination
from pipeline.tracking.store import StoreUnreachable
from pipeline.tracking.tracker import Tracker
from pipeline.training.build import DTYPES, arm_of, build_model, compiling
from pipeline.training.observer import load_observer
from pipeline.training.observer_contract import observer_problem
from pipeline.training.optimizers import optimizer_problem, state_per_parameter
from tiny_onn import torch_private
from tiny_onn.arm import arm
from tiny_onn.cost_contract import twin_of

_EPOCHS = 20  # of a plan that is looked at; the later ones are mixed alike
_RANDOM = ("normal_", "uniform_")
_SPARE_BYTES = 100e6  # for data, metrics, figures and logs


def check_start(
    trials: Sequence[Trial], output: Path, address: str | None, arms: str = "training.arm"
) -> tuple[str, ...]:
    """Arms, tasks and models of one's own keep their contracts, the trials fit the machine, the cluster answers, the
    disk has room.

    Args:
        arms: the setting that names the arms.

    Returns:
        what a user should know before the trials start, a sentence each.

    Raises:
        UserError: names the field or option, what was found and what was expected.
    """
    experiments = [trial.experiment for trial in trials]
    for experiment in {_of_the_arm(experiment): experiment for experiment in experiments}.values():
        _check_arm(experiment, arms)
    for data in {e.data.model_dump_json(): e.data for e in experiments}.values():
        check_task(data)
    for experiment in {_of_the_model(e): e for e in experiments if _is_own(e)}.values():
        check_model(experiment)
    for experiment in {_of_the_observer(e): e for e in experiments if e.training.observer}.values():
        _check_observer(experiment)
    if address is None:
        here = local_resources()
        for experiment in experiments:
            fit(experiment.workers, (here,), 1)
            compiling(experiment.training, "cuda" if experiment.workers.gpus else "cpu")
    else:
        check_address(address)
    _check_disk(experiments, output)
    return (*_disguised(experiments), *torch_private.missing())


def check_metrics(experiment: Experiment) -> None:
    """Whether the task's own scores that a study or a scheduler compares by are there, with a better end.

    Raises:
        UserError: one is not; names the setting.
    """
    task = experiment.data.task
    for setting, metric in experiment.compared_by().items():
        if measures.score_of(metric):
            score = find_task(task).score(metric)
            if score is None or (score.best is None and setting.startswith("sweep.")):
                raise UserError(score_problem(setting, metric, task))


def check_data(trials: Sequence[Trial], prepared: Prepared) -> None:
    """Every rank of every trial has enough rows to take as many steps as the others, and every task of training that
    goes task after task has a step.

    Raises:
        UserError: it has not.
    """
    mixed = [trial.experiment for trial in trials if trial.experiment.data.order == "mixed"]
    shapes = {
        (e.training.batch_tokens, e.training.seed, e.workers.count): e.training.steps
        for e in sorted(mixed, key=lambda e: e.training.steps)
    }
    for (batch_tokens, seed, count), steps in shapes.items():
        loader = Loader(prepared, "train", batch_tokens, seed, 0, count)
        for epoch in range(_EPOCHS):
            steps -= loader.steps_per_epoch(epoch)
            if steps <= 0:
                break
    for experiment in {
        (e.training.batch_tokens, e.workers.count, e.training.steps): e
        for e in (trial.experiment for trial in trials)
        if e.data.order == "sequential"
    }.values():
        open_loader(experiment, prepared, 0, experiment.workers.count)


def open_tracker(destination: Destination, output: Output, later: bool, console: Console) -> Tracker:
    """The tracker at `destination`. With `later` one that does not answer is told, and waited for while training runs.

    Raises:
        UserError: the store cannot be used.
    """
    store, artifacts = destination.store(output)
    try:
        tracker = Tracker(store, destination.experiment, artifacts, later)
    except StoreUnreachable as error:
        raise UserError(f"{error} To train now and deliver later, add --allow-offline-tracking.") from None
    for lacking in mlflow_private.missing():
        console.print(lacking, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if tracker.problem:
        warning = f"{tracker.problem}\nTraining starts anyway; metrics are kept on disk until the tracker answers."
        console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
    return tracker


def checkpoint_bytes(experiment: Experiment) -> int:
    """What the checkpoints of one trial take at most: parameters and the optimizer's state, of the newest that are
    kept, of the best, and of the one that is being written."""
    training = experiment.training
    numbers = parameters_of(experiment) * (1 + state_per_parameter(training))
    return math.ceil(numbers * torch.finfo(DTYPES[training.precision]).bits / 8) * (training.keep_checkpoints + 2)


def parameters_of(experiment: Experiment) -> int:
    """How many parameters its model has."""
    try:
        with torch.device("meta"), _NotFilled():
            return sum(p.numel() for p in build_model(experiment, "meta").parameters())
    except UserError:
        raise
    except Exception:  # a model of one's own need not be one that can be built without its numbers
        return sum(p.numel() for p in build_model(experiment).parameters())


class _NotFilled(TorchFunctionMode):
    """Tensors without numbers are not filled with random ones either, for which torch would import its compiler."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "") in _RANDOM and isinstance(arguments[0], Tensor) and arguments[0].is_meta:
            return arguments[0]
        return function(*arguments, **(options or {}))


def _is_own(experiment: Experiment) -> bool:
    """Whether somebody else has written its model or its task."""
    return experiment.model.build is not None or bool(experiment.model.options) or ":" in experiment.data.task


def _of_the_model(experiment: Experiment) -> str:
    """Equal for experiments of which `check_model` need look at one."""
    return f"{experiment.data.task} {experiment.data.max_tokens} {experiment.model} {_of_the_arm(experiment)}"


def _of_the_arm(experiment: Experiment) -> str:
    """Equal for experiments that `_check_arm` need look at once."""
    training = experiment.training
    of_training = (training.arm, training.parts, training.engine, training.compile, training.optimizer)
    return f"{of_training} {experiment.model.density}"


def _disguised(experiments: Sequence[Experiment]) -> Iterator[str]:
    """A warning for each cost of one's own that is a known one but for what cancels."""
    for name in sorted({e.training.arm for e in experiments if ":" in e.training.arm}):
        cost = arm(name).cost
        if cost is not None and (twin := twin_of(cost)):
            yield (
                f"Warning: {name} ranks experts exactly as {twin} does, so the two train alike: a factor that all "
                "experts of a token share cancels in mas(C). Use a cost that depends on the expert, as on its weight."
            )


def _check_arm(experiment: Experiment, place: str) -> None:
    training = experiment.training
    try:
        arm = arm_of(training)
    except Exception as error:  # whatever somebody's module does when it is imported
        imported = isinstance(error, ValueError) and error.__cause__ is None  # then it says itself what was expected
        how = (
            ". Expected package.module:attribute, an Arm, a TokenCost or a LayerCost, which the workers can import "
            "too: `pip install -e` its package, or name its folder in PYTHONPATH."
        )
        text = f"{place}: {training.arm!r} cannot be used ({error})" + ("" if imported else how)
        raise UserError(text) from error
    if problem := optimizer_problem(training, arm):
        raise UserError(f"training.optimizer: {training.optimizer!r} {problem}")
    if problem := arm.problem(experiment.model.density):
        raise UserError(f"{place}: {training.arm!r} {problem} (model.density: {experiment.model.density})")
    if arm.measures_layers:
        for field, value, needed in (("engine", training.engine, "fused"), ("compile", training.compile, "blocks")):
            if value == needed:
                raise UserError(
                    f"training.{field}: {value} cannot run {training.arm!r}, a cost of a whole layer; use auto"
                )


def check_output(output: Path) -> int:
    """How many bytes are free in the output folder, which is made if it is not there.

    Raises:
        UserError: it cannot be written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):  # a disk may be read-only
            pass
        return shutil.disk_usage(output).free
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be used ({error}). Expected a folder that can be written to."
        ) from error


def _of_the_observer(experiment: Experiment) -> str:
    """Equal for experiments in which an observer sees the same kind of model."""
    return f"{experiment.training.observer} {experiment.model} {_of_the_arm(experiment)}"


def _check_observer(experiment: Experiment) -> None:
    name = experiment.training.observer
    assert name is not None
    if problem := observer_problem(load_observer(name), experiment):
        raise UserError(
            f"training.observer: {name!r} {problem}, with {experiment.training.arm!r} and {experiment.model.layers} "
            "layers"
        )


def _check_disk(experiments: Sequence[Experiment], output: Path) -> None:
    free = check_output(output)
    sizes: dict[str, int] = {}
    needed = _SPARE_BYTES
    for experiment in experiments:
        training = experiment.training
        key = f"{experiment.model} {training.precision} {training.keep_checkpoints} {training.optimizer}"
        if key not in sizes:
            sizes[key] = checkpoint_bytes(experiment)
        needed += sizes[key]
    if free < needed:
        raise UserError(
            f"--output {output}: {free / 1e6:,.0f} MB are free, but {needed / 1e6:,.0f} MB may be needed for the "
            f"checkpoints and records of {len(experiments)} trials. Make room, name another folder, or lower "
            "training.keep_checkpoints."
        )
