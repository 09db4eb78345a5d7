"""A finished trial that goes on for more steps is the trial that ran so long from the start, to the last digit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.data.manifest import Prepared
from pipeline.layout import TrialFolder
from pipeline.records.continued import close_again, goes_on, is_left, open_again
from pipeline.remote.index import has_ended
from pipeline.remote.trial import RemoteTrial
from pipeline.remote.worker import OnLog, train_remotely
from pipeline.settings.config import Experiment
from pipeline.storage.opening import open_storage
from pipeline.training.worker import run_training
from tests.pipeline.remote.training import without_speed
from tests.pipeline.samples import small_data, small_experiment

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


def constant(steps: int, arm: str = "per_token") -> Experiment:
    return small_experiment(steps=steps, arm=arm, schedule="constant", precision="float32", evaluate_every=3)


def assert_same(longer: TrialFolder, whole: TrialFolder, steps: int, from_step: int) -> None:
    """Weights, optimisers, predictions, result and every log after `from_step`."""
    for name in (f"checkpoints/step-{steps:06d}/state.safetensors", "model/weights.safetensors", "predictions.json"):
        assert (longer.root / name).read_bytes() == (whole.root / name).read_bytes()
    ours, theirs = (json.loads(folder.result.read_text()) for folder in (longer, whole))
    for result in (ours, theirs):
        result["metrics"] = {name: v for name, v in result["metrics"].items() if not name.startswith("speed/")}
        del result["seconds"], result["phases"]
    assert ours == theirs
    both = ([line for line in without_speed(folder) if line[0] > from_step] for folder in (longer, whole))
    ours, theirs = both
    assert ours
    assert repr(ours) == repr(theirs)  # NaN equals NaN


@pytest.mark.parametrize("arm", ["per_token", "aggregated", "fisher", "remoe", "switch"])
def test_more_steps_end_as_if_they_had_been_there_from_the_start(data: Prepared, tmp_path: Path, arm: str) -> None:
    """From an end that is no step of any log, evaluation or checkpoint; also of arms that keep a state of their own."""
    whole, longer = TrialFolder(tmp_path / "whole"), TrialFolder(tmp_path / "longer")
    run_training(constant(12, arm), whole, data.folder, CPU)
    run_training(constant(7, arm), longer, data.folder, CPU)
    assert not is_left(longer, 7)
    assert is_left(longer, 12)
    assert open_again(longer, 12)
    assert not longer.ended
    assert not open_again(longer, 12)
    run_training(constant(12, arm), longer, data.folder, CPU)
    assert_same(longer, whole, 12, from_step=7)
    assert [path.name for path in longer.earlier_results()] == ["result-000007.json"]
    assert json.loads(longer.earlier_result(7).read_text())["steps"] == 7


def test_so_does_one_that_was_stopped_on_the_way_and_one_whose_checkpoints_are_gone(
    data: Prepared, tmp_path: Path
) -> None:
    whole, longer = TrialFolder(tmp_path / "whole"), TrialFolder(tmp_path / "longer")
    run_training(constant(12), whole, data.folder, CPU)
    run_training(constant(7), longer, data.folder, CPU)
    open_again(longer, 12)

    def stop_at_10(step: int) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(constant(12), longer, data.folder, CPU, stop_at_10)
    assert not open_again(longer, 12)
    run_training(constant(12), longer, data.folder, CPU)
    assert_same(longer, whole, 12, from_step=7)
    shutil.rmtree(longer.checkpoints)
    longer.result.unlink()
    run_training(constant(12), longer, data.folder, CPU)
    assert_same(longer, whole, 12, from_step=7)


def test_so_does_one_in_a_storage_where_the_shorter_result_does_not_pass_for_the_end(
    data: Prepared, tmp_path: Path
) -> None:
    whole = TrialFolder(tmp_path / "whole")
    run_training(constant(12), whole, data.folder, CPU)
    remote = RemoteTrial(open_storage(str(tmp_path / "storage")), "per_token-s0")
    seen: list[tuple[int, bool]] = []

    def attempt(number: int, experiment: Experiment) -> None:
        def train(scratch: TrialFolder, push: OnLog) -> None:
            seen.append((number, scratch.ended))
            run_training(experiment, scratch, data.folder, CPU, push)

        remote.put_attempt(number, "now")
        folder = TrialFolder(tmp_path / f"here-{number}")
        train_remotely(experiment, remote.part(number), folder, 0, train)

    attempt(1, constant(7))
    assert has_ended(remote.index())
    attempt(2, constant(12))
    assert seen == [(1, False), (2, False)]
    longer = TrialFolder(tmp_path / "fetched")
    part, index = remote.newest(remote.attempt())
    index = part.opened(index, {})
    part.get_metrics(index, longer, {})
    for name in index:
        if not name.startswith(("metrics/", "segments/")):
            part.get(name, index[name], longer)
    assert_same(longer, whole, 12, from_step=7)


def test_a_trial_goes_on_under_a_description_that_was_put_better(data: Prepared, tmp_path: Path) -> None:
    """A resumed sweep may have another one, and its checkpoints are still its own."""
    folder, better = TrialFolder(tmp_path), constant(8).model_copy(update={"description": "Better."})
    run_training(constant(6), folder, data.folder, CPU)
    open_again(folder, 8)
    assert better.digest() == constant(8).digest()
    assert constant(8).digest() != small_experiment(steps=8).digest()
    run_training(better, folder, data.folder, CPU)
    assert [line[0] for line in without_speed(folder)] == [2, 3, 4, 6, 8]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"steps": "7"}', '{"steps": true}', '{"steps": 12}'])
def test_what_is_no_shorter_result_is_left_as_it_is(tmp_path: Path, text: str | None) -> None:
    folder = TrialFolder(tmp_path)
    if text is not None:
        folder.result.write_text(text)
    assert not goes_on(folder, 12)
    assert not open_again(folder, 12)
    assert folder.result.exists() == (text is not None)


def test_opening_is_taken_back_where_nothing_was_run(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.result.write_text('{"steps": 7}')
    assert open_again(folder, 12)
    close_again(folder)
    close_again(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
