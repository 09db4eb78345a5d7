"""What our own source must never do: load a pickle, run text as code, build a shell command, trust any certificate."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.settings import yaml_file

ROOT = Path(__file__).parents[1]
PACKAGES = ("tiny_onn", "pipeline", "experiments")
# Modules whose loaders run what they read.
MODULES = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "torch.package")
CALLS = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "torch.jit.load")
CALLS += ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all")
METHODS = ("read_pickle", "load_model", "load_pickle")  # of pandas, MLflow and others
OURS = ("pipeline.tracking.load_model.load_model",)  # reads safetensors and JSON


def offences(source: str) -> Iterator[str]:
    """What `source` does that it must not, each as "line: what"."""
    tree = ast.parse(source)
    known: dict[str, str] = {}  # what a name stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                known[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.split(".")[0]
                )
                if _under(name.name, MODULES):
                    yield f"{node.lineno}: import {name.name}"
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                known[name.asname or name.name] = f"{node.module}.{name.name}"
                if _under(f"{node.module}.{name.name}", MODULES):
                    yield f"{node.lineno}: from {node.module} import {name.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _dotted(node.func, known)
            given = {word.arg: word.value for word in node.keywords}
            if called in CALLS or (called.rpartition(".")[2] in METHODS and called not in OURS):
                yield f"{node.lineno}: {called}"
            if called == "torch.load" and not _is(given.get("weights_only"), True):
                yield f"{node.lineno}: torch.load without weights_only=True"
            if called == "numpy.load" and not _is(given.get("allow_pickle", ast.Constant(False)), False):
                yield f"{node.lineno}: numpy.load with allow_pickle"
            if called == "yaml.load" and _dotted(given.get("Loader", node), known) not in (
                "yaml.SafeLoader",
                "_StrictLoader",
            ):
                yield f"{node.lineno}: yaml.load without a safe loader"
            if "shell" in given and not _is(given["shell"], False):
                yield f"{node.lineno}: {called} with shell"
            if "verify" in given and _is(given["verify"], False):
                yield f"{node.lineno}: {called} without looking at certificates"


def test_our_source_loads_no_pickle_and_runs_no_text() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 50
    problems = [f"{file.relative_to(ROOT)}:{what}" for file in files for what in offences(file.read_text())]
    assert problems == []
    assert issubclass(yaml_file._StrictLoader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import torch.package",
        "from joblib import load",
        "def f():\n    from cloudpickle import loads as l",
        "from torch import package",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load(x, Loader=yaml.Loader)",
        "import yaml\nyaml.load(x)",
        "from yaml import unsafe_load as u\nu(x)",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import pandas as pd\npd.read_pickle('x')",
        "import mlflow\nmlflow.pyfunc.load_model('x')",
        "import requests\nrequests.get('https://x', verify=False)",
    ],
)
def test_each_of_them_would_be_found(source: str) -> None:
    assert list(offences(source))


def test_what_is_safe_is_let_pass() -> None:
    safe = "import torch, yaml, re\ntorch.load('x', weights_only=True)\nre.compile('x')\n"
    safe += "yaml.load(x, Loader=yaml.SafeLoader)"
    assert list(offences(safe)) == []


def _under(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _dotted(node: ast.AST, known: dict[str, str]) -> str:
    """`np.load` as "numpy.load"; "" for what is no name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, known)}.{node.attr}"
    return ""


def _is(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


LIBRARIES = ("ray", "mlflow", "torch")
PRIVATE = ("pipeline/ray_private.py", "pipeline/mlflow_private.py", "tiny_onn/torch_private.py")


def private_names(source: str) -> Iterator[str]:
    """Private names of the libraries that `source` imports or reads, each as "line: what"."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {name.asname or name.name.partition(".")[0]: name.name for name in node.names if name.asname}
            known |= {name.name.partition(".")[0]: name.name.partition(".")[0] for name in node.names}
            imported = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            imported = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        yield from (f"{node.lineno}: {name}" for name in imported if _is_private(name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(name := _dotted(node, known)):
            yield f"{node.lineno}: {name}"
        elif isinstance(node, ast.Attribute) and node.attr == "_version":
            yield f"{node.lineno}: {node.attr}"


def _is_private(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in LIBRARIES and any(part.startswith("_") and not part.startswith("__") for part in parts)


def test_private_names_of_libraries_stand_in_one_file_each() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    by_file = {path.relative_to(ROOT).as_posix(): [*private_names(path.read_text(encoding="utf-8"))] for path in files}
    assert {name: names for name, names in by_file.items() if names and name not in PRIVATE} == {}
    assert all(by_file[name] for name in PRIVATE[::2])
    assert [*private_names("import torch\nx = torch._C.y()")] == ["2: torch._C.y", "2: torch._C"]
    assert next(private_names("from ray.train._internal import x\nx._version")) == "1: ray.train._internal.x"
