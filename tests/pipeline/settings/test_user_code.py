"""Which files an experiment's settings name as code, and what is said when they change."""

import sys
from pathlib import Path

import pytest

from pipeline.settings.user_code import as_record, code_difference, code_digest, user_code
from tests.pipeline.toy_training import toy_experiment


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that can be imported; none of them is."""
    files = {
        "field_cost.py": "import json, torch\nfrom field_help import half\nimport tiny_onn.learning_cost\nCOST = 1\n",
        "field_help.py": "def half(x):\n    from field_pack.deep.inner import y\n    return x / 2\n",
        "field_unused.py": "z = 1\n",
        "field_pack/__init__.py": "from . import near\n",
        "field_pack/near.py": "raise ImportError('never imported here')\n",
        "field_pack/far.py": "",
        "field_pack/deep/__init__.py": "",
        "field_pack/deep/inner.py": "from ..far import *\nfrom .. import deep\ny = 1\n",
        "field_broken.py": "def (",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


ALL = [
    "field_cost.py",
    "field_help.py",
    "field_pack/__init__.py",
    "field_pack/deep/__init__.py",
    "field_pack/deep/inner.py",
    "field_pack/far.py",
    "field_pack/near.py",
]


def test_the_files_are_those_that_are_named_and_what_they_import_from_the_same_folder(tree: Path) -> None:
    code = user_code(toy_experiment(arms=("task_only", "field_cost:COST")))
    assert sorted(code) == ALL
    assert code["field_cost.py"] == (tree / "field_cost.py").read_bytes()
    assert not {"field_cost", "field_help"} & set(sys.modules)
    assert list(user_code(toy_experiment(arms=("field_broken:COST",)))) == ["field_broken.py"]
    # A module's name, as one arm, with `:` in a description, or of the project: nothing of these is the user's code.
    assert user_code(toy_experiment(arms=("task_only",), description="field_cost:COST")) == {}
    assert user_code(toy_experiment(arms=("tiny_onn.learning_cost:X", "nowhere_at_all:X"))) == {}
    assert code_digest({}) == ""


def test_of_an_installed_package_it_is_the_package_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tree / "site-packages"
    (place / "field_lib").mkdir(parents=True)
    (place / "field_lib" / "__init__.py").write_text("import field_other\nfrom field_lib.part import x\n")
    (place / "field_lib" / "part.py").write_text("x = 1\n")
    (place / "field_other.py").write_text("")
    monkeypatch.syspath_prepend(place)
    assert sorted(user_code(toy_experiment(arms=("field_lib:COST",)))) == ["field_lib/__init__.py", "field_lib/part.py"]


@pytest.mark.parametrize("name", ALL)
def test_each_file_changes_the_digest_and_is_named_with_its_lines(tree: Path, name: str) -> None:
    experiment = toy_experiment(arms=("field_cost:COST",))
    before = user_code(experiment)
    assert code_difference(as_record(before), before) == ""
    (tree / name).write_text((tree / name).read_text() + "extra = 7\n")
    now = user_code(experiment)
    assert code_digest(now) != code_digest(before)
    told = code_difference(as_record(before), now)
    assert told.startswith(f"{name}: is another\n")
    assert "\n  +extra = 7" in told
    assert told.count("is another") == 1


def test_files_that_come_and_go_are_named(tree: Path) -> None:
    experiment = toy_experiment(arms=("field_cost:COST",))
    before = user_code(experiment)
    (tree / "field_cost.py").write_text("import field_unused\n")
    told = code_difference(as_record(before), user_code(experiment))
    assert "field_help.py: is gone, or is not imported any more" in told
    assert "field_unused.py: is new" in told
