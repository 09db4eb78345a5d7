"""What a project needs installed, and in which version: its pyproject.toml pinned by its constraints file."""

import contextlib
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from pipeline.errors import UserError


def read_pins(constraints: Path) -> dict[str, str]:
    """Name -> version, of every line `name==version`.

    Raises:
        UserError: it cannot be read, or pins nothing.
    """
    try:
        lines = constraints.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{constraints}: cannot be read ({error}). Expected pins, a line each: name==version."
        ) from error
    pins: dict[str, str] = {}
    for line in lines:
        with contextlib.suppress(InvalidRequirement):  # an option of pip's, a comment, nothing
            requirement = Requirement(line.partition("#")[0].partition(" --")[0].strip())
            exact = [each.version for each in requirement.specifier if each.operator == "=="]
            if len(exact) == len(requirement.specifier) == 1:
                pins[canonicalize_name(requirement.name)] = exact[0]
    if not pins:
        raise UserError(f"{constraints}: pins nothing. Expected a line each: name==version.")
    return pins


def requirements(pyproject: Path) -> dict[str, str]:
    """Name -> extras (`[train,tune]`, or nothing) of what the project in `pyproject` needs to run: its dependencies,
    and its extra `pipeline`, where it has one.

    Raises:
        UserError: it is no project's file.
    """
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        listed = [*project.get("dependencies", []), *project.get("optional-dependencies", {}).get("pipeline", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{pyproject}: has no [project] that can be read ({error!r}).") from error
    by_name: dict[str, str] = {}
    for line in listed:
        with contextlib.suppress(InvalidRequirement):
            wanted = Requirement(line)
            extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
            by_name[canonicalize_name(wanted.name)] = extras
    return by_name


def pinned_requirements(needed: Mapping[str, str], pins: Mapping[str, str]) -> list[str]:
    """`name[extras]==version` for each that is needed, sorted.

    Raises:
        UserError: one is not pinned.
    """
    loose = sorted(set(needed) - set(pins))
    if loose:
        raise UserError(f"the constraints file does not pin {', '.join(loose)}, which pyproject.toml asks for.")
    return sorted(f"{name}{extras}=={pins[name]}" for name, extras in needed.items())


def installed(names: Mapping[str, str]) -> dict[str, str]:
    """Name -> version of those of `names` that are installed here, local labels (`+cpu`) cut off; and of Python."""
    versions = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in names:
        try:
            versions[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return versions


def disagreements(wanted: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """A phrase for each of `wanted` (name -> version) that is missing there or of another version."""
    return [
        f"{name} is {there[name]}, expected {wanted[name]}" if name in there else f"{name} {wanted[name]} is missing"
        for name in sorted(wanted)
        if name not in there or not _is_same(there[name], wanted[name])
    ]


def _is_same(one: str, other: str) -> bool:
    """Whether two versions are one, local labels (`+cpu`) aside: 2.0 is 2.0.0."""
    try:
        return Version(Version(one).public) == Version(Version(other).public)
    except InvalidVersion:
        return one == other
