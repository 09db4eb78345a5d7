"""Modules and packages of one's own that are sent with a job."""

import zipfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.settings.config import SweepConfig, replace
from pipeline.submission.own_code import not_sent, own_files
from pipeline.submission.package import files_to_send, write_package
from tests.pipeline.submission.trees import GOES, git, tracked
from tests.pipeline.toy_training import toy_experiment


def own_arms(folder: Path) -> tuple[Path, Path]:
    """A module, and a package with what gathers in one."""
    module, package = folder / "beside" / "mine.py", folder / "beside" / "my_costs"
    (package / "deep" / "__pycache__").mkdir(parents=True)
    for path in (
        module,
        package / "__init__.py",
        package / "deep" / "a.py",
        package / "deep" / "__pycache__" / "b.pyc",
    ):
        path.write_text("HALF = 1")
    return module, package


def test_modules_of_ones_own_go_along_by_the_names_that_they_are_imported_by(tmp_path: Path) -> None:
    project = tracked(tmp_path / "project")
    files = files_to_send(project).files
    module, package = own_arms(tmp_path)
    with pytest.raises(UserError, match=r"--include .*my_costs: is not under git") as refused:
        own_files([module, package], files)
    own, stays = own_files([module, package], files, [str(refused.value).partition("--untracked ")[2][:6]])
    assert stays == []
    write_package(project, files, {}, tmp_path / "x.zip", own)
    with zipfile.ZipFile(tmp_path / "x.zip") as package:
        names = set(package.namelist())
        assert names - {*GOES} == {"mine.py", "my_costs/__init__.py", "my_costs/deep/a.py"}
        assert package.read("mine.py") == b"HALF = 1"


def test_of_a_package_of_ones_own_go_the_files_that_git_tracks_and_no_links_out_of_it(tmp_path: Path) -> None:
    _, package = own_arms(tmp_path)
    git(package, "init", "--quiet")
    (package / "passwd").symlink_to("/etc/passwd")
    git(package, "add", ".")
    (package / "later.py").touch()
    (package / ".env").touch()
    own, stays = own_files([package], [])
    assert {path.as_posix() for path in own} == {"my_costs/__init__.py", "my_costs/deep/a.py"}
    assert "2 files that git does not track stay here, of --include" in stays[0]
    with pytest.raises(UserError, match=r"--include .*my_costs: would send what looks like a secret:\n  \.env"):
        own_files([package], [], [stays[0][-6:]])
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"link\.py: is a link\. Expected the module"):
        own_files([tmp_path / "link.py"], [])


def test_what_is_no_module_or_has_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    module, package = own_arms(tmp_path)
    for path in (package.parent, tmp_path / "task_only", package / "deep" / "__pycache__" / "b.pyc"):
        with pytest.raises(UserError, match=r"--include .*: is not a module\. Expected a file NAME\.py, or the folder"):
            own_files([path], [])
    git(package, "init", "--quiet")
    git(package, "add", ".")
    with pytest.raises(UserError, match=r"the project that is sent has a my_costs itself"):
        own_files([module, package], [Path("my_costs/x.py")])


def test_own_code_that_is_not_sent_is_refused_and_the_candidates_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, package = own_arms(tmp_path)
    monkeypatch.syspath_prepend(module.parent)
    (module.parent / "beside.py").write_text("import mine\nX = 1\n")
    arms = ("task_only", "mine:HALF", "my_costs.deep.a:HALF", "nowhere:X", "numpy:sum")
    swept = toy_experiment(sweep=SweepConfig(arms=arms, seeds=(0, 1)))
    with pytest.raises(UserError) as refused:
        not_sent(swept, [Path("pipeline/a.py")])
    assert str(refused.value).splitlines() == [
        "code of your own would not reach the cluster:",
        "  the arm 'mine:HALF' needs mine.py",
        "  the arm 'my_costs.deep.a:HALF' needs my_costs/__init__.py, my_costs/deep/a.py",
        f"Add to the command: --include {module} --include {package}",
    ]
    whole = [Path("mine.py"), Path("my_costs/__init__.py"), Path("my_costs/deep/a.py")]
    told = not_sent(swept, whole)
    assert [said.partition(", of")[0] for said in told] == ["nowhere", "numpy"]
    assert told[0].endswith("else submit with --include path/to/nowhere")
    assert not_sent(swept, [*whole, Path("nowhere/x.py"), Path("numpy.py")]) == []
    with pytest.raises(
        UserError, match=r"needs my_costs/deep/a\.py\nAdd to the command: `git add .*my_costs/deep/a\.py`"
    ):
        not_sent(swept, whole[:2])  # a file that git does not track, of a folder that goes along


@pytest.mark.parametrize(
    "changes",
    [
        {"data.task": "beside:TASK"},
        {"model.build": "beside:build"},
        {"training.observer": "beside:look"},
        {"training.optimizer": "beside:Own"},
        {"training.parts": {"objective": "beside:OWN"}},
    ],
)
def test_whatever_names_code_it_is_looked_for_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    module, _ = own_arms(tmp_path)
    monkeypatch.chdir(module.parent)  # found as `python -m` finds it, from the current folder
    (module.parent / "beside.py").write_text("import mine\nX = 1\n")
    experiment = replace(toy_experiment(), changes, "test")
    with pytest.raises(
        UserError, match=r"'beside:\w+' needs beside\.py, mine\.py\nAdd .*--include \S+ --include \S+mine"
    ):
        not_sent(experiment, [Path("pipeline/a.py")])
    assert not_sent(experiment, [Path("beside.py"), Path("mine.py")]) == []
