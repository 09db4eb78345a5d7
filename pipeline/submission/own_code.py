"""Modules and packages of one's own that go to a cluster beside the project, such as those of an arm."""

import importlib.machinery
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.settings.config import Experiment
from pipeline.settings.trials import every_trial
from pipeline.submission.selection import refuse_secrets, select


def own_files(
    paths: Sequence[Path], sent: Iterable[Path], confirmed: Iterable[str] = ()
) -> tuple[dict[Path, Path], list[str]]:
    """The files of modules and packages at `paths`: by their path in what is sent, where they are imported by their
    names, the path here; and what to say of those that stay, as `select` has it.

    A single module goes as it is named. Of a package's folder go the files that git tracks, or that are confirmed.

    Raises:
        UserError: one is neither, or `sent` has something of its name; or as `select`.
    """
    taken = {path.parts[0] for path in sent}
    found: dict[Path, Path] = {}
    stays: list[str] = []
    for path in paths:
        name = path.absolute().name if path.name not in ("", "..") else path.resolve().name
        if path.is_symlink():
            raise UserError(f"--include {path}: is a link. Expected the module or package itself: {path.resolve()}")
        if path.is_file() and path.suffix == ".py":
            refuse_secrets(path.parent, [Path(path.name)], f"--include {path}")
            found[Path(name)] = path
        elif (path / "__init__.py").is_file():
            selection = select(path, f"--include {path}", confirmed)
            found |= {Path(name) / each: path / each for each in selection.files}
            stays += [selection.told(f"--include {path}")] if selection.left else []
        else:
            raise UserError(
                f"--include {path}: is no module. Expected a file NAME.py, or the folder of a package, which has an "
                "__init__.py in it: they are imported on the cluster by these names."
            )
        if name in taken:
            raise UserError(f"--include {path}: the project that is sent has a {name} itself. Expected another name.")
        taken.add(name)
    return found, stays


def not_sent(experiment: Experiment, sent: Iterable[Path]) -> list[str]:
    """What to say of each module that an arm, observer, task or model names and that is not among the files sent:
    the nodes must have it."""
    tops = {path.parts[0] for path in sent}
    settings = [trial.experiment for trial in every_trial(experiment)]
    named = {(each.training.arm, f"the arm {each.training.arm!r}") for each in settings}
    others: dict[str, set[str | None]] = {
        "observer": {each.training.observer for each in settings},
        "task": {each.data.task for each in settings},
        "model": {each.model.build for each in settings},
    }
    named |= {(name, f"the {what} {name!r}") for what, names in others.items() for name in names if name}
    modules = {name.partition(":")[0].partition(".")[0]: told for name, told in sorted(named) if ":" in name}
    return [
        f"{module}, of {told}, does not go along. The cluster's nodes must have it; else submit with "
        f"--include {_place(module)}"
        for module, told in modules.items()
        if module not in tops and f"{module}.py" not in tops
    ]


def _place(module: str) -> str:
    """Where it is here; the current folder counts, as it does for `python -m`."""
    spec = importlib.machinery.PathFinder.find_spec(module, ["", *sys.path])
    if spec is None or spec.origin is None:
        return f"path/to/{module}"
    origin = Path(spec.origin)
    return str(origin.parent if spec.submodule_search_locations else origin)
