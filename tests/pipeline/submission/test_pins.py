"""The requirements that a cluster installs, pinned by the constraints."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.running.pins import disagreements, installed, pinned_requirements, read_pins, requirements

ROOT = Path(__file__).parents[3]

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
