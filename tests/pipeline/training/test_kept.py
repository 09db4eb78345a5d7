"""The best checkpoint is kept and found again, and so is any other step that is kept."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline import api
from pipeline.data.manifest import Prepared
from pipeline.errors import UserError
from pipeline.layout import Output, TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import Experiment, replace
from pipeline.settings.trials import Trial
from pipeline.tracking.load_model import load_model
from pipeline.tracking.tracker import Tracker
from pipeline.training.build import build_dynamics, build_model
from pipeline.training.checkpoint import best_step, checkpoints, read_checkpoint, save_checkpoint
from pipeline.training.kept import model_of, open_step
from pipeline.training.model_file import open_model
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment
from tests.pipeline.sweep_samples import EXTRA
from tiny_onn.gates import RELU
from tiny_onn.layers import sparse_layers
from tiny_onn.model import GridTransformer

CPU = torch.device("cpu")
# Rates so high that the loss on other tasks soon grows: the best step is an early one.
TRAINING = {"steps": 12, "evaluate_every": 2, "keep_checkpoints": 2, "learning_rate": 0.3, "arm": "task_only"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Output, TrialFolder, str]:
    """(output, folder, run id) of a finished trial."""
    output, experiment = Output(tmp_path_factory.mktemp("runs")), small_experiment(**TRAINING)
    folder = output.trial("kept", "task_only-s0")
    folder.root.mkdir(parents=True)
    folder.config.write_text(experiment.model_dump_json())
    run_training(experiment, folder, data.folder, CPU)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    delivery = tracker.start_trial(folder, Trial(key="task_only-s0", experiment=experiment), "kept", EXTRA)
    run_id = delivery.run_id
    tracker.end_trial(delivery, "FINISHED")
    assert not tracker.close("FINISHED")
    return output, folder, run_id


def losses_of(folder: TrialFolder) -> dict[int, float]:
    return {line.step: line.metrics["held_out/loss"] for line in read_spool(folder.spool)[0]}


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(folder)]


def same(model: GridTransformer, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_best_is_the_first_of_the_lowest_that_is_known() -> None:
    losses = {2: 1.5, 4: 1.2, 6: float("nan"), 8: 1.2, 10: 0.1}
    assert best_step([2, 4, 6, 8], losses) == 4
    assert best_step([6], losses) is None
    assert best_step([3], {}) is None


def test_of_the_checkpoints_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    experiment = small_experiment()
    dynamics = build_dynamics(build_model(experiment), experiment.training)
    losses: dict[int, float] = {}
    kept = []
    for step, loss in enumerate((3.0, 1.0, 2.0, 0.5, 4.0, 5.0, 6.0), 1):
        losses[step] = loss
        save_checkpoint(tmp_path, step, dynamics, "digest", 2, losses)
        kept.append(steps_in(tmp_path))
    assert kept == [[1], [1, 2], [2, 3], [3, 4], [4, 5], [4, 5, 6], [4, 6, 7]]
    save_checkpoint(tmp_path, 3, dynamics, "digest", 2, losses)  # gone back to: the later ones were no good
    assert steps_in(tmp_path) == [3]


def test_a_run_keeps_its_best_besides_the_newest(trained: tuple[Output, TrialFolder, str]) -> None:
    _, folder, _ = trained
    losses = losses_of(folder)
    best = min(losses, key=lambda step: losses[step])
    assert best < 10  # or the test shows nothing
    assert steps_in(folder.checkpoints) == [best, 10, 12]


def test_a_run_that_is_taken_up_again_still_knows_its_best(
    data: Prepared, trained: tuple[Output, TrialFolder, str], tmp_path: Path
) -> None:
    _, whole, _ = trained
    shutil.copytree(whole.root, tmp_path / "trial")
    folder = TrialFolder(tmp_path / "trial")
    folder.result.unlink()
    shutil.rmtree(folder.best_model)
    shutil.rmtree(folder.checkpoints / "step-000012")
    run_training(small_experiment(**TRAINING), folder, data.folder, CPU)
    assert steps_in(folder.checkpoints) == steps_in(whole.checkpoints)
    for place in ("best_model/weights.safetensors", "checkpoints/step-000012/state.safetensors"):
        assert (folder.root / place).read_bytes() == (whole.root / place).read_bytes()


def test_any_kept_step_of_a_run_is_loaded_and_the_best_by_its_name(trained: tuple[Output, TrialFolder, str]) -> None:
    output, folder, run_id = trained
    losses = losses_of(folder)
    best = steps_in(folder.checkpoints)[0]
    for step, expected in (("last", 12), ("best", best), (10, 10), (best, best)):
        loaded = load_model(run_id, output.tracking_uri, step=step)  # type: ignore[arg-type]
        _, state = read_checkpoint(folder.checkpoints / f"step-{expected:06d}")
        assert same(loaded.model, model_of(state))
        assert (loaded.step, loaded.held_out_loss) == (expected, losses[expected])
        assert loaded.is_best == (expected == best)
        assert same(api.load_model(folder.root, step=step).model, model_of(state))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"no checkpoint of step 4; the steps that are kept: {best}, 10, 12\. A run"):
        load_model(run_id, output.tracking_uri, step=4)


def test_mlflow_alone_has_the_last_and_the_best(trained: tuple[Output, TrialFolder, str], tmp_path: Path) -> None:
    output, folder, run_id = trained
    elsewhere = tmp_path / "elsewhere"
    loaded = load_model(run_id, output.tracking_uri, step="best", output=elsewhere)
    assert loaded.step == steps_in(folder.checkpoints)[0]
    with pytest.raises(UserError, match=r"step 10; the steps that are kept: .*12\..*MLflow has the last and the best"):
        load_model(run_id, output.tracking_uri, step=10, output=elsewhere)


def test_a_trial_that_has_not_ended_has_its_checkpoints(
    trained: tuple[Output, TrialFolder, str], tmp_path: Path
) -> None:
    _, whole, _ = trained
    shutil.copytree(whole.root, tmp_path / "trial")
    folder = TrialFolder(tmp_path / "trial")
    for gone in (folder.model, folder.best_model):
        shutil.rmtree(gone)
    best = steps_in(folder.checkpoints)[0]
    assert open_step(folder, "best").step == best
    assert open_step(folder, "last").step == 12
    (folder.checkpoints / f"step-{best:06d}" / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="sha256"):
        open_step(folder, "best")


def test_a_best_checkpoint_that_is_damaged_at_the_end_does_not_end_the_trial(
    data: Prepared, trained: tuple[Output, TrialFolder, str], tmp_path: Path
) -> None:
    _, whole, _ = trained
    shutil.copytree(whole.root, tmp_path / "trial")
    folder = TrialFolder(tmp_path / "trial")
    folder.result.unlink()
    best = steps_in(folder.checkpoints)[0]
    (folder.checkpoints / f"step-{best:06d}" / "state.safetensors").write_bytes(b"damaged")
    run_training(small_experiment(**TRAINING), folder, data.folder, CPU)
    (problem,) = json.loads(folder.result.read_text())["checkpoint_problems"]
    assert f"step-{best:06d}" in problem
    assert "sha256" in problem
    assert not folder.best_model.exists()
    assert not open_step(folder, "last").is_best


def test_where_the_last_is_the_best_it_is_not_kept_twice(data: Prepared, tmp_path: Path) -> None:
    experiment: Experiment = small_experiment(steps=4, evaluate_every=4)
    run_training(experiment, TrialFolder(tmp_path), data.folder, CPU)
    assert not TrialFolder(tmp_path).best_model.exists()
    opened = open_step(TrialFolder(tmp_path), "best")
    assert (opened.step, opened.is_best) == (4, True)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that a model may name: `planted.GATE`. It leaves a file where it is imported."""
    (tmp_path / "planted.py").write_text(
        f"from pathlib import Path\nfrom tiny_onn.gates import RELU as GATE\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "ran"
    sys.modules.pop("planted", None)


@pytest.mark.parametrize("setting", ["arm", "parts.gate", "parts.signal", "parts.cost", "parts.objective"])
def test_an_arm_or_part_that_a_stored_model_names_is_not_imported(setting, trained, planted, tmp_path) -> None:
    """Whoever can write to a store could name any module."""
    folder = TrialFolder(tmp_path / "trial")
    shutil.copytree(trained[1].root, folder.root)
    named = {f"training.{setting}": "planted:GATE"}
    changed = replace(small_experiment(**TRAINING), named, "here").model_dump(mode="json")
    card = json.loads((folder.model / "model.json").read_text()) | {"experiment": changed, "computes_as_adr": False}
    (folder.model / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=rf"names code, training\.{setting}: planted:GATE, .* own_code=True"):
        open_model(folder.model)
    shutil.rmtree(folder.model)
    shutil.rmtree(folder.best_model, ignore_errors=True)
    folder.config.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=rf"names code, training\.{setting}: planted:GATE"):
        open_step(folder, "best")
    assert not planted.exists()


def test_a_gate_of_ones_own_is_imported_where_one_says_so(trained, planted, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained[1].model, folder)
    card = json.loads((folder / "model.json").read_text()) | {"computes_as_adr": False}
    card["experiment"]["training"]["parts"]["gate"] = "planted:GATE"
    (folder / "model.json").write_text(json.dumps(card))
    model = open_model(folder, own_code=True).model
    assert planted.exists()
    assert {layer.rule.gate for layer in sparse_layers(model).values()} == {RELU}
