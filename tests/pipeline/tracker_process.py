"""What a test has to see a process of its own do to the store of an output folder."""

import resource
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.layout import Output
from pipeline.tracking.tracker import Tracker
from tests.pipeline.delivery_samples import leave
from tests.pipeline.sweep_samples import EXTRA, experiment, trials


def in_processes(work: Callable[..., Any], *each: tuple[Any, ...]) -> list[Any]:
    """`work` of each tuple, all at once, in processes that have imported MLflow and opened nothing."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "mlflow.store.tracking.sqlalchemy_store", __name__])
    queue = context.Queue()
    processes = [context.Process(target=_answer, args=(work, queue, arguments)) for arguments in each]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=200) for _ in processes]
    for process in processes:
        process.join()
    return answers


def _answer(work: Callable[..., Any], queue: Any, arguments: tuple[Any, ...]) -> None:
    try:
        queue.put(work(*arguments))
    except BaseException as error:
        queue.put(repr(error))
        raise


def deliver_one(root: Path, number: int) -> dict[Path, str]:
    """Opens the store, whether it is there or not, and delivers the trial `number` of a sweep."""
    output = Output(root)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    trial, folder = trials(output, experiment("six"))[number]
    leave(trial, folder, "FINISHED")
    tracker.start_trial(folder, trial, "six", EXTRA, "FINISHED")
    return tracker.close("KILLED")


def fill_the_disk(root: Path) -> tuple[str, dict[Path, str]]:
    """Delivers a trial to a file that may grow no further; what the tracker says of it, then and at the close."""
    output = Output(root)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    trial, folder = trials(output, experiment("full"))[0]
    delivery = tracker.start_trial(folder, trial, "full", EXTRA)
    size = (root / "mlflow.db").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    leave(trial, folder, "FINISHED")
    tracker.end_trial(delivery, "FINISHED")
    return str(tracker.problem), tracker.close("KILLED", wait_s=0)
