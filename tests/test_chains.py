"""The chains of docs/architecture.md are those of the source, and those that a run goes through."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import pipeline.records.spool
import pipeline.running.sweep
import pipeline.training.checkpoint
from pipeline import api
from pipeline.errors import UserError
from pipeline.layout import Output, TrialFolder
from pipeline.records.state import State
from pipeline.remote.attempt import RemoteAttempt
from pipeline.remote.sweep import RemoteSweep
from pipeline.remote.trial import RemoteTrial
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import trials_of
from pipeline.storage.opening import open_storage
from pipeline.storage.storage import Storage
from pipeline.tracking.courier import Courier
from tests.chains import PAGE, Hop, chains, problems
from tests.pipeline.mlflow_server import wait_for
from tests.pipeline.remote.training import run_attempt
from tests.pipeline.samples import SMALL, small_data, small_experiment, write_config
from tests.pipeline.sweep_samples import EXTRA, experiment, write_spool
from tests.pipeline.tracking.tracked import tracker_of, trial_of

CHAINS = chains(PAGE.read_text(encoding="utf-8"))
POINT, STORED_POINT = "A metric point, from its step to MLflow", "A metric point, with --storage"
TRIAL, RESTORE, STORED_RESTORE = "A trial, from YAML to worker", "A restore", "A restore, with --storage"
_DECORATORS = ("renamed.py",)


class Stacks:
    """The functions of the pipeline that are on the stack each time that a patched function is called."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[str, str]]] = []

    def around(self, call: Callable[..., Any], only: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        """The call, which notes the stack where `only` says so of its arguments."""

        def noting(*arguments: Any, **options: Any) -> Any:
            if only(*arguments):
                self.seen.append(list(reversed(list(_frames()))))
            return call(*arguments, **options)

        return noting


def _frames() -> Iterator[tuple[str, str]]:
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "pipeline" in path.parts and "tests" not in path.parts and path.name not in _DECORATORS:
            name = frame.f_code.co_qualname
            if not name.endswith((".<listcomp>", ".<genexpr>", ".<lambda>")):
                yield path.name, name
        frame = frame.f_back  # type: ignore[assignment]


def part(title: str, first: str, last: str, nth: int = 0) -> list[tuple[str, str]]:
    """The functions of a chain from one to another, as (file, name); `nth`: of several of the name `first`."""
    hops: list[Hop] = CHAINS[title]
    start = [i for i, hop in enumerate(hops) if hop.name == first][nth]
    end = next(i for i in range(start, len(hops)) if hops[i].name == last)
    return [(hop.file.name, hop.name) for hop in hops[start : end + 1]]


def test_the_page_has_the_chains() -> None:
    assert list(CHAINS) == [POINT, STORED_POINT, TRIAL, RESTORE, STORED_RESTORE]


@pytest.mark.parametrize("title", CHAINS)
def test_each_function_is_there_and_calls_the_next(title: str) -> None:
    assert problems(CHAINS[title]) == []


def test_a_chain_that_is_not_so_is_found() -> None:
    """A function that is gone, one that is left out, and two that do not call each other."""
    hops = CHAINS[POINT]
    renamed = [dataclasses.replace(hop, name="no_such") if hop.name == "deliver" else hop for hop in hops]
    assert "delivery.py has no no_such" in problems(renamed)
    shorter = [hop for hop in hops if hop.name != "Tracker.ship"]
    assert "Courier._ship does not name deliver" in problems(shorter)
    swapped = [hops[1], hops[0], *hops[2:]]
    assert "run_training is named in none of the functions before it" in problems(swapped)


def test_a_worker_goes_this_way_with_a_point_and_a_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, restore = Stacks(), Stacks()
    monkeypatch.setattr(pipeline.records.spool, "append_to", spool.around(pipeline.records.spool.append_to))
    loaded = pipeline.training.checkpoint._restore
    monkeypatch.setattr(pipeline.training.checkpoint, "_restore", restore.around(loaded))
    data, folder = small_data(tmp_path / "data"), TrialFolder(tmp_path / "trial")
    from pipeline.training.worker import run_training
    from tests.pipeline.remote.training import CPU

    run_training(small_experiment(), folder, data.folder, CPU)
    assert {tuple(stack) for stack in spool.seen} == {tuple(part(POINT, "run_training", "Spool.write"))}
    assert restore.seen == []
    folder.result.unlink()
    run_training(small_experiment(), folder, data.folder, CPU)
    assert restore.seen == [part(RESTORE, "run_training", "load_newest")]


def test_the_driver_goes_this_way_with_a_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, stacks = Output(tmp_path), Stacks()
    trial, folder = trial_of(output, "chain")
    tracker = tracker_of(output)
    monkeypatch.setattr("pipeline.tracking.courier._EVERY_S", 0.05)
    courier = Courier(tracker, "chain", output.sweep("chain"), experiment("chain"), [(trial, folder)], EXTRA)
    courier.see({trial.key: State.RUNNING})
    wait_for(folder.delivery.exists)
    wait_for(lambda: '"run_id": null' not in folder.delivery.read_text())
    assert tracker._client is not None
    of_metrics = stacks.around(tracker._client.log_batch)
    monkeypatch.setattr(tracker._client, "log_batch", of_metrics)
    write_spool(trial, folder)

    def of_points() -> list[list[tuple[str, str]]]:
        """Without the batches by which a run is begun, the last of which may come after the run has its id."""
        return [stack for stack in stacks.seen if stack[-1][1] == "ship_metrics"]

    wait_for(of_points)
    assert courier.finish("FINISHED", None, None) == []
    expected = part(POINT, "Courier._work", "ship_metrics")
    assert of_points()[0] == expected  # a store in a file takes one call at a time, made by the courier's own thread


def test_a_storage_is_reached_and_read_this_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, got, fetched = Stacks(), Stacks(), Stacks()
    sample = validate_experiment({**SMALL, "sweep": {"arms": ["per_token"], "seeds": [0]}}, "test")
    (trial,) = trials_of(sample)
    storage = open_storage(str(tmp_path / "storage"))
    remote, data = RemoteTrial(storage / "trials", trial.key), small_data(tmp_path / "data")
    with monkeypatch.context() as patched:
        metrics = put.around(Storage.write_bytes, only=lambda file, _: "/metrics/" in file.path)
        patched.setattr(Storage, "write_bytes", metrics)
        run_attempt(remote, TrialFolder(tmp_path / "worker"), data)
    assert {(*stack, ("storage.py", "Storage.write_bytes")) for stack in map(tuple, put.seen)} == {
        tuple(part(STORED_POINT, "Pusher._work", "Storage.write_bytes"))
    }
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.remote.sweep._EVERY_S", 0.05)
        patched.setattr(RemoteAttempt, "get_metrics", got.around(RemoteAttempt.get_metrics))
        taken = fetched.around(RemoteSweep._fetch)
        place = Output(tmp_path / "out").trial("small", trial.key)
        sweep = RemoteSweep(storage, Output(tmp_path / "out").sweep("small"), {trial.key: place})
        sweep._thread.start()
        patched.setattr(sweep, "_fetch", lambda: taken(sweep))
        wait_for(lambda: got.seen and fetched.seen)
        sweep._left.set()
        sweep._thread.join()
    assert [*got.seen[0], ("attempt.py", "RemoteAttempt.get_metrics")] == part(
        STORED_POINT, "RemoteSweep._take", "RemoteAttempt.get_metrics"
    )
    assert [*fetched.seen[-1], ("sweep.py", "RemoteSweep._fetch")] == part(
        STORED_POINT, "RemoteSweep._work", "RemoteSweep._fetch"
    )


def test_a_restore_from_a_storage_goes_this_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, data = RemoteTrial(open_storage(str(tmp_path / "storage")), "per_token-s0"), small_data(tmp_path / "data")
    run_attempt(remote, TrialFolder(tmp_path / "one"), data)
    index = remote.part(1).index() or {}
    remote.part(1).put_index({name: each for name, each in index.items() if name != "result.json"})
    stacks = Stacks()
    of_checkpoint = stacks.around(Storage.download, only=lambda file, *_: "/checkpoints/" in file.path)
    monkeypatch.setattr(Storage, "download", of_checkpoint)
    run_attempt(remote, TrialFolder(tmp_path / "two"), data, attempt=2)
    downloads = {
        tuple(each for each in (*stack, ("storage.py", "Storage.download")) if each[1] != "patiently")
        for stack in stacks.seen
    }
    assert downloads == {tuple(part(STORED_RESTORE, "train_remotely", "Storage.download"))}


def test_a_command_goes_this_way_to_the_tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stacks = Stacks()

    def refuse(*_: Any) -> None:
        raise UserError("far enough")

    monkeypatch.setattr(pipeline.running.sweep, "connect", stacks.around(refuse))
    monkeypatch.setattr("pipeline.run.EarlyStart", lambda *_: nullcontext())
    with pytest.raises(UserError, match="far enough"):
        api.ablate(write_config(tmp_path), output=tmp_path / "out")
    assert stacks.seen == [part(TRIAL, "ablate", "_run")]
