"""What a project needs installed, and in which version: its pyproject.toml pinned by its constraints file."""

import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_EXTRAS = re.compile(r"\s*(\[[^\]]*\])?")


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
    pairs = (line.split("#")[0].split(";")[0].strip().partition("==") for line in lines)
    pins = {canonical(name.strip()): pinned.strip() for name, equals, pinned in pairs if equals and name.strip()}
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
    found = {}
    for line in listed:
        name = _NAME.match(line.strip())
        extras = _EXTRAS.match(line.strip(), name.end()) if name else None
        if name and extras:
            found[canonical(name.group())] = extras.group(1) or ""
    return found


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
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in names:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def disagreements(wanted: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """A phrase for each of `wanted` (name -> version) that is missing there or of another version."""
    return [
        f"{name} is {there[name]}, expected {wanted[name]}" if name in there else f"{name} {wanted[name]} is missing"
        for name in sorted(wanted)
        if there.get(name) != wanted[name].partition("+")[0]
    ]


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
