"""Modules and packages of one's own that go to a cluster beside the project, such as those of an arm."""

import importlib.machinery
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from pipeline.errors import UserError
from pipeline.settings.config import Experiment
from pipeline.settings.trials import every_trial
from pipeline.settings.user_code import code_in
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
    files: dict[Path, Path] = {}
    stays: list[str] = []
    for path in paths:
        name = path.absolute().name if path.name not in ("", "..") else path.resolve().name
        if path.is_symlink():
            raise UserError(f"--include {path}: is a link. Expected the module or package itself: {path.resolve()}")
        if path.is_file() and path.suffix == ".py":
            refuse_secrets(path.parent, [Path(path.name)], f"--include {path}")
            files[Path(name)] = path
        elif (path / "__init__.py").is_file():
            selection = select(path, f"--include {path}", confirmed)
            files |= {Path(name) / each: path / each for each in selection.files}
            stays += [selection.describe_left_out(f"--include {path}")] if selection.left else []
        else:
            raise UserError(
                f"--include {path}: is not a module. Expected a file NAME.py, or the folder of a package, which has an "
                "__init__.py in it: they are imported on the cluster by these names."
            )
        if name in taken:
            raise UserError(f"--include {path}: the project that is sent has a {name} itself. Expected another name.")
        taken.add(name)
    return files, stays


def not_sent(experiment: Experiment, sent: Iterable[Path]) -> list[str]:
    """What to say of each module that the settings name, an arm, model, task or the like, and that does not go along:
    the nodes must have it, as they may have an installed one.

    Raises:
        UserError: a module, or what it imports from beside it, is a file of this machine alone, and is not among the
            files sent; names all of them, and what to add to the command.
    """
    files = {path.as_posix() for path in sent}
    tops = {path.partition("/")[0].removesuffix(".py") for path in files}
    messages: list[str] = []
    refused: list[str] = []
    include: dict[str, None] = {}
    for module, what in sorted(_named(experiment).items()):
        top = module.partition(".")[0]
        place = _place(top)
        if place is None or _is_installed(top, place):
            if top not in tops:
                how = f"--include {place or f'path/to/{top}'}"
                messages.append(
                    f"{top}, of {what}, does not go along. The cluster's nodes must have it; else submit with {how}"
                )
            continue
        missing = sorted(code_in(module, place.parent).keys() - files)
        if missing:
            refused.append(f"  {what} needs {', '.join(missing)}")
            include |= dict.fromkeys(_how(place, missing, tops))
    if refused:
        raise UserError(
            "code of your own would not reach the cluster:\n" + "\n".join(refused) + "\n"
            f"Add to the command: {' '.join(include)}"
        )
    return messages


def _named(experiment: Experiment) -> dict[str, str]:
    """Each module that the settings of any trial name, with what names it."""
    modules: dict[str, str] = {}
    for trial in every_trial(experiment):
        training, model, data = trial.experiment.training, trial.experiment.model, trial.experiment.data
        names = {"arm": training.arm, "observer": training.observer, "optimizer": training.optimizer}
        names |= {"task": data.task, "model": model.build}
        names |= {f"part {part}": name for part, name in training.parts.model_dump().items() if isinstance(name, str)}
        for what, name in names.items():
            if name and ":" in name:
                modules.setdefault(name.partition(":")[0], f"the {what} {name!r}")
    return modules


def _how(place: Path, missing: Iterable[str], tops: Iterable[str]) -> list[str]:
    """The options with which the files that are missing go along."""
    root = place.parent
    options = []
    for file in missing:
        top = file.partition("/")[0]
        if top.removesuffix(".py") in tops:  # of a folder that goes along, git does not track the file
            options.append(f"`git add {root / file}`")
        else:
            options.append(f"--include {root / top}")
    return options


def _is_installed(top: str, place: Path) -> bool:
    return bool({"site-packages", "dist-packages"}.intersection(place.parts)) or top in _distributed()


@cache
def _distributed() -> frozenset[str]:
    """The modules and packages of everything that is installed, in place (`pip install -e`) too."""
    return frozenset(packages_distributions())


def _place(module: str) -> Path | None:
    """The file or folder of a module or package here; the current folder counts, as it does for `python -m`."""
    spec = importlib.machinery.PathFinder.find_spec(module, ["", *sys.path])
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    return origin.parent if spec.submodule_search_locations else origin
