"""What goes to a cluster and what stays, and which versions it must find there."""

import re
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import pipeline.submission.package
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.settings.config import replace
from pipeline.submission.package import files_to_send, project_around, write_package
from pipeline.submission.submit import Submission, check_submission
from tests.pipeline.submission.trees import GOES, git, sent, tracked, tree
from tests.pipeline.toy_training import toy_experiment

ROOT = Path(__file__).parents[3]


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
    selection = files_to_send(tmp_path)
    assert {path.as_posix() for path in selection.files} == {"pyproject.toml", "pipeline/a.py"}
    assert {path.as_posix() for path in selection.left} == {*GOES} - {"pyproject.toml", "pipeline/a.py"}
    told = selection.describe_left_out("--tree x")
    assert "3 files that git does not track stay here, of --tree x:\n  .gitignore\n  experiments/c.yaml" in told
    assert told.endswith(f"--untracked {selection.code}")
    assert sent(tmp_path, confirmed=["000000", selection.code]) == set(GOES)
    (tmp_path / "pipeline" / "a.py").unlink()  # still in git's index
    assert sent(tmp_path, confirmed=[selection.code]) == set(GOES) - {"pipeline/a.py"}


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
    selection = files_to_send(ROOT)
    assert {Path("pyproject.toml"), Path("pipeline/secrecy.py")} <= set(selection.files)


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
    assert "is not a package of an earlier `tiny-onn pack`" in refused.output
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


def test_a_folder_that_is_not_the_project_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("name: x")
    words = ["submit", str(config), "--address", "http://127.0.0.1:9", "--tree", str(tmp_path / "elsewhere")]
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 2
    assert f"--tree {tmp_path / 'elsewhere'}: has no pyproject.toml. Expected the project's folder" in ran.output
