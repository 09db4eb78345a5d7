"""Workers that stay when their trial has ended, and train the next one.

To start a trial's workers takes seconds of every core: processes, their import of torch, and of its compiler. On a
cluster of this machine the process that drives trials therefore keeps the workers of the last trial. It gives them
trials in files, which they look for; a trial that fails, or whose workers die, takes its workers with it.
"""

import contextlib
import functools
import importlib
import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.files import create_mark, read_json, write_whole
from pipeline.layout import TrialFolder
from pipeline.running.trial_spec import TrialSpec
from pipeline.settings.config import Experiment, WorkersConfig

_LOOK_EVERY_S = 0.02
_END_S = 60.0  # for workers to end that have nothing to do
Run = Callable[[Path, Path], None]
"""Starts workers that `serve` the folder, writes what they hold of the cluster to the file, and returns when they have
ended. What it raises is why they ended."""


class WorkerGroup:
    """Workers that train one trial after the other; they are started with the first.

    Args:
        orders: a folder for this group alone.
        held: where `run` notes what they hold of the cluster.
    """

    def __init__(self, spec: TrialSpec, run: Run, orders: Path, held: Path) -> None:
        self.workers = spec.experiment.workers
        self._run, self._orders, self._held, self._first = run, orders, held, spec.folder
        self._trials = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="worker-group", daemon=True)

    @property
    def idle(self) -> bool:
        """Whether they are there, and can be given a trial; asked when they have none."""
        return self._thread.is_alive()

    def train(self, spec: TrialSpec) -> None:
        """Returns when the trial has ended on all workers, or when they have ended.

        Raises:
            BaseException: why they have ended.
        """
        self._trials += 1
        if self._trials > 1:
            with contextlib.suppress(OSError):
                write_whole(spec.folder.placement, self._first.placement.read_text(encoding="utf-8"))
        write_whole(_order(self._orders, self._trials), _as_json(spec))
        if self._trials == 1:
            self._thread.start()
        marks = [_mark(self._orders, self._trials, rank) for rank in range(self.workers.count)]
        while not all(mark.exists() for mark in marks):
            if not self._thread.is_alive():
                if self._error is not None:
                    raise self._error
                return
            self._thread.join(_LOOK_EVERY_S)

    def end(self) -> None:
        """Ends the workers, which are idle, and waits until the cluster has back what they held."""
        try:
            create_mark(self._orders / "end")
        except OSError:
            self.abandon()
        self._thread.join(_END_S)

    def abandon(self) -> None:
        """Ends the workers, whatever they do: without what they hold of the cluster they cannot live."""
        from pipeline.running.trainer import give_back  # and Ray, which reads the environment as it is imported

        if self._thread.is_alive():
            with contextlib.suppress(Exception):  # of a cluster that is going down itself
                give_back(self._held)
            self._thread.join(_END_S)

    def _work(self) -> None:
        try:
            self._run(self._orders, self._held)
        except BaseException as error:
            self._error = error
        finally:
            self._held.unlink(missing_ok=True)


class KeptWorkers:
    """The workers that this process keeps: one group at most."""

    def __init__(self) -> None:
        self._group: WorkerGroup | None = None

    def train(self, spec: TrialSpec, run: Run) -> None:
        """Trains a trial: on the workers from before where they are such as it asks for, else on new ones.

        Raises:
            BaseException: why its workers ended. They are not kept.
        """
        group = self.group_for(spec.experiment.workers)
        if group is None:
            assert spec.kept is not None
            orders = spec.kept / f"workers-{uuid.uuid4().hex[:8]}"
            orders.mkdir(parents=True)
            group = WorkerGroup(spec, run, orders, held_by_process(spec.kept))
        self._group = None
        try:
            group.train(spec)
        except BaseException:  # also of the disk, on which trials are given to workers that are well
            group.abandon()
            raise
        self._group = group

    def group_for(self, workers: WorkersConfig) -> WorkerGroup | None:
        """The group, where it is such as `workers` says; another one is ended."""
        group, self._group = self._group, None
        if group is None or not group.idle:
            return None
        if group.workers == workers:
            return group
        group.end()
        return None


@functools.cache
def kept_workers() -> KeptWorkers:
    """Those of this process. It drives one trial at a time; Tune gives it the next."""
    return KeptWorkers()


def held_by_process(kept: Path) -> Path:
    """Notes what the workers that this process keeps hold of the cluster. The name says which process."""
    return kept / f"held-{os.getpid()}"


def give_back_of_dead(kept: Path) -> None:
    """Gives back what workers held whose driver is gone: Tune ends processes that it needs no longer, and Ray gives
    back what they reserved only when the whole command ends. All are processes of this machine."""
    from pipeline.running.trainer import give_back

    for held in kept.glob("held-*"):
        if not _is_alive(int(held.name.rpartition("-")[2])):
            give_back(held)


def serve(orders: Path, rank: int, between: Callable[[], None] = lambda: None) -> None:
    """What every kept worker runs: trains the trials that are put into `orders`, until it is to end.

    Workers that Ray has started again begin with the newest trial.

    Args:
        between: called after each trial, before the next.
    """
    newest = max((int(path.stem.rpartition("-")[2]) for path in orders.glob("trial-*.json")), default=1)
    for number in itertools.count(newest):
        spec = _wait_for(orders, number)
        if spec is None:
            return
        module, _, name = spec.train_fn.partition(":")
        getattr(importlib.import_module(module), name)(spec)
        create_mark(_mark(orders, number, rank))
        between()


def _wait_for(orders: Path, number: int) -> TrialSpec | None:
    place, end = _order(orders, number), orders / "end"
    while not place.exists():
        if end.exists():
            return None
        time.sleep(_LOOK_EVERY_S)
    return _from_json(read_json(place))


def _order(orders: Path, number: int) -> Path:
    return orders / f"trial-{number:06d}.json"


def _mark(orders: Path, number: int, rank: int) -> Path:
    return orders / f"done-{number:06d}-{rank}"


def _as_json(spec: TrialSpec) -> str:
    given = dict(_fields(spec))
    return json.dumps(given | {"folder": str(spec.folder.root), "experiment": spec.experiment.model_dump(mode="json")})


def _fields(spec: TrialSpec) -> Iterator[tuple[str, Any]]:
    for name in ("key", "data", "train_fn", "session", "user_code", "verbose", "attempt"):
        yield name, getattr(spec, name)


def _from_json(given: dict[str, Any]) -> TrialSpec:
    folder, experiment = given.pop("folder"), given.pop("experiment")
    return TrialSpec(
        folder=TrialFolder(Path(folder)), experiment=Experiment.model_validate_json(json.dumps(experiment)), **given
    )


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
