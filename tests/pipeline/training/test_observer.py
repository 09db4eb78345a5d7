"""A user's own observer: what it returns becomes metrics and figures, on any number of workers, and nothing else."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.data.batch import Batch
from pipeline.data.manifest import Prepared
from pipeline.data.shards import prepare
from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import Experiment
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.user_code import code_digest, user_code
from pipeline.submission.own_code import not_sent
from pipeline.training.checkpoint import checkpoints
from pipeline.training.observer import ObserverFailed, load_observer, observe, reduced
from pipeline.training.observer_contract import observer_problem
from pipeline.training.stopping import TrainingStopped
from pipeline.training.worker import run_training
from tests.pipeline.samples import SMALL, small_data, small_experiment, write_config

CPU = torch.device("cpu")
MODULE = """
from matplotlib.figure import Figure

from observer_parts import FACTOR


def watch(step, model, batch, health):
    found = {
        "tokens": (batch.valid.sum(), 1),  # summed over workers; divided by their number
        "labels_a_token": ((batch.labels >= 0).sum(), batch.valid.sum()),
        "share": batch.valid.float().mean(),
        "weight": FACTOR * model.blocks[0].attention.q.mu_weight[0, 0],
        "active": {name: seen.scalars[1] for name, seen in health.items()}["blocks.1.attention.o"],
        "nothing": float("nan"),
    }
    if step % 4 == 0:
        figure = Figure()
        figure.subplots().plot([0, step])
        found["line"] = figure
    return found


def raises_late(step, model, batch, health):
    if step == 6:
        raise ValueError("no such expert")
    return {"x": 1.0}


def raises(step, model, batch, health):
    return {"x": model.blocks[7]}


def a_list(step, model, batch, health):
    return [1, 2]


def a_text(step, model, batch, health):
    return {"x": "much"}


def too_many(step, model, batch, health):
    return {"x": model.blocks[0].attention.q.mu_bias}


def bad_name(step, model, batch, health):
    return {"a/b": 1.0}


def changes(step, model, batch, health):
    model.head.bias += 1
    return {}


def trains(step, model, batch, health):
    import torch

    with torch.enable_grad():
        model(*batch.inputs).sum().backward()
    return {}


def switches(step, model, batch, health):
    model.eval()
    return {}


def last_step(step, model, batch, health):
    return {"x": 1 / (8 - step)}


NOT_CALLABLE = 3
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the observers' module, and of what it imports."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "own_observers.py").write_text(MODULE)
    (folder / "observer_parts.py").write_text("FACTOR = 2.0\n")
    return folder


@pytest.fixture(autouse=True)
def importable(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(modules)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


def metrics_of(folder: TrialFolder) -> dict[int, dict[str, float]]:
    return {line.step: line.metrics for line in read_spool(folder.spool)[0]}


def test_its_numbers_are_metrics_its_figures_are_kept_and_training_is_what_it_was(
    data: Prepared, tmp_path: Path
) -> None:
    folders = [TrialFolder(tmp_path / name) for name in ("with", "without")]
    run_training(small_experiment(observer="own_observers:watch"), folders[0], data.folder, CPU)
    run_training(small_experiment(), folders[1], data.folder, CPU)
    metrics, plain = map(metrics_of, folders)
    assert list(metrics) == [2, 4, 6, 8]
    for step, values in metrics.items():
        observed = {name for name in values if name.startswith("observer/")}
        assert {name.removeprefix("observer/") for name in observed} == {
            "tokens", "labels_a_token", "share", "weight", "active", "nothing",
        }  # fmt: skip
        assert 0 < values["observer/labels_a_token"] < 1
        assert math.isnan(values["observer/nothing"])
        rate = values["activation_rate.by_module/L1.o"] if step in (4, 8) else None
        assert rate is None or values["observer/active"] == pytest.approx(rate * values["observer/tokens"] * 8)
        others = {name: value for name, value in values.items() if name not in observed and "speed/" not in name}
        assert others == {name: value for name, value in plain[step].items() if "speed/" not in name}
    drawn = sorted(path.relative_to(folders[0].figures).as_posix() for path in folders[0].figures.rglob("*.png"))
    assert drawn == ["line/step-000004.png", "line/step-000008.png"]
    states = [checkpoints(folder.checkpoints)[-1] / "state.safetensors" for folder in folders]
    tensors = [path.read_bytes() for path in states]
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "raised IndexError: index 7 is out of range (line "),
        ("a_list", "returned a list; expected a mapping of names to numbers, pairs (sum, count) or matplotlib figures"),
        ("a_text", "returned 'x' as a str; expected"),
        ("too_many", "returned 'x' as a Parameter of shape [8]; expected"),
        ("bad_name", "returned the name 'a/b'; use at most 64 letters, digits and _.-"),
        ("changes", "changed the parameter head.bias; it may look at the model, and change nothing"),
        ("trains", "left a gradient in "),
        ("switches", "left the model in another mode"),
        ("last_step", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_one_that_breaks_its_contract_is_found_on_a_small_sample(function: str, message: str) -> None:
    problem = observer_problem(load_observer(f"own_observers:{function}"), small_experiment())
    assert problem is not None
    assert message in problem
    assert ("step 8" if function == "last_step" else "step 2") in problem


def test_one_that_keeps_it_passes_for_arms_with_and_without_goodness() -> None:
    for arm in ("per_token", "aggregated", "task_only", "dense"):
        assert observer_problem(load_observer("own_observers:watch"), small_experiment(arm=arm)) is None


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (
            "own_observers:raises",
            "training.observer: 'own_observers:raises' raised IndexError: index 7",
        ),
        ("own_observers:watcher", "training.observer: 'own_observers:watcher' cannot be used (AttributeError"),
        ("own_observer:watch", "training.observer: 'own_observer:watch' cannot be used (ModuleNotFoundError"),
        ("own_observers:NOT_CALLABLE", "is a int; expected a function of (step, model, batch, health)"),
        ("own_observers", "observer: found 'own_observers'; expected package.module:function"),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_it_is_refused_before_anything_starts(tmp_path: Path, command: str, observer: str, message: str) -> None:
    config = write_config(tmp_path)
    words = [command, str(config), "--output", str(tmp_path / "out"), "--set", f"training.observer={observer}"]
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 2, (ran.output, ran.exception)
    assert message in " ".join(ran.output.split())
    assert not (tmp_path / "out" / "data").exists()


def test_one_that_raises_later_stops_training_with_its_reason(data: Prepared, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    said = r"step 6: training.observer 'own_observers:raises_late' raised ValueError: no such expert \(line \d+ of "
    with pytest.raises(TrainingStopped, match=said):
        run_training(small_experiment(observer="own_observers:raises_late"), folder, data.folder, CPU)
    assert list(metrics_of(folder)) == [2, 4]
    assert not folder.result.exists()


def test_its_source_and_what_it_imports_are_in_the_digest_of_the_users_code(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small_experiment(observer="own_observers:watch")
    assert sorted(user_code(experiment)) == ["observer_parts.py", "own_observers.py"]
    before = code_digest(user_code(experiment))
    (modules / "observer_parts.py").write_text("FACTOR = 3.0\n")
    after = code_digest(user_code(experiment))
    (modules / "observer_parts.py").write_text("FACTOR = 2.0\n")
    assert before != after
    assert code_digest(user_code(experiment)) == before
    with pytest.raises(UserError) as refused:
        not_sent(validate_experiment(experiment.model_dump(mode="json"), "t"), [])
    assert str(refused.value) == (
        "code of your own would not reach the cluster:\n"
        "  the observer 'own_observers:watch' needs observer_parts.py, own_observers.py\n"
        f"Add to the command: --include {modules / 'observer_parts.py'} --include {modules / 'own_observers.py'}"
    )


def test_means_by_hand() -> None:
    numbers = torch.zeros(2, 3, dtype=torch.long)
    batch = Batch(numbers, (numbers, numbers), numbers, torch.tensor([[True] * 3, [True, False, False]]), ())
    numbers, figures = observe(lambda *_: {"a": 1.5, "b": (6, 8), "c": (1, 0)}, 1, torch.nn.Linear(1, 1), batch, {},
                               draw=True)  # fmt: skip
    assert (numbers, figures) == ({"a": (6.0, 4.0), "b": (6.0, 8.0), "c": (1.0, 0.0)}, {})
    means = reduced("n", 1, numbers, CPU)
    assert (means["observer/a"], means["observer/b"]) == (1.5, 0.75)
    assert math.isnan(means["observer/c"])


def experiment_of_two(observer: str) -> Experiment:
    data = {"max_tokens": 256, "dihedral_views": 2, "rows_per_group": 4}
    training = {**SMALL["training"], "batch_tokens": 1024, "decode_tasks": 0, "observer": observer}  # type: ignore[dict-item]
    return validate_experiment({**SMALL, "data": data, "training": training, "workers": {"count": 2}}, "test")


def worker(rank: int, root: str, modules: str, data: str) -> None:
    sys.path.insert(0, modules)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    ended: dict[str, Any] = {}
    alike = {"a": (4.0 * (1 + rank), 2.0 * (1 + rank)), "b": (3.0, 1.0 + 2 * rank), "c": (0.3, 1.0), "d": (rank, rank)}
    ended["means"] = reduced("n", 1, alike, CPU)
    for name, mine in {
        "failed": ObserverFailed("raised it") if rank == 1 else {"a": (1.0, 1.0)},
        "names": {"a": (1.0, 1.0), **({"b": (1.0, 1.0)} if rank == 1 else {})},
    }.items():
        with pytest.raises(TrainingStopped) as stopped:
            reduced("n", 3, mine, CPU)  # type: ignore[arg-type]
        ended[name] = str(stopped.value)
    folder = TrialFolder(Path(root) / "watch")
    run_training(experiment_of_two("own_observers:watch"), folder, Path(data), CPU)
    with pytest.raises(TrainingStopped) as stopped:
        run_training(experiment_of_two("own_observers:raises_late"), TrialFolder(Path(root) / "late"), Path(data), CPU)
    ended["late"] = str(stopped.value).partition(" (line")[0]
    (Path(root) / f"ended-{rank}.json").write_text(json.dumps(ended))
    dist.destroy_process_group()  # a process that ends with it may abort


def test_two_workers_find_what_one_would_and_stop_together(modules: Path, tmp_path: Path) -> None:
    data = prepare(experiment_of_two("own_observers:watch").data, tmp_path / "data").folder
    mp.spawn(worker, (str(tmp_path), str(modules), str(data)), nprocs=2)
    ended = [json.loads((tmp_path / f"ended-{rank}.json").read_text()) for rank in range(2)]
    assert ended[0] == ended[1]
    assert ended[0]["means"] == {
        "observer/a": 2.0,  # the same on both: exactly that
        "observer/b": (3 + 3) / (1 + 3),
        "observer/c": 0.3,
        "observer/d": 1.0,  # rank 0 has none to count
    }
    assert ended[0]["failed"].startswith(
        "step 3: training.observer 'n' raised it (rank 1). Correct it, and resume with"
    )
    assert "returned a on rank 0 and a, b on rank 1" in ended[0]["names"]
    assert ended[0]["late"] == "step 6: training.observer 'own_observers:raises_late' raised ValueError: no such expert"
    folder = TrialFolder(tmp_path / "watch")
    for logged in metrics_of(folder).values():
        # "tokens" is the mean of two workers' numbers, "active" is of all tokens
        rate = logged.get("activation_rate.by_module/L1.o")
        assert rate is None or logged["observer/active"] == pytest.approx(rate * 2 * logged["observer/tokens"] * 8)
    assert (folder.figures / "line" / "step-000008.png").is_file()
    weight = metrics_of(folder)[8]["observer/weight"]
    from pipeline.training.kept import open_step

    folder.config.write_text(experiment_of_two("own_observers:watch").model_dump_json())
    assert weight == 2 * float(open_step(folder, "last").model.blocks[0].attention.q.mu_weight[0, 0].detach())


def test_a_module_that_is_not_there_is_reported() -> None:
    with pytest.raises(UserError, match=r"cannot be used \(ModuleNotFoundError.*name its folder in PYTHONPATH"):
        load_observer("no_such_module:watch")
