"""The public interface: every name can be imported, whatever was imported before, and says what it is."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import tiny_onn

ROOT = Path(__file__).parents[2]


def in_a_new_process(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("name", tiny_onn.__all__)
def test_each_name_is_an_object_with_a_docstring_of_its_own(name: str) -> None:
    exported = getattr(tiny_onn, name)
    assert not isinstance(exported, ModuleType)
    assert callable(exported)
    assert exported.__name__ == name
    said = inspect.getdoc(exported) or ""
    assert len(said) > 20
    assert not said.startswith(f"{name}("), "a dataclass that says no more than its fields"


def test_the_names_for_type_checkers_are_those_that_are_imported() -> None:
    tree = ast.parse(Path(str(tiny_onn.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {name.name: each.module for each in block.body if isinstance(each, ast.ImportFrom) for name in each.names}
    assert told == {name: f"tiny_onn.{module}" for name, module in tiny_onn._MODULES.items()}
    assert sorted(told) == sorted(tiny_onn.__all__)


def test_functions_stay_functions_whether_their_modules_were_imported_before_or_after() -> None:
    names = ("arm", "capture", "gradient_norms", "learning_cost", "sparsify")
    check = f"assert all(getattr(tiny_onn, name).__name__ == name for name in {names})"
    modules = "; ".join(f"import tiny_onn.{name}" for name in names)
    in_a_new_process(f"import tiny_onn; {modules}; {check}; from tiny_onn.arm import TASK_ONLY")
    in_a_new_process(f"import tiny_onn; {check}; {modules}; {check}")
    in_a_new_process(f"import tiny_onn.dynamics; {check}; from tiny_onn import *; assert arm is tiny_onn.arm")


def test_importing_the_package_and_the_facts_about_arms_takes_no_torch() -> None:
    code = "import sys, tiny_onn, tiny_onn.arms; print('torch' in sys.modules, 'capture' in dir(tiny_onn))"
    assert in_a_new_process(code) == "False True"


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'capturing'"):
        _ = tiny_onn.capturing


def test_the_snippet_for_a_model_of_ones_own_trains_a_model() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("## A model")[2]
    snippet = text.partition("```python\n")[2].partition("```")[0]
    torch.manual_seed(0)
    model = torch.nn.Sequential(tiny_onn.SparseProtoLinear(5, 5), torch.nn.Linear(5, 3))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    labels = torch.tensor([[0, 1, 2, 0], [2, 1, 0, 0]])
    given = {
        "model": model,
        "inputs": torch.randn(2, 4, 5),
        "labels": labels,
        "valid": torch.ones(2, 4, dtype=torch.bool),
        "number_of_labels": labels.numel(),
        "cross_entropy": lambda logits, wanted: torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten()
        ),
    }
    exec(snippet, given)
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []
    assert given["report"].task_loss.isfinite()
