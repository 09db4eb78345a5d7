"""Old names of options, settings and arguments work for one version, with a warning, and mean what they meant."""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.renamed import RenamedWarning, current_words, format_warning, takes_old_names
from pipeline.running.claim import check_claim, claim
from pipeline.settings.config import replace
from pipeline.settings.experiment_file import read_changed, read_experiment, validate_experiment
from pipeline.submission import on_cluster

OLD, NEW = "generate_tasks", "decode_tasks"


def _written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump({"name": "x", **values}))
    return path


def test_a_setting_in_a_file_is_read_by_its_old_name(tmp_path: Path) -> None:
    path = _written(tmp_path, {"training": {OLD: 3}})
    with pytest.warns(RenamedWarning, match=r"x\.yaml: training\.generate_tasks is now called training\.decode_tasks"):
        assert read_experiment(path).training.decode_tasks == 3


@pytest.mark.parametrize("changes", [{f"training.{OLD}": 3}, {"training": {OLD: 3}}])
def test_a_setting_is_changed_by_its_old_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = _written(tmp_path, {})
    with pytest.warns(RenamedWarning, match=f"with --set: training.{OLD}"):
        assert read_changed(path, changes, None, "x").experiment.training.decode_tasks == 3


def test_so_it_is_in_grids_scales_and_settings_of_arms(tmp_path: Path) -> None:
    sweep = {"arms": ["task_only"], "seeds": [0], "grid": {f"training.{OLD}": [1, 2]}}
    sweep["arm_settings"] = {"task_only": {"model.gain": 2.0}}
    scales = {"a": {f"training.{OLD}": 4}, "b": {"training": {OLD: 5}}}
    with pytest.warns(RenamedWarning):
        experiment = read_experiment(_written(tmp_path, {"sweep": sweep, "scales": scales}))
    assert experiment.sweep is not None
    assert dict(experiment.sweep.grid) == {f"training.{NEW}": (1, 2)}
    assert experiment.scales == {"a": {f"training.{NEW}": 4}, "b": {"training": {NEW: 5}}}
    own = {**sweep, "grid": {}, "arm_settings": {"task_only": {f"training.{OLD}": 6}}}
    with pytest.warns(RenamedWarning):
        experiment = read_experiment(_written(tmp_path, {"sweep": own}))
    assert experiment.sweep is not None
    assert experiment.sweep.arm_settings == {"task_only": {f"training.{NEW}": 6}}


def test_a_setting_by_both_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"training.{OLD} and {NEW} are one setting; expected {NEW} alone"):
        read_experiment(_written(tmp_path, {"training": {OLD: 3, NEW: 3}}))


def test_records_and_digests_of_the_last_version_are_those_of_this_one(tmp_path: Path) -> None:
    now = validate_experiment({"name": "x", "training": {NEW: 3}}, "t")
    assert now.digest() == "fd7082dc3b6524a9"
    then = now.model_dump(mode="json")
    then["training"][OLD] = then["training"].pop(NEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody can change a record
        assert validate_experiment(then, "t") == now
        assert claim(tmp_path, now, "data", False, "tiny-onn train")
        record = tmp_path / "sweep.json"
        record.write_text(record.read_text().replace(NEW, OLD))
        assert check_claim(tmp_path, now, "data") == ()
    with pytest.raises(UserError, match=rf"training\.{NEW}: there 3, now 4"):
        check_claim(tmp_path, replace(now, {f"training.{NEW}": 4}, "t"), "data")


@pytest.mark.parametrize("command", ["train", "ablate", "submit"])
def test_an_option_by_its_old_name_is_the_same_option(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(main.commands[command], "callback", lambda **options: seen.update(options))
    words = [command, "x.yaml", "--track-later", *(["--address", "http://a:1"] if command == "submit" else [])]
    words += ["--any-versions", "--add=b.py"] if command == "submit" else []
    with pytest.warns(RenamedWarning) as told:
        done = CliRunner().invoke(main, words)
    assert (done.exit_code, seen["allow_offline_tracking"]) == (0, True), done.output
    assert len(told) == (3 if command == "submit" else 1)
    if command == "submit":
        assert (seen["skip_version_check"], seen["include"]) == (True, (Path("b.py"),))


def test_what_looks_like_an_old_option_and_is_a_value_stays() -> None:
    assert current_words(["--set", "name=--track-later", "--tracked"]) == ["--set", "name=--track-later", "--tracked"]


def test_a_job_of_the_last_version_skips_the_check_of_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("pipeline.cli.main", ran.append)
    monkeypatch.setenv("RAY_ADDRESS", "here")
    with pytest.warns(RenamedWarning, match="--any-versions is now called --skip-version-check"):
        on_cluster.main(["--any-versions", "ablate", "x.json", "--output", "/o"])
    assert ran == [["ablate", "x.json", "--output", "/o", "--address", "here"]]


def test_a_function_takes_its_argument_by_the_old_name() -> None:
    @takes_old_names
    def run(*, allow_offline_tracking: bool = False) -> bool:
        return allow_offline_tracking

    with pytest.warns(RenamedWarning, match=r"run\(\): track_later is now called allow_offline_tracking"):
        assert run(track_later=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="one argument"):
        run(track_later=True, allow_offline_tracking=True)  # type: ignore[call-arg]


def test_the_command_shows_the_warning_as_a_line_of_its_own() -> None:
    message = RenamedWarning("a is now called b.")
    assert format_warning(message, RenamedWarning, "x.py", 3) == "Warning: a is now called b.\n"
    assert "x.py:3: UserWarning: c" in format_warning(UserWarning("c"), UserWarning, "x.py", 3)


def test_the_models_of_runs_are_loaded_from_the_old_module() -> None:
    sys.modules.pop("pipeline.tracking.registered", None)
    with pytest.warns(RenamedWarning, match=r"now called pipeline\.tracking\.load_model"):
        old = importlib.import_module("pipeline.tracking.registered")
    assert old.load_model is importlib.import_module("pipeline.tracking.load_model").load_model
