"""`tiny-onn settings`, docs/settings.md, and what is said of a setting that there is not."""

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import api
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.settings.changes import parse_changes
from pipeline.settings.config import Experiment, replace
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.listing import as_markdown, every_setting, find_settings
from pipeline.settings.near_names import _ELSEWHERE, setting_hint
from pipeline.settings.wrong_settings import setting_names

ROOT = Path(__file__).parents[3]
NAMES = setting_names(Experiment)
EVERY = every_setting()
WHOLE = validate_experiment(
    {
        "name": "x",
        "sweep": {
            "arms": ["per_token", "aggregated", "task_only"],
            "seeds": [0],
            "grid": {"model.layers": [4, 6, 8]},
            "search": {"samples": 2, "space": {"training.weight_decay": {"uniform": [0, 1]}}},
            "scheduler": {"asha": {"grace_steps": 5}},
        },
        "study": {"question": "q", "intervention": "i", "primary_metric": "excess", "expectation": "e"},
    },
    "t",
)


def test_the_page_is_what_the_settings_say() -> None:
    """Else: `make settings` writes it anew."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == as_markdown(EVERY)


def test_every_setting_is_there_with_a_meaning_and_an_example_that_is_not_the_default() -> None:
    names = {name for name in NAMES if not name.startswith("sweep.search.space.")}
    groups = {name.rpartition(".")[0] for name in names}
    assert {each.name for each in EVERY} == names - groups
    assert [each.name for each in EVERY if not each.meaning] == []
    assert [each.name for each in EVERY if each.example in ("", "null", each.default)] == []


@pytest.mark.parametrize("name", [each.name for each in EVERY if not each.name.startswith("data.")])
def test_every_example_can_be_given(name: str) -> None:
    setting = next(each for each in EVERY if each.name == name)
    option, change = shlex.split(setting.change)
    beside: dict[str, dict[str, object]] = {
        "study.primary_cell": {"study.primary_arm": "aggregated"},
        "study.primary_arm": {"study.primary_cell": {"model.layers": 4}},
    }
    changed = replace(WHOLE, {**beside.get(name, {}), **parse_changes((change,))}, "t")
    assert option == "--set"
    assert changed != WHOLE


def test_a_word_finds_settings_by_name_meaning_and_what_others_call_them() -> None:
    for word, wanted in (("lr", "training.learning_rate"), ("STEPS", "training.steps"), ("GPUs", "workers.gpus")):
        assert wanted in [each.name for each in find_settings(word, EVERY)[0]]
    listed, elsewhere = find_settings("epochs", EVERY)
    assert "training.steps" in [each.name for each in listed]
    assert "how many epochs" in str(elsewhere)
    assert [each.name for each in find_settings("residual", EVERY)[0]] == ["model.hidden"]


def test_the_command_lists_and_refuses_a_word_that_nothing_is_about() -> None:
    shown = CliRunner().invoke(main, ["settings", "lr"], catch_exceptions=False).output
    assert "lr, here: training.learning_rate." in shown
    assert "    --set training.learning_rate=0.001\n" in shown
    assert CliRunner().invoke(main, ["settings", "--markdown"], catch_exceptions=False).output == as_markdown(EVERY)
    refused = CliRunner().invoke(main, ["settings", "wibble"])
    assert (refused.exit_code, refused.output.strip()) == (
        2,
        "Error: wibble: no setting is about that. `tiny-onn settings` lists them all.",
    )


@pytest.mark.parametrize("word", _ELSEWHERE)
def test_what_others_call_a_setting_is_none_here_and_names_settings_that_there_are(word: str) -> None:
    said = _ELSEWHERE[word]
    dotted = [each.strip(",;:.") for each in said.split() if "." in each.strip(",;:.") and "`" not in each]
    assert [each for each in dotted if each not in NAMES] == []
    assert dotted or "no setting" in said or said.startswith("--") or said == "name"
    for group in ("", "training.", "model."):
        if f"{group}{word}" not in NAMES:
            assert said in setting_hint(f"{group}{word}", NAMES)


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        ("training.stepz", " (did you mean 'training.steps'?)"),
        ("stepz", " (did you mean 'training.steps'?)"),
        ("training.hidden", " (did you mean 'model.hidden'?)"),
        ("model.hiden", " (did you mean 'model.hidden'?)"),
        ("modle.layers", " (did you mean 'model.layers'?)"),
        ("trainign", " (did you mean 'training'?)"),
        ("training.lr", " (here: training.learning_rate)"),
        ("training.dtype", " (here: training.precision)"),
        ("wibble", ""),
        ("training.wibble", ""),
        ("training.shuffle", ""),
        ("model.norm", ""),
        ("training.loss", ""),
        ("q" * 10_000, ""),
        ("", ""),
    ],
)
def test_a_near_match_is_offered_or_none(unknown: str, hint: str) -> None:
    assert setting_hint(unknown, NAMES) == hint


def test_all_unknown_settings_are_reported_at_once(tmp_path: Path) -> None:
    """Of the file, in every place that a setting can be named, and of --set, in one message with what else is wrong."""
    path = tmp_path / "my.yaml"
    path.write_text(
        "name: x\ntraining: {lr: 1e-3, epochs: 3, steps: 0}\nmodel: {wibble: 1}\nscales: {gpu: {model.dropout: 1}}\n"
        "sweep: {arms: [dense], seeds: [0], grid: {model.depth: [1]}, arm_settings: {dense: {training.wd: 0}},\n"
        "        search: {samples: 1, space: {training.bs: {choice: [1]}}}}\n"
    )
    with pytest.raises(UserError) as refused:
        api.read(path, {"training.momentum": 0.9, "model.stepz": 1, "workers.count": 2, "scales.gpu": {}})
    said = str(refused.value)
    for each in (
        "training.lr: no such setting (here: training.learning_rate)",
        "training.epochs: no such setting (here: training.steps",
        "training.steps: found 0",
        "  model.wibble: no such setting\n",
        "scale gpu: 'model.dropout' is no setting (here: no setting: the model has no dropout)",
        "sweep.grid: 'model.depth' is no setting (here: model.layers)",
        "sweep.arm_settings.dense: 'training.wd' is no setting (here: training.weight_decay)",
        "sweep.search.space: 'training.bs' is no setting (here: training.batch_tokens",
        "--set:\n  'training.momentum' is no setting (here: training.optimizer",
        "'model.stepz' is no setting (did you mean 'training.steps'?)",
    ):
        assert each in said
    assert "workers.count" not in said
    path.write_text("name: x\nsweep: {arms: [dense], seeds: [0], grid: {model.depth: [1], model.width: [8]}}\n")
    with pytest.raises(UserError) as refused:  # what pydantic takes, as these are keys of one's own
        api.read(path, {"training.momentum": 0.9})
    assert str(refused.value).count("is no setting") == 3
    path.write_text("name: x\n")
    with pytest.raises(UserError) as refused:
        api.read(path, {"training.lr": 1, "training.epochs": 1})
    assert str(refused.value).count("is no setting") == 2
