"""Two gloo processes that have to stop, or to skip, together; and what they leave behind."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.data.shards import prepare
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import Experiment
from pipeline.settings.experiment_file import validate_experiment
from pipeline.storage.opening import open_storage
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.missing_ranks import naming_missing_ranks
from pipeline.training.trial import MOST_SKIPPED_IN_A_ROW
from pipeline.training.worker import run_training
from tests.drills.faults import EVERY, Fault, Way, plant
from tests.pipeline.samples import SMALL

DATA = {"max_tokens": 256, "dihedral_views": 2, "rows_per_group": 4}
TRAINING = {
    "steps": 6,
    "batch_tokens": 1024,
    "evaluate_every": 6,
    "decode_tasks": 0,
    "prototype_snapshots": 0,
    "check_replicas_every": 2,
}
SKIP = {"on_nonfinite": "skip"}
SCENES: dict[str, tuple[dict[str, Any], list[Fault]]] = {  # the last one leaves the group unusable
    "undisturbed": ({}, []),
    "loss": ({}, [Fault("nan", rank=1, step=3)]),
    "gradient": ({}, [Fault("nan_gradient", rank=0, step=3)]),
    "loss, hooks": ({"engine": "hooks"}, [Fault("nan", rank=1, step=3)]),
    "skip by rank 0": (SKIP, [Fault("nan", rank=0, step=3)]),
    "skip by rank 1": (SKIP, [Fault("nan_gradient", rank=1, step=3)]),
    "skip for ever": ({**SKIP, "steps": 20}, [Fault("nan", rank=1, times=EVERY)]),
    "drift": ({}, [Fault("drift", rank=1, step=3)]),
    "forget": ({"engine": "hooks"}, [Fault("forget", "forward", rank=1, step=3)]),
}


def experiment(**training: Any) -> Experiment:
    return validate_experiment(
        {**SMALL, "data": DATA, "training": {**SMALL["training"], **TRAINING, **training}, "workers": {"count": 2}},
        "test",
    )


def worker(rank: int, root: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    way = Way(Path())
    way.lie_in_wait()
    ended = {}
    for name, (training, faults) in SCENES.items():
        folder = Path(root) / name
        if rank == 0:
            plant(folder, *faults)
        dist.barrier()
        way.folder = folder / "faults"
        try:
            with naming_missing_ranks(open_storage(str(folder / "absent"))):
                run_training(experiment(**training), TrialFolder(folder), Path(data), torch.device("cpu"))
            ended[name] = "finished"
        except Exception as error:
            ended[name] = f"{type(error).__name__}: {error}"
    (Path(root) / f"ended-{rank}.json").write_text(json.dumps(ended))
    os._exit(0)  # the last scene leaves the group unusable: its threads may abort the process where it is torn down


@dataclass(frozen=True)
class Seen:
    """What came of the scenes: how each ended, by rank, and where."""

    root: Path
    ended: list[dict[str, str]]

    def both(self, name: str) -> str:
        """How a scene ended, the same on both ranks."""
        assert self.ended[0][name] == self.ended[1][name]
        return self.ended[0][name]

    def what(self, name: str, step: int, rank: int) -> dict[str, Any]:
        """A rank's part of the evidence."""
        return json.loads((self.place(name, step, rank) / "what.json").read_text())

    def place(self, name: str, step: int, rank: int) -> Path:
        """Where it is."""
        return TrialFolder(self.root / name).evidence / f"step-{step:06d}" / f"rank-{rank}"

    def state(self, name: str, step: int) -> dict[str, torch.Tensor]:
        """A checkpoint of a scene."""
        return read_checkpoint(TrialFolder(self.root / name).checkpoints / f"step-{step:06d}")[1]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    root = tmp_path_factory.mktemp("two")
    data = prepare(experiment().data, root / "data")
    mp.spawn(worker, args=(str(root), str(data.folder)), nprocs=2)
    return Seen(root, [json.loads((root / f"ended-{rank}.json").read_text()) for rank in range(2)])


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["loss", "loss, hooks"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_both_in_the_same_step(seen: Seen, name: str) -> None:
    said = seen.both(name)
    assert said.startswith("TrainingStopped: step 3: non-finite task loss")
    assert "rank 1, first in blocks.1.attention.o, tasks " in said
    assert "rank 0," not in said
    good, bad = (seen.what(name, 3, rank) for rank in range(2))
    assert (good["layer"], bad["layer"]) == (None, "blocks.1.attention.o")
    assert (float(good["own_loss"]) > 0, bad["own_loss"]) == (True, "nan")
    assert min(len(good["task_ids"]), len(bad["task_ids"])) > 0
    assert good["task_ids"] != bad["task_ids"]
    assert good["parameters_not_finite"] == bad["parameters_not_finite"] == []
    step, state = read_checkpoint(seen.place(name, 3, 0) / "step-000002", experiment_of(name).digest())
    assert step == 2
    assert all(t.isfinite().all() for t in state.values())
    assert not TrialFolder(seen.root / name).result.exists()


def experiment_of(name: str) -> Experiment:
    return experiment(**SCENES[name][0])


def test_the_state_that_is_kept_is_the_one_before_the_step(seen: Seen) -> None:
    assert equal(read_checkpoint(seen.place("loss", 3, 0) / "step-000002")[1], seen.state("loss", 2))


def test_a_gradient_that_is_not_finite_on_one_rank_is_traced_to_it(seen: Seen) -> None:
    said = seen.both("gradient")
    assert "step 3: non-finite " in said
    assert "gradient norm" in said
    assert "task loss" not in said
    assert "rank 0, first in blocks.1.attention.o." in said
    good, bad = seen.what("gradient", 3, 1), seen.what("gradient", 3, 0)
    assert good["own_gradients_not_finite"] == []
    assert bad["own_gradients_not_finite"][0].startswith("blocks.1.attention.o.")
    assert bad["layer"] is None
    assert "nan" not in bad["own_loss"]


def test_a_step_is_skipped_on_both_ranks_whichever_was_to_blame(seen: Seen) -> None:
    assert seen.both("skip by rank 0") == seen.both("skip by rank 1") == seen.both("undisturbed") == "finished"
    a, b = (seen.state(f"skip by rank {rank}", 6) for rank in range(2))
    assert equal(a, b)
    assert not equal(a, seen.state("undisturbed", 6))
    for rank in range(2):
        folder = TrialFolder(seen.root / f"skip by rank {rank}")
        assert json.loads(folder.result.read_text())["skipped_steps"] == 1
        counted = [line.metrics["train/skipped_steps"] for line in read_spool(folder.spool)[0]]
        assert counted == [0, 1, 1]
        assert not folder.evidence.exists()


def test_when_every_step_is_skipped_training_stops(seen: Seen) -> None:
    assert f"TrainingStopped: step {MOST_SKIPPED_IN_A_ROW}: non-finite" in seen.both("skip for ever")
    assert seen.what("skip for ever", MOST_SKIPPED_IN_A_ROW, 1)["layer"] == "blocks.1.attention.o"


def test_replicas_out_of_step_stop_both_ranks_and_both_states_are_kept(seen: Seen) -> None:
    said = seen.both("drift")
    assert "step 4: the workers' replicas are out of step: ranks differ in " in said
    states = [read_checkpoint(seen.place("drift", 4, rank) / "step-000004")[1] for rank in range(2)]
    assert not equal(*states)
    assert seen.what("drift", 4, 0)["why"] == seen.what("drift", 4, 1)["why"]


def test_a_captured_call_without_gradient_on_one_rank_is_named_and_the_other_knows_who_is_gone(seen: Seen) -> None:
    other, one = (ended["forget"] for ended in seen.ended)
    assert one.startswith("TrainingStopped: step 3: ")
    assert "of 'blocks.0.attention.q' got no gradient" in one
    assert "tasks " in one
    assert seen.what("forget", 3, 1)["task_ids"]
    assert read_checkpoint(seen.place("forget", 3, 1) / "step-000002")[0] == 2
    assert other.startswith("MissingRanks: rank 1 did not arrive where the others waited (")
    assert "losed by peer" in other or "reset" in other, other
