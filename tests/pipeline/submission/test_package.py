"""What goes to a cluster and what stays, and which versions it must find there."""

import re
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import pipeline.submission.package
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.running.pins import disagreements, installed, pinned_requirements, read_pins, requirements
from pipeline.settings.config import SweepConfig, replace
from pipeline.submission.own_code import not_sent, own_files
from pipeline.submission.package import files_to_send, project_around, write_package
from pipeline.submission.submit import Submission, check_submission
from tests.pipeline.toy_training import toy_experiment

ROOT = Path(__file__).parents[3]

STAYS = (
    "runs/sweeps/a/metrics.jsonl",
    "data/shard.parquet",
    ".venv/lib/big.so",
    "pipeline/__pycache__/a.pyc",
    ".pytest_cache/x",
)
GOES = ("pyproject.toml", "pipeline/a.py", "pipeline/data/b.py", "experiments/c.yaml", ".gitignore")


def tree(folder: Path) -> Path:
    """A project with what a working tree gathers."""
    for name in (*STAYS, *GOES, "ignored.log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("*.log\n.venv/\n")
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def tracked(folder: Path, *names: str) -> Path:
    """`tree`, with these files under git, or all that it does not ignore."""
    if not (folder / "pyproject.toml").exists():
        tree(folder)
    git(folder, "init", "--quiet")
    git(folder, "add", *(names or ["."]))
    return folder


def sent(folder: Path, *wanted: Path, confirmed: Sequence[str] = ()) -> set[str]:
    """The names of what would be sent."""
    return {path.as_posix() for path in files_to_send(folder, wanted, confirmed).files}


def test_without_git_nothing_goes_until_the_list_is_confirmed(tmp_path: Path) -> None:
    tree(tmp_path)
    with pytest.raises(UserError, match=r"is not under git.*should be sent:\n(?s:.*)  pipeline/a\.py\n") as refused:
        files_to_send(tmp_path)
    code = re.search(r"--untracked ([0-9a-f]{6})", str(refused.value))
    assert code
    assert sent(tmp_path, confirmed=[code[1]]) == {*GOES, "ignored.log"}
    (tmp_path / "new.py").touch()  # it is not on the list that was confirmed
    with pytest.raises(UserError, match="is not under git"):
        files_to_send(tmp_path, (), [code[1]])


def test_with_git_what_it_ignores_stays_and_what_is_new_goes_when_confirmed(tmp_path: Path) -> None:
    tracked(tmp_path, "pyproject.toml", "pipeline/a.py")
    found = files_to_send(tmp_path)
    assert {path.as_posix() for path in found.files} == {"pyproject.toml", "pipeline/a.py"}
    assert {path.as_posix() for path in found.left} == {*GOES} - {"pyproject.toml", "pipeline/a.py"}
    told = found.describe_left_out("--tree x")
    assert "3 files that git does not track stay here, of --tree x:\n  .gitignore\n  experiments/c.yaml" in told
    assert told.endswith(f"--untracked {found.code}")
    assert sent(tmp_path, confirmed=["000000", found.code]) == set(GOES)
    (tmp_path / "pipeline" / "a.py").unlink()  # still in git's index
    assert sent(tmp_path, confirmed=[found.code]) == set(GOES) - {"pipeline/a.py"}


SECRETS = (".env", ".env.local", ".netrc", ".pypirc", "id_ed25519", "deploy/server.pem", "credentials.json", "a.key")
SECRETS += (
    "google-service-account.json",
    "pipeline/client_secret_12.json",
    "secrets/plain.txt",
    "Secrets.toml",
    "token",
)


@pytest.mark.parametrize("name", SECRETS)
def test_what_has_the_name_of_a_secret_is_refused_tracked_confirmed_or_wanted(tmp_path: Path, name: str) -> None:
    def put(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
        return folder

    with pytest.raises(UserError, match=rf"looks like a secret:\n  {re.escape(name)}\n"):
        files_to_send(tracked(put(tree(tmp_path / "one"))))
    other = tracked(tree(tmp_path / "two"))
    put(other)
    assert name not in sent(other)
    with pytest.raises(UserError, match="looks like a secret"):
        files_to_send(other, (), [files_to_send(other).code])
    third = tracked(tree(tmp_path / "three"))
    put(third / "data")
    with pytest.raises(UserError, match="looks like a secret"):
        files_to_send(third, [Path("data")])


def test_a_private_key_under_any_name_is_refused_and_a_sample_is_not(tmp_path: Path) -> None:
    tree(tmp_path)
    for name in (".env.example", "id_ed25519.pub", "pipeline/secrets.py", "pipeline/token.py", "notes-on-tokens.md"):
        (tmp_path / name).write_text("x")
    assert {".env.example", "pipeline/secrets.py"} <= sent(tracked(tmp_path))
    (tmp_path / "innocent.txt").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    git(tmp_path, "add", "innocent.txt")
    with pytest.raises(UserError, match=r"looks like a secret:\n  innocent\.txt"):
        files_to_send(tmp_path)


def test_this_project_itself_can_be_sent() -> None:
    found = files_to_send(ROOT)
    assert {Path("pyproject.toml"), Path("pipeline/secrecy.py")} <= set(found.files)


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    tracked(tmp_path)
    (tmp_path / "a\x1b[31m.py").touch()
    told = files_to_send(tmp_path).describe_left_out("--tree x")
    assert "\x1b" not in told
    assert "a?[31m.py" in told


def test_a_package_folder_for_ray_up_holds_what_would_be_sent(tmp_path: Path) -> None:
    project, target = tracked(tmp_path / "project"), tmp_path / "out" / "package"
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    git(project, "add", "run.sh")
    (project / ".env").write_text("x")
    words = ["pack", str(target), "--tree", str(project)]
    for _ in range(2):  # the second one in place of the first
        ran = CliRunner().invoke(main, words)
        assert ran.exit_code == 0, ran.output
        assert "1 file that git does not track stays here" in ran.output
        files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
        assert files - {".tiny-onn-package"} == {*GOES, "run.sh"}
        assert target.joinpath("run.sh").stat().st_mode & 0o777 == 0o755
        (target / "left.py").touch()
    assert sorted(path.name for path in target.parent.iterdir()) == ["package"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused = CliRunner().invoke(main, ["pack", str(tmp_path / "mine"), "--tree", str(project)])
    assert refused.exit_code == 2
    assert "is no package of an earlier `tiny-onn pack`" in refused.output
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["cluster.yaml", "experiments/cluster/aws.yaml"])
def test_ray_up_sends_the_package_and_no_folder_of_the_users(name: str) -> None:
    mounts = yaml.safe_load((ROOT / name).read_text())["file_mounts"]
    assert mounts == {"~/.ray/auth_token": "~/.ray/auth_token", "~/tiny-onn": "build/package"}


def test_a_data_folder_that_the_experiment_names_goes_along(tmp_path: Path) -> None:
    assert sent(tracked(tmp_path), Path("data")) == {*GOES, "data/shard.parquet"}


def test_a_data_file_that_the_experiment_names_goes_along_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    tree = tracked(tmp_path)
    (tree / "pipeline").mkdir(exist_ok=True)
    (tree / "book.txt").write_text("Once.")
    assert sent(tree, Path("book.txt")) == {*GOES, "book.txt"}
    for folder, there in (("book.txt", True), ("nowhere.txt", False)):
        experiment = replace(toy_experiment(), {"data.task": "text", "data.folder": folder}, "test")
        submission = Submission(experiment, tree, ROOT / "constraints.txt", "tiny-onn submit")
        if there:
            (tree / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
            assert check_submission(submission)
        else:
            with pytest.raises(UserError, match=r"data\.folder: .*nowhere\.txt is not there, so it cannot be sent"):
                check_submission(submission)


def test_a_link_out_of_the_tree_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("secret")
    project = tree(tmp_path / "project")
    (project / "link").symlink_to(outside)
    (project / "pipeline" / "inner").symlink_to(project / "pyproject.toml")
    (project / "pipeline" / "hidden").symlink_to(project / "ignored.log")  # which does not go itself
    tracked(project)
    assert not {"link", "pipeline/hidden"} & sent(project)
    assert "pipeline/inner" in sent(project)


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--tree .*pyproject\.toml"):
        files_to_send(tmp_path)


def test_the_package_holds_the_files_and_is_the_same_each_time(tmp_path: Path) -> None:
    project = tree(tmp_path / "project")
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    tracked(project)
    packages = []
    for name in ("one.zip", "two.zip"):
        size = write_package(project, files_to_send(project).files, {"submitted/x.json": "{}"}, tmp_path / name)
        packages.append((tmp_path / name).read_bytes())
        assert size == len(packages[-1])
    assert packages[0] == packages[1]
    with zipfile.ZipFile(tmp_path / "one.zip") as package:
        assert set(package.namelist()) == {*GOES, "run.sh", "submitted/x.json"}
        assert package.read("pipeline/a.py") == b"pipeline/a.py"
        assert package.getinfo("run.sh").external_attr >> 16 == 0o755


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
        with pytest.raises(UserError, match=r"--include .*: is no module\. Expected a file NAME\.py, or the folder"):
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


def test_the_project_is_found_from_within(tmp_path: Path) -> None:
    inside = ROOT / "experiments" / "study"
    assert project_around(inside).resolve() == ROOT
    assert project_around(tmp_path) == tmp_path


def test_too_much_is_refused_with_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.submission.package, "MOST_BYTES", 3_000_000)
    project = tree(tmp_path)
    (project / "weights").mkdir()
    (project / "weights" / "model.bin").write_bytes(bytes(2_500_000))
    for number in range(5):
        (project / "experiments" / f"{number}.npy").write_bytes(bytes(250_000))
    tracked(project)
    said = r"4 MB would be sent; the limit is 3 MB\. Largest: weights/model\.bin \(2\.5 MB\), experiments/ \(1\.3 MB\)"
    with pytest.raises(UserError, match=said):
        write_package(project, files_to_send(project).files, {}, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


PYPROJECT = """
[project]
name = "mine"
dependencies = ["Torch>=2.9", "ray[train,tune] >= 2.58", "some_thing", "click>=8.1,<9; python_version > '3'"]
"""


def test_requirements_are_pinned_by_the_constraints(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "constraints.txt").write_text(
        "torch==2.13.0+cpu\nray==2.60.0  # x\nsome-thing==1\nClick==8.5.1\nmypy==2\n"
    )
    needed, pins = requirements(tmp_path / "pyproject.toml"), read_pins(tmp_path / "constraints.txt")
    assert needed == {"torch": "", "ray": "[train,tune]", "some-thing": "", "click": ""}
    assert pinned_requirements(needed, pins) == [
        "click==8.5.1",
        "ray[train,tune]==2.60.0",
        "some-thing==1",
        "torch==2.13.0+cpu",
    ]
    there = {"torch": "2.13.0", "ray": "2.59.0", "click": "8.5.1"}
    wanted = {name: pins[name] for name in needed}
    assert disagreements(wanted, there) == ["ray is 2.59.0, expected 2.60.0", "some-thing 1 is missing"]
    del pins["ray"]
    with pytest.raises(UserError, match="does not pin ray"):
        pinned_requirements(needed, pins)


@pytest.mark.parametrize("text", [None, "torch>=2.9\n", ""])
def test_constraints_that_pin_nothing_are_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "constraints.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"constraints\.txt: .*name==version"):
        read_pins(path)


@pytest.mark.pinned
def test_this_projects_own_files_agree_with_what_is_installed_here() -> None:
    needed, pins = requirements(ROOT / "pyproject.toml"), read_pins(ROOT / "constraints.txt")
    assert {"torch", "ray", "mlflow"} <= set(needed)
    assert len(pinned_requirements(needed, pins)) == len(needed)
    assert disagreements({name: pins[name] for name in needed}, installed(needed)) == []


def test_a_folder_that_is_not_the_project_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("name: x")
    words = ["submit", str(config), "--address", "http://127.0.0.1:9", "--tree", str(tmp_path / "elsewhere")]
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 2
    assert f"--tree {tmp_path / 'elsewhere'}: has no pyproject.toml. Expected the project's folder" in ran.output
