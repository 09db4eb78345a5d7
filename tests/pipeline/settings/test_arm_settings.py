"""Arms, their parts and their density as settings."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.planning.preflight import check_start
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import trials_of
from pipeline.training.build import arm_of, build_model
from pipeline.training.model_file import open_model, save_model
from tests.pipeline.samples import small_experiment
from tiny_onn.layers import sparse_layers
from tiny_onn.objectives import CROSS_ENTROPY

ROOT = Path(__file__).parents[3]


def sweep(**settings: Any) -> dict[str, Any]:
    return {"name": "x", "model": {"hidden": 8, "heads": 2}, "sweep": {"seeds": [0], **settings}}


def test_none_is_called_task_only_wherever_an_arm_is_named() -> None:
    read = validate_experiment(sweep(arms=["none", "top_k"], arm_settings={"none": {"model.density": 0.5}}), "my.yaml")
    assert [(t.key, t.experiment.model.density) for t in trials_of(read)] == [("task_only-s0", 0.5), ("top_k-s0", None)]
    assert small_experiment(arm="none") == small_experiment(arm="task_only")
    with pytest.raises(UserError, match="has a value twice"):
        validate_experiment(sweep(arms=["none", "task_only"]), "my.yaml")


def test_one_arm_has_settings_of_its_own_and_no_other_has_them() -> None:
    own = {"top_k": {"model.density": 0.25, "training.router_learning_rate": 0.01}}
    grid = {"training.weight_decay": [0.0, 0.1]}
    read = validate_experiment(sweep(arms=["per_token", "top_k"], arm_settings=own, grid=grid), "my.yaml")
    densities = {(t.experiment.training.arm, t.experiment.model.density) for t in trials_of(read)}
    assert densities == {("per_token", None), ("top_k", 0.25)}
    assert len(trials_of(read)) == 4
    for wrong, message in (
        ({"top": {"model.density": 0.5}}, r"'top' is not among the arms \(did you mean 'top_k'\?\)"),
        ({"top_k": {"model.densty": 0.5}}, r"sweep.arm_settings.top_k: 'model.densty' is no setting"),
        ({"top_k": {"data.max_tokens": 64}}, "cannot differ between the trials of a sweep"),
        ({"top_k": {"training.weight_decay": 0.5}}, "is both in sweep.arm_settings.top_k and varied by the sweep"),
        ({"top_k": {"model.density": 2.0}}, "model.density: found 2.0"),
    ):
        with pytest.raises(UserError, match=message):
            validate_experiment(sweep(arms=["per_token", "top_k"], arm_settings=wrong, grid=grid), "my.yaml")


def test_parts_are_replaced_and_a_grid_may_vary_them() -> None:
    experiment = small_experiment(arm="opening", parts={"objective": "cross_entropy", "sharpness": 2.0})
    goodness = arm_of(experiment.training).teacher.goodness
    assert goodness is not None
    assert goodness.objective is CROSS_ENTROPY
    assert goodness.sharpness == 2
    read = validate_experiment(
        sweep(arms=["opening"], grid={"training.parts.token_weight": ["uniform", "signal"]}), "my.yaml"
    )
    teachers = [arm_of(trial.experiment.training).teacher.goodness for trial in trials_of(read)]
    assert [each.token_weight for each in teachers if each] == ["uniform", "signal"]


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({}, {"arm": "task_only", "parts": {"gate": "hard"}}, "its gate has no derivative"),
        ({"density": 0.5}, {"arm": "dense", "parts": {"task_weight": 1.0}}, "its gate has no derivative"),
        ({}, {"arm": "per_token", "parts": {"gate": "softmaxx"}}, "unknown gate 'softmaxx'"),
        ({}, {"arm": "top_k", "parts": {"signal": "opening"}}, "which this arm's router is not taught by"),
        ({}, {"arm": "per_token", "parts": {"cost": "aggregated"}, "engine": "fused"}, "fused cannot run arm"),
    ],
)
def test_an_arm_that_cannot_train_is_refused_before_anything_starts(
    tmp_path: Path, model: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    values = {"name": "x", "model": {"hidden": 8, "heads": 2, **model}, "training": training}

    def start() -> None:
        read = validate_experiment({**values, "sweep": {"arms": [training["arm"]], "seeds": [0]}}, "my.yaml")
        check_start(trials_of(read), tmp_path, None)

    with pytest.raises(UserError, match=message):
        start()


@pytest.mark.parametrize("arm", ["per_token", "top_k", "remoe", "switch", "magnitude", "dense", "opening"])
def test_a_saved_model_computes_what_it_computed_whatever_its_gate(tmp_path: Path, arm: str) -> None:
    base = small_experiment(arm=arm)
    experiment = base.model_copy(update={"model": base.model.model_copy(update={"density": 0.25})})
    model = build_model(experiment)
    for layer in sparse_layers(model).values():
        if layer.regulation_state is not None:
            layer.set_regulation_state(layer.regulation_state._replace(load=torch.rand(layer.out_features)))
    save_model(tmp_path / "model", model, experiment)
    loaded = open_model(tmp_path / "model").model
    tokens = torch.arange(12).view(2, 6) % 7
    with torch.no_grad():
        assert torch.equal(loaded(tokens, tokens, tokens), model(tokens, tokens, tokens))


def test_the_documents_example_of_an_arm_keeps_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "arms.md").read_text(encoding="utf-8")
    (tmp_path / "my_arms.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("SALIENCE", "ROOTED"):
        check_start(trials_of(validate_experiment(sweep(arms=[f"my_arms:{name}"]), "my.yaml")), tmp_path / "out", None)
