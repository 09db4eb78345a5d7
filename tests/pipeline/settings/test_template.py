"""`tiny-onn init` and the experiments that come with the package."""

import os
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.settings import shipped
from pipeline.settings.config import Experiment, SweepConfig
from pipeline.settings.experiment_file import read_experiment
from pipeline.settings.shipped import find_experiment, shipped_experiments
from pipeline.settings.template import EXAMPLES, experiment_template
from pipeline.settings.wrong_settings import setting_names

ROOT = Path(__file__).parents[3]
SWEEP = SweepConfig(arms=("per_token", "aggregated", "task_only"), seeds=(0, 1, 2))
UNSET = re.compile(r"^( *)# ([a-z_]+:.*)$", re.MULTILINE)


def read(text: str, folder: Path) -> Experiment:
    (folder / "read.yaml").write_text(text)
    return read_experiment(folder / "read.yaml")


def names_in(text: str) -> set[str]:
    """The dotted names of the settings in a template, those behind `#` too."""
    names, groups = set(), [""] * 9
    for indent, name in re.findall(r"^( *)(?:# )?([a-z_]+):", text, re.MULTILINE):
        depth = len(indent) // 2
        groups[depth] = f"{groups[depth - 1]}.{name}" if depth else name
        names.add(groups[depth])
    return names


def test_the_template_is_all_defaults_and_a_sweep(tmp_path: Path) -> None:
    assert read(experiment_template("mine"), tmp_path) == Experiment(name="mine", sweep=SWEEP)


@pytest.mark.parametrize("name", ["true", "1", "1e5", "a.b-c", "null"])
def test_a_name_that_yaml_would_take_for_something_else_stays_one(name: str, tmp_path: Path) -> None:
    assert read(experiment_template(name), tmp_path).name == name


def test_the_template_has_every_setting_and_its_meaning() -> None:
    text = experiment_template("mine")
    inside = ("sweep.search.", "sweep.scheduler.")
    wanted = {name for name in setting_names(Experiment) if not name.startswith(inside)}
    missing = wanted - names_in(text)
    assert missing == set()
    words = " ".join(re.sub(r"^ *#", "", text, flags=re.MULTILINE).split())
    described = [str(info.description) for info in SweepConfig.model_fields.values() if info.description]
    assert len(described) > 3
    assert [each for each in described if each not in words] == []
    assert "whole number from 16 to 65536" in words
    assert "one of arc-agi-1, arc-agi-2, folder" in words
    assert max(map(len, text.splitlines())) <= 120


def test_all_examples_hold_once_they_are_set(tmp_path: Path) -> None:
    """Without "# ", but for `folder` and `pairs_per_task`, which go with another data set."""
    text = experiment_template("mine")
    top = set(Experiment.model_fields)
    fields = {name.rpartition(".")[2] for name in setting_names(Experiment)} | top
    fields -= {"folder", "pairs_per_task", "dataset"}

    def uncommented(line: re.Match[str]) -> str:
        return line[1] + line[2] if line[2].partition(":")[0] in fields else line[0]

    experiment = read(UNSET.sub(uncommented, text), tmp_path)
    assert experiment.study is not None
    assert experiment.study.primary_cell == {"model.layers": 4}
    assert experiment.training.parts.objective == "jsd"
    assert experiment.sweep is not None
    assert experiment.sweep.scheduler is not None
    assert experiment.scales.keys() == {"gpu"}
    unset = [path for path in EXAMPLES if path in setting_names(Experiment) and not path.startswith("data.")]
    values = experiment.model_dump(mode="json")
    for path in unset:
        value = values
        for part in path.split("."):
            value = value[part]
        assert value not in (None, {}), path


def test_init_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(main, ["init", "my study.yaml"])
    assert first.exit_code == 2
    assert "my study" in first.output
    assert list(tmp_path.iterdir()) == []
    made = CliRunner().invoke(main, ["init", "mine.yaml"], catch_exceptions=False)
    assert "tiny-onn plan mine.yaml" in made.output
    assert read_experiment(tmp_path / "mine.yaml").name == "mine"
    (tmp_path / "mine.yaml").write_text("edited")
    os.symlink("nowhere", "link.yaml")
    for name in ("mine.yaml", "link.yaml"):
        again = CliRunner().invoke(main, ["init", name])
        assert again.exit_code == 2
        assert "already exists" in again.output
    assert (tmp_path / "mine.yaml").read_text() == "edited"
    absent = CliRunner().invoke(main, ["init", "absent/mine.yaml"])
    assert absent.exit_code == 2
    assert "absent/mine.yaml: cannot be written (No such file or directory)" in absent.output


def test_shipped_experiments_are_known_by_name_where_there_is_no_such_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = shipped_experiments()
    ours = {
        path.relative_to(ROOT / "experiments").with_suffix("").as_posix()
        for folder in ("experiments", "experiments/study")
        for path in (ROOT / folder).glob("*.yaml")
    }
    assert set(shipped) == ours
    assert {"ablation", "smoke", "study/depth"} <= ours
    for name in ("study/depth", "depth", "experiments/study/depth.yaml", "study/depth.yaml"):
        assert find_experiment(name) == shipped["study/depth"]
    with pytest.raises(UserError, match=r"ablatoin: there is no such file.*did you mean 'ablation'"):
        find_experiment("ablatoin")
    for folder in ("ablation", "other"):
        Path(folder).mkdir()
    assert find_experiment("ablation") == shipped["ablation"]
    with pytest.raises(UserError, match="other: cannot be read"):
        read_experiment(find_experiment("other"))
    Path("ablation").rmdir()
    Path("ablation").write_text("mine")
    assert find_experiment("ablation") == Path("ablation")
    assert find_experiment(str(tmp_path / "absent.yaml")) == tmp_path / "absent.yaml"  # its reader says what is wrong


def test_a_name_that_two_experiments_end_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "shipped_experiments", lambda: {"a/x": Path("1"), "b/x": Path("2")})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no experiment of that name"):
        find_experiment("x")
    assert find_experiment("b/x") == Path("2")


def test_a_package_whose_experiments_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EntryPoint("theirs", "not_installed_at_all", "tiny_onn.experiments")
    monkeypatch.setattr(shipped, "entry_points", lambda group: [broken])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"not_installed_at_all: the package of the experiments of 'theirs' cannot"):
        find_experiment("ablation")
    Path("mine.yaml").write_text(experiment_template("mine"))
    assert find_experiment("mine.yaml") == Path("mine.yaml")


def test_experiments_are_listed_with_their_questions() -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(main, ["experiments"], catch_exceptions=False)
    for name, path in shipped_experiments().items():
        experiment = read_experiment(path)
        asked = experiment.study.question if experiment.study else experiment.description
        assert name in shown.output
        assert asked[:60] in shown.output


def test_the_command_alone_names_what_to_run_first() -> None:
    shown = CliRunner().invoke(main, [], catch_exceptions=False)
    assert shown.exit_code == 0
    named = re.findall(r"^  tiny-onn (\S+)", shown.output, re.MULTILINE)
    assert named == ["doctor", "ablate", "plan", "ablate", "experiments", "init", "settings"]
    assert set(named) <= set(main.list_commands(None))  # type: ignore[arg-type]
    for name in re.findall(r"^  tiny-onn (?:ablate|plan) (\S+)", shown.output, re.MULTILINE):
        assert name in shipped_experiments()
