"""A task that is not ARC through the commands: a plan with timed steps, and a sweep in sequence whose state is in a
storage, which goes on from there into an empty folder."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import api, measures
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import replace
from pipeline.training.worker import run_training
from tests.pipeline.samples import SMALL

TASKS = ("animals", "numbers", "colours", "names")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in four subfolders, which are the tasks of a sequence, and a sweep of one arm beside it."""
    folder = tmp_path_factory.mktemp("text")
    for place, task in enumerate(TASKS):
        (folder / "texts" / task).mkdir(parents=True)
        for n in range(4):
            numbers = range(1000 * place + 100 * n, 1000 * place + 100 * n + 9)
            said = "\n\n".join(f"The {task} {k} come before {k * k} and never after {k + n}." for k in numbers)
            (folder / "texts" / task / f"{n}.txt").write_text(said)
    settings = {
        "name": "in-sequence",
        "data": {"task": "text", "folder": str(folder / "texts"), "max_tokens": 64, "order": "sequential"},
        "model": SMALL["model"],
        "training": {**SMALL["training"], "steps": 12, "evaluate_every": 4, "decode_tasks": 1, "routing_maps": 1},
        "workers": {"cpus": 0.5, "timeout_s": 60},
        "sweep": {"arms": ["per_token"], "seeds": [0]},
    }  # type: ignore[dict-item]
    path = folder / "in-sequence.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_plan_of_a_text_task_is_timed(config: Path, tmp_path: Path) -> None:
    planned = api.plan(config, None, tmp_path, show=False)
    (kind,) = planned.kinds
    assert kind.measured is not None
    assert kind.parameters > 0
    assert kind.epochs > 0
    assert (planned.seconds or 0) > 0


def test_a_sweep_in_sequence_goes_on_from_its_storage_into_an_empty_folder(config: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "storage")
    first = api.ablate(config, None, tmp_path / "here", storage=storage)
    assert first.exit_code == 0, first.ended
    grown = api.ablate(config, {"sweep.seeds": [0, 1]}, tmp_path / "there", storage=storage)
    assert grown.exit_code == 0, grown.ended
    frame = grown.results().set_index("seed")
    assert sorted(frame.index) == [0, 1]
    here = first.results().set_index("seed")
    for name in ("held_out_loss", "forgetting_loss", "forgetting_increase"):
        assert frame.loc[0, name] == here.loc[0, name]  # was not trained again
    assert (tmp_path / "there" / "sweeps" / "in-sequence" / "report" / "forgetting.png").exists()
    # the same, trained here without Ray and without a storage
    experiment = replace(api.read(config), {"sweep": None, "training.arm": "per_token", "training.seed": 1}, "test")
    folder = TrialFolder(tmp_path / "alone")
    run_training(
        experiment, folder, Path(str(api.prepare(config, output=tmp_path / "alone").folder)), torch.device("cpu")
    )
    lines = {line.step: line.metrics for line in read_spool(folder.spool)[0]}
    assert [step for step in lines if measures.FORGETTING_LOSS in lines[step]] == [4, 8, 12]
    assert json.loads(folder.predictions.read_text())
    rounding = 1e-9  # float64; the workers may add up in other threads
    for name, column in (
        (measures.FORGETTING_LOSS, "forgetting_loss"),
        (measures.FORGETTING_INCREASE, "forgetting_increase"),
    ):
        assert frame.loc[1, column] == pytest.approx(lines[12][name], rel=rounding, abs=rounding)
