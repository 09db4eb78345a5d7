"""One trial: one Ray Train run, from its settings to its result or to the reason why it failed."""

import contextlib
import importlib
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.ray_private import exit_detail, is_rays, is_startup_timeout, root_cause
from pipeline.records.attempts import (
    Attempt,
    AttemptTaken,
    last_attempt,
    take_attempt,
    write_attempt,
    write_failure,
)
from pipeline.remote.attempt import Overtaken
from pipeline.remote.index import has_ended
from pipeline.remote.trial import RemoteTrial
from pipeline.running.kept_workers import kept_workers, serve
from pipeline.running.provenance import note_attempt
from pipeline.running.trial_spec import TrialSpec
from pipeline.storage.storage import StorageError, patiently

TrainFunction = Callable[[TrialSpec], None]


class TrialFailed(Exception):
    """A trial did not finish. The message names each failed rank and its error."""


def name_of(train_fn: TrainFunction | str) -> str:
    """The train function, or its name, as a TrialSpec has it, "package.module:name"."""
    return train_fn if isinstance(train_fn, str) else f"{train_fn.__module__}:{train_fn.__qualname__}"


def held_by(folder: TrialFolder) -> Path:
    """Notes what the trial holds of the cluster, so that it can be given back when its driver dies."""
    return folder.ray / "held"


def run_trial(spec: TrialSpec) -> None:
    """Trains a trial; returns when it has ended, as its folder, or the storage, says.

    Each attempt is a Ray Train run under a new name, so that Ray never takes up old state by itself: the train
    function goes on from its own checkpoints. The death of a worker, while it is being started too, and what else
    `may_pass` are survived `workers.max_failures` times.

    Raises:
        TrialFailed: also written in folder.failure.
    """
    folder, experiment, remote = spec.folder, spec.experiment, spec.remote
    folder.failure.unlink(missing_ok=True)
    write_whole(folder.config, experiment.model_dump_json(indent=1))
    died = last_attempt(folder)
    if died and died.session == spec.session:  # Tune has started us again
        write_whole(folder.survived(died.number), "the process that drove the trial ended without a word")
    attempt: int | None = None
    for left in reversed(range(experiment.workers.max_failures + 1)):
        attempt = _begin_attempt(spec, remote, attempt)
        try:
            _fit(replace(spec, attempt=attempt))
            if not (has_ended(patiently(remote.index)) if remote else folder.ended):
                raise TrialFailed(f"the workers ended without an error, but wrote no {folder.result.name}")
            return
        except Exception as error:
            reason = explain(error)
            if left and may_pass(error) and not (remote and _is_overtaken(remote, attempt)):
                write_whole(folder.survived(attempt), reason)
                continue
            write_whole(folder.failure, reason)
            if remote and not _is_overtaken(remote, attempt):
                with contextlib.suppress(StorageError):
                    patiently(partial(remote.put_attempt, attempt, spec.session, reason))
            raise TrialFailed(reason) from None


def _begin_attempt(spec: TrialSpec, remote: RemoteTrial | None, repeats: int | None) -> int:
    """The number of the new attempt, which follows attempt `repeats` of this driver; None: the last that there is.

    Raises:
        TrialFailed: another driver has begun it. The trial is left to that one.
    """
    folder, session, experiment = spec.folder, spec.session, spec.experiment
    folder.placement.unlink(missing_ok=True)  # there again once the attempt has its workers
    if remote is None:
        try:
            attempt = take_attempt(folder, session, repeats).number
        except AttemptTaken as error:
            raise TrialFailed(str(error)) from None
        note_attempt(folder, attempt, session, experiment)
        return attempt
    last, here = patiently(remote.attempt) if repeats is None else None, last_attempt(folder)
    after = repeats or (last["attempt"] if last else here.number if here else 0)
    try:
        attempt = patiently(partial(remote.take_attempt, session, after, uuid.uuid4().hex))
    except Overtaken as error:
        write_failure(folder, session, str(error))
        raise TrialFailed(str(error)) from None
    noted = note_attempt(folder, attempt, session, experiment, patiently(remote.noted))
    patiently(lambda: remote.attempts_file.write_bytes(noted.encode()))
    write_attempt(folder, Attempt(attempt, session))
    return attempt


def _is_overtaken(remote: RemoteTrial, attempt: int) -> bool:
    """Whether another command has taken the trial up meanwhile; no, as long as the storage does not say so."""
    try:
        patiently(remote.part(attempt).check_ours)
    except Overtaken:
        return True
    except (StorageError, UserError):
        return False
    return False


def _fit(spec: TrialSpec) -> None:
    """Runs an attempt, on workers that the trial before has left where it may be."""
    if spec.kept is not None:
        kept_workers().train(spec, partial(_run_keeping, spec))
        return

    def train(given: dict[str, TrialSpec]) -> None:
        module, _, name = given["spec"].train_fn.partition(":")
        getattr(importlib.import_module(module), name)(given["spec"])

    _run_workers(spec, train, {"spec": spec}, held_by(spec.folder))


def _run_keeping(spec: TrialSpec, orders: Path, held: Path) -> None:
    def train(given: dict[str, Path]) -> None:
        import ray.train

        from pipeline.training.afresh import Afresh

        serve(given["orders"], ray.train.get_context().get_world_rank(), Afresh().begin)

    _run_workers(spec, train, {"orders": orders}, held)


def _run_workers(spec: TrialSpec, train: Callable[[Any], None], given: dict[str, Any], held: Path) -> None:
    """Starts workers as the trial asks for, in which `train` gets `given`; returns when they have ended."""
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    from pipeline.running.trainer import new_trainer  # seconds of imports, only where trials run
    from pipeline.training.rendezvous import ProcessGroup

    folder, workers = spec.folder, spec.experiment.workers
    on_gpu = workers.gpus > 0
    share_a_gpu = workers.gpus < 1 and workers.count > 1  # which NCCL refuses
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if on_gpu else {})
    new_trainer(
        train,
        train_loop_config=given,
        held=held,
        backend_config=ProcessGroup(
            backend="nccl" if on_gpu and not share_a_gpu else "gloo",
            timeout_s=workers.timeout_s,
            placement=str(folder.placement),
        ),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=on_gpu, resources_per_worker=resources, placement_strategy="PACK"
        ),
        run_config=RunConfig(
            name=f"attempt-{spec.attempt:03d}-{uuid.uuid4().hex[:8]}",
            storage_path=str(folder.ray),
            failure_config=FailureConfig(
                max_failures=0,
                controller_failure_limit=2,
                max_preemption_failures=2,  # the rest is for run_trial
            ),
            logging_config=LoggingConfig(log_level="INFO" if spec.verbose else "ERROR"),
        ),
    ).fit()


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help: after a death, or where network, device or disk failed. What the train function
    itself found wrong would come again, and for room Ray has waited in vain by itself, several times over."""
    ranks: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = [root_cause(each) for each in (getattr(error, "controller_failure", error), *ranks.values())]
    return all(
        (is_rays(each) or isinstance(each, RuntimeError | OSError)) and not is_startup_timeout(each) for each in causes
    )


def explain(error: BaseException) -> str:
    """Why a trial failed, as text: first a line for each rank that failed, then all that is known."""
    ranks: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not ranks:
        cause = root_cause(getattr(error, "controller_failure", error))
        if exit_detail(str(cause)):
            return f"{_in_a_line(cause)}\n\n{cause}"
        return f"{type(cause).__name__}: {cause}" if str(cause) else "".join(traceback.format_exception(cause))
    lines = [f"rank {rank}: {_in_a_line(failure)}" for rank, failure in sorted(ranks.items())]
    return "\n".join([*lines, "", str(error)])


def _in_a_line(failure: BaseException) -> str:
    root = root_cause(failure)
    text = " ".join(str(root).split())
    text = exit_detail(text) or text
    return f"{type(root).__name__}: {text}" if len(text) < 400 else f"{type(root).__name__}: {text[:400]} ..."
