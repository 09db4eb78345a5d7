"""Experiments that come with installed packages, by name: YAML files beside the modules of a package.

A package names itself by an entry point of the group `tiny_onn.experiments`, whose value is the package.
"""

import os
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from pipeline.errors import UserError
from pipeline.settings.wrong_settings import did_you_mean

_GROUP = "tiny_onn.experiments"


def shipped_experiments() -> dict[str, Path]:
    """Name -> YAML file, sorted; a file in a subpackage is named by its path, as in `study/depth`.

    Raises:
        UserError: an installed package names one for its experiments that cannot be imported.
    """
    experiments: dict[str, Path] = {}
    for each in entry_points(group=_GROUP):
        try:
            folder = files(each.value)
        except ImportError as error:
            raise UserError(
                f"{each.value}: the package of the experiments of {each.name!r} cannot be imported ({error}). Install "
                f"{each.name} anew, or uninstall it; a config's path works without."
            ) from error
        if not isinstance(folder, Path):  # in a zip file
            continue
        for path in sorted(folder.rglob("*.yaml")):
            if (path.parent / "__init__.py").is_file():
                experiments.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return dict(sorted(experiments.items(), key=lambda item: (item[0].count("/"), item[0])))


def find_experiment(config: str | Path) -> Path:
    """The file at `config`; where there is none, the experiment of that name that comes with an installed package.

    `ablation`, `study/depth`, `depth`, if only one ends so, and `experiments/ablation.yaml` are such names.

    Raises:
        UserError: there is neither.
    """
    path = Path(config)
    is_folder = os.path.isdir(path)  # one may be called `search`, too
    if path.is_absolute() or (os.path.lexists(path) and not is_folder):
        return path
    shipped = shipped_experiments()
    name = path.as_posix().removesuffix(".yaml").removeprefix("experiments/")
    if name in shipped:
        return shipped[name]
    ending = [file for each, file in shipped.items() if each.rpartition("/")[2] == name]
    if len(ending) == 1:
        return ending[0]
    if is_folder:
        return path  # its reader says that it is no file
    raise UserError(
        f"{path}: there is no such file, and no experiment of that name comes with the package"
        f"{did_you_mean(name, shipped)}. `tiny-onn experiments` lists those that do; `tiny-onn init my-study.yaml` "
        "writes a file to edit."
    )
