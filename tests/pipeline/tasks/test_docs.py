"""The examples of docs/tasks.md and docs/models.md, run as they stand: a sweep of a task and a model of one's own."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import api
from pipeline.data.shards import prepare
from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import replace
from pipeline.settings.experiment_file import validate_experiment
from pipeline.tasks.check import check_model
from pipeline.training.kept import open_step
from pipeline.training.worker import run_training
from tests.tiny_onn.test_capture_peers import transformers

DOCS = Path(__file__).parents[3] / "docs"
TASK, MODEL = ((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("tasks", "models"))


def example(text: str) -> tuple[str, str]:
    """The code of a page's first example, and the line of settings below it."""
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    return code, re.findall(r"^    (\w+: \{.*\})$", text, re.MULTILINE)[0]


def test_the_examples_are_short() -> None:
    for text in (TASK, MODEL):
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            assert len(code.splitlines()) < 40


def test_a_hugging_face_model_trains_and_comes_back_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers()
    code = re.findall(r"```python\n(.*?)```", MODEL, re.DOTALL)[1]
    (tmp_path / "my_gpt2.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    lines = re.findall(r"^    (\w+: \{.*\})$", MODEL, re.MULTILINE)[-2:]
    settings = yaml.safe_load("\n".join(lines))
    training = {"steps": 4, "warmup_steps": 1, "batch_tokens": 256, "evaluate_every": 4, "checkpoint_every": 2,
                "log_every": 2, "decode_tasks": 1, "compile": "eager"}  # fmt: skip
    experiment = validate_experiment({"name": "gpt2", **settings, "training": training}, "test")
    (tmp_path / "text.txt").write_text("\n\n".join(f"Row {n} says {n * n} and nothing else of {n}." for n in range(40)))
    experiment = replace(experiment, {"data.folder": str(tmp_path / "text.txt")}, "test")
    data = prepare(experiment.data, tmp_path / "data")
    losses = {}
    for engine in ("hooks", "fused"):
        trial = TrialFolder(tmp_path / engine)
        trial.root.mkdir()
        one = replace(experiment, {"training.engine": engine}, "test")
        check_model(one)
        trial.config.write_text(one.model_dump_json())
        run_training(one, trial, Path(str(data.folder)), torch.device("cpu"))
        losses[engine] = {line.step: line.metrics["train/task_loss"] for line in read_spool(trial.spool)[0]}
    assert losses["hooks"] == pytest.approx(losses["fused"], rel=1e-5)
    for step in ("last", 2):
        model = open_step(trial, step, own_code=True).model  # type: ignore[arg-type]
        assert model.lm.lm_head.weight is model.lm.transformer.wte.weight


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two examples as modules beside a sweep of both, with two workers a trial, which is half run."""
    folder = tmp_path_factory.mktemp("docs")
    settings = {
        "name": "backwards",
        "training": {"steps": 12, "warmup_steps": 2, "batch_tokens": 512, "log_every": 6, "evaluate_every": 12,
                     "checkpoint_every": 6, "compile": "eager"},
        "workers": {"count": 2, "cpus": 0.25, "timeout_s": 60},
        "sweep": {"arms": ["per_token", "aggregated"], "seeds": [0]},
    }  # fmt: skip
    for name, text in (("my_task", TASK), ("my_model", MODEL)):
        code, line = example(text)
        (folder / f"{name}.py").write_text(code)
        settings |= yaml.safe_load(line)
    path = folder / "backwards.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_sweep_of_ones_own_task_and_model_from_plan_to_report(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(config.parent)
    monkeypatch.setenv("PYTHONPATH", f"{config.parent}:{DOCS.parent}")
    with monkeypatch.context() as uncalibrated:
        uncalibrated.chdir(config.parent)
        planned = api.plan(config, {"sweep.arms": ["per_token"]}, tmp_path, calibrate=True, show=False)
    assert planned.kinds[0].measured is not None
    outcome = api.ablate(config, {"sweep.arms": ["per_token"]}, tmp_path)
    assert outcome.exit_code == 0, outcome.ended
    outcome = api.ablate(config, None, tmp_path, resume=True)  # grows by an arm, on the engine of hooks
    assert outcome.exit_code == 0, outcome.ended
    frame = outcome.results()
    assert sorted(frame["arm"]) == ["aggregated", "per_token"]
    assert frame["first_letter"].between(0, 1).all()
    folder = tmp_path / "sweeps" / "backwards"
    page = (folder / "report" / "report.html").read_text()
    assert "first letter (%)" in page
    assert "rows trained on" in page
    make_row = importlib.import_module("my_task").make_row
    model = api.load_model(folder / "trials" / "per_token-s0", tmp_path, own_code=True)
    assert type(model.model).__name__ == "Window"
    assert api.load_model(frame["run_id"][0], tmp_path, own_code=True).step == 12
    assert "routing map 1: per_token, seed 0" in page
    assert len(api.routing_map(model, make_row(7, 0, 6)).axes[0].images) == 1 + 2
    with pytest.raises(UserError, match=r"found a dict; expected a pipeline\.tasks\.Sequence"):
        api.routing_map(model, {})
    with pytest.raises(UserError, match=r"'my_task:BACKWARDS', which answers no files; use .*\(docs/tasks\.md\)"):
        api.predict(folder / "trials" / "per_token-s0", config, output=tmp_path, own_code=True)
    (config.parent / "my_model.py").write_text((config.parent / "my_model.py").read_text() + "\n# another\n")
    with pytest.raises(UserError, match=r"(?s)my_model\.py: is another.*--accept-changed-code"):
        api.ablate(config, {"sweep.seeds": [0, 1]}, tmp_path, resume=True)
