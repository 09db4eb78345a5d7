"""Lets a process, and all that it starts, import a library as a version in which private names have changed."""

import json
import os
from pathlib import Path

_VARIABLE = "TINY_ONN_TEST_RENAMES"
_SITE = """
import importlib.abc, importlib.machinery, json, os, re, sys

RENAMES = json.loads(os.environ.get("TINY_ONN_TEST_RENAMES", "{}"))


class Renamed(importlib.machinery.SourceFileLoader):
    def get_code(self, name):
        source = self.get_data(self.path).decode()
        for prefix, old, new in RENAMES:
            if name.startswith(prefix):
                source = re.sub(rf"\\b{old}\\b", new, source)
        return compile(source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if not any(name.startswith(prefix) for prefix, _, _ in RENAMES):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = Renamed(spec.loader.name, spec.loader.path)
        return spec


if RENAMES:
    sys.meta_path.insert(0, Finder())
"""


def environment(folder: Path, renames: list[tuple[str, str, str]]) -> dict[str, str]:
    """The environment of such a process. Each rename is the beginning of modules' names, an old word and a new one."""
    (folder / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join([str(folder), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, _VARIABLE: json.dumps(renames), "PYTHONPATH": path}
