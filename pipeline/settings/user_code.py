"""The code that an experiment's settings name, `package.module:attribute`, and what that imports from its own tree.

It is read from the files, never imported. What is imported by other means than an import statement is not seen.
"""

import ast
import difflib
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from pipeline.settings.config import Experiment

Code = dict[str, bytes]
"""File contents by path, relative to the folder from which the module is imported."""

_NAMED = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):[A-Za-z_]\w*(?:\.\w+)*")
_TEXT = frozenset({"description", "study", "scales", "name"})
_OURS = frozenset({"pipeline", "tiny_onn"})  # of which `running.provenance.sources` keeps a hash
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_LONGEST_TEXT = 200_000  # bytes of a file that a record keeps whole
_DIFF_LINES = 30


def user_code(experiment: Experiment) -> Code:
    """Every file that the settings of `experiment` name as code, with what these files import from the same folder.

    Of an installed package that is the package alone. Modules that cannot be found are left out: they are refused when
    they are to be used.
    """
    return code_of(_texts(experiment.model_dump(mode="json", exclude=set(_TEXT))))


def code_of(texts: Iterable[str]) -> Code:
    """The same of those of `texts` that name code."""
    code: Code = {}
    for module in sorted({match[1] for text in texts if (match := _NAMED.fullmatch(text))}):
        root = _root(module.partition(".")[0])
        if root is not None and module.partition(".")[0] not in _OURS:
            _collect(module, root, code)
    return code


def code_in(module: str, root: Path) -> Code:
    """The file of a module that is imported from the folder `root`, with what it imports from there."""
    code: Code = {}
    _collect(module, root, code)
    return code


def code_digest(code: Code) -> str:
    """Twelve hex digits that change with any file; "" where there is none."""
    digest = hashlib.sha256()
    for path, content in sorted(code.items()):
        digest.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\0".encode())
    return digest.hexdigest()[:12] if code else ""


def as_record(code: Code) -> dict[str, dict[str, str | None]]:
    """`code` as JSON: each file's sha256, and its text where it is one and not too long."""
    return {
        path: {
            "sha256": hashlib.sha256(content).hexdigest(),
            "text": _text(content) if len(content) <= _LONGEST_TEXT else None,
        }
        for path, content in sorted(code.items())
    }


def code_difference(before: Mapping[str, Any], now: Code) -> str:
    """What has changed from the record `before` to `now`, a file after the other, with the lines that changed; "" if
    nothing has."""
    after = as_record(now)
    parts = []
    for path in sorted({*before, *after}):
        was, here = before.get(path), after.get(path)
        if not isinstance(was, Mapping):
            parts.append(f"{path}: is new")
        elif here is None:
            parts.append(f"{path}: is gone, or is not imported any more")
        elif was.get("sha256") != here["sha256"]:
            parts.append("\n".join([f"{path}: is another", *_changed_lines(was.get("text"), here["text"])]))
    return "\n".join(parts)


def _changed_lines(before: Any, now: str | None) -> list[str]:
    if not isinstance(before, str) or now is None:
        return []
    lines = list(difflib.unified_diff(before.splitlines(), now.splitlines(), "before", "now", lineterm="", n=1))
    more = [f"... and {len(lines) - _DIFF_LINES} lines more"] if len(lines) > _DIFF_LINES else []
    return [f"  {line}" for line in [*lines[:_DIFF_LINES], *more]]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(name)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _root(top: str) -> Path | None:
    """The folder that the module or package `top` is imported from; None where there is none on the disk."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve().parent
    return Path(spec.origin).resolve().parent if spec.origin and Path(spec.origin).is_file() else None


def _collect(module: str, root: Path, code: Code) -> None:
    only = module.partition(".")[0] if root.name in _INSTALLED else None
    left = [module]
    while left:
        for name, path in _files(left.pop(), root, only):
            place = path.relative_to(root).as_posix()
            if place in code:
                continue
            code[place] = path.read_bytes()
            if path.suffix == ".py":
                left += _imports(code[place], name, path.name == "__init__.py")


def _files(module: str, root: Path, only: str | None) -> Iterator[tuple[str, Path]]:
    """The file of a module under `root`, and those of the packages that it is in; by the module's name."""
    words = module.split(".")
    if words[0] in _OURS or (only is not None and words[0] != only):
        return
    for count in range(1, len(words) + 1):
        name, place = ".".join(words[:count]), root.joinpath(*words[:count])
        candidates = [place / "__init__.py", place.with_name(f"{place.name}.py")]
        candidates += [place.with_name(f"{place.name}{suffix}") for suffix in EXTENSION_SUFFIXES]
        for path in candidates:
            if path.is_file():
                yield name, path
                break


def _imports(source: bytes, module: str, is_package: bool) -> list[str]:
    """The names that a file's import statements may import, wherever they stand in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # whoever imports it will see that
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            above = package[: len(package) - (node.level - 1)] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{each.name}" for each in node.names)] if base else []
    return names


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None
