"""The examples of docs/tasks.md and docs/models.md, run as they stand: a sweep of a task and a model of one's own."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline import api
from pipeline.errors import UserError

DOCS = Path(__file__).parents[3] / "docs"
TASK, MODEL = ((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("tasks", "models"))


def example(text: str) -> tuple[str, str]:
    """The code of a page's example, and the line of settings below it."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code, re.findall(r"^    (\w+: \{.*\})$", text, re.MULTILINE)[0]


def test_the_examples_are_short() -> None:
    for text in (TASK, MODEL):
        assert len(example(text)[0].splitlines()) < 40


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
    found = outcome.results()
    assert sorted(found["arm"]) == ["aggregated", "per_token"]
    assert found["first_letter"].between(0, 1).all()
    folder = tmp_path / "sweeps" / "backwards"
    page = (folder / "report" / "report.html").read_text()
    assert "first letter (%)" in page
    assert "rows trained on" in page
    model = api.load_model(folder / "trials" / "per_token-s0", tmp_path, own_code=True)
    assert type(model.model).__name__ == "Window"
    assert api.load_model(found["run_id"][0], tmp_path, own_code=True).step == 12
    with pytest.raises(UserError, match=r"trained with data\.task: my_task:BACKWARDS; expected one trained with arc"):
        api.routing_map(model, {})
    (config.parent / "my_model.py").write_text((config.parent / "my_model.py").read_text() + "\n# another\n")
    with pytest.raises(UserError, match=r"(?s)my_model\.py: is another.*--accept-changed-code"):
        api.ablate(config, {"sweep.seeds": [0, 1]}, tmp_path, resume=True)
