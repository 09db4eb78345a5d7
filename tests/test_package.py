"""What the package holds once it is built, and that it runs where it is installed, outside the tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tiny_onn", "pipeline", "experiments")
NOT_SHIPPED = ("experiments/results/", "experiments/cluster/")


def run(*words: str | Path, cwd: Path) -> str:
    """What a command prints; without PYTHONPATH, so that it sees what is installed alone."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TINY_ONN"))}
    ran = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from what the sdist holds."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as b, sys; print(b.{}(sys.argv[1]))"
    run(sys.executable, "-c", build.format("build_sdist"), folder, cwd=tree)
    sdist = next(folder.glob("tiny_onn-*.tar.gz"))
    shutil.unpack_archive(sdist, folder / "unpacked")
    run(sys.executable, "-c", build.format("build_wheel"), folder, cwd=next((folder / "unpacked").iterdir()))
    return sdist, next(folder.glob("tiny_onn-*.whl"))


def test_the_wheel_and_the_sdist_hold_what_they_should(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        told = archive.read(metadata).decode()
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "*.yaml", "py.typed")
        for path in (ROOT / package).rglob(pattern)
        if not path.relative_to(ROOT).as_posix().startswith(NOT_SHIPPED)
    }
    assert {"experiments/ablation.yaml", "experiments/study/depth.yaml"} <= wanted
    assert {f"{package}/py.typed" for package in PACKAGES} <= wanted
    assert wanted - names == set()
    assert wanted - packed == set()
    assert "LICENSE" in packed
    assert metadata.replace("METADATA", "licenses/LICENSE") in names
    assert "License-Expression: Apache-2.0" in told
    assert [name for name in names if name.startswith(("tests/", "build/", *NOT_SHIPPED))] == []


def test_the_installed_package_runs_outside_the_tree(built: tuple[Path, Path], tmp_path: Path) -> None:
    """With the packages of this environment, so that nothing is downloaded, but not with its copy of ours."""
    home = tmp_path / "home"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "others.pth").write_text("".join(f"{each}\n" for each in sorted(others)))
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*install, "--force-reinstall", built[1], cwd=tmp_path)
    where = "import tiny_onn, pipeline, experiments as e; print(tiny_onn.__file__, pipeline.__file__, e.__file__)"
    found = run(python, "-c", where, cwd=tmp_path).split()
    assert [Path(each).parent.parent for each in found] == [own] * 3
    command = home / "bin" / "tiny-onn"
    listed = run(command, "experiments", cwd=tmp_path)
    assert "ablation" in listed
    assert "study/depth" in listed
    run(command, "init", "mine.yaml", cwd=tmp_path)
    planned = run(command, "plan", "smoke", "--no-calibration", cwd=tmp_path)
    assert "per_token" in planned
