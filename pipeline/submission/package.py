"""The working tree as one zip file, the same bytes for the same files, to be sent to a cluster."""

import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import UserError

MOST_BYTES = 100_000_000
_SHOWN = 5  # of what is large
_LEFT_OUT_AT_THE_TOP = ("runs", "data", "build")
_LEFT_OUT = ("node_modules", "site-packages", "__pycache__")  # and all folders whose names begin with a dot
_OF_THE_PROJECT = ("pyproject.toml", "pipeline", "tiny_onn")
_OLDEST = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file can hold


def files_to_send(tree: Path, wanted: Iterable[Path] = ()) -> list[Path]:
    """The files below `tree`, as paths relative to it: those that git knows or would add; all, where there is no git.

    Left out besides: data and runs, folders whose names begin with a dot, caches and environments; links that lead out
    of the tree. `wanted` are files or folders that are taken all the same.

    Raises:
        UserError: `tree` is not the root of a project.
    """
    if not (tree / "pyproject.toml").is_file():
        raise UserError(
            f"--tree {tree}: holds no pyproject.toml. Run this in the folder of the project that is to be sent, or "
            "name it with --tree."
        )
    found = {path for path in _listed(tree) if not _is_left_out(path)}
    for path in wanted:
        found |= {path} if (tree / path).is_file() else {p.relative_to(tree) for p in (tree / path).rglob("*")}
    inside = tree.resolve()
    return sorted(p for p in found if (tree / p).is_file() and (tree / p).resolve().is_relative_to(inside))


def project_around(folder: Path) -> Path:
    """The nearest folder upwards that holds this project; `folder` itself where none does."""
    around = (folder, *folder.resolve().parents)
    return next((each for each in around if all((each / name).exists() for name in _OF_THE_PROJECT)), folder)


def write_package(
    tree: Path, files: Iterable[Path], extra: Mapping[str, str], target: Path, own: Mapping[Path, Path] | None = None
) -> int:
    """Zips `files` of `tree`, `own` files (path in the package -> path here) and `extra` (path in the package -> text)
    into `target`; returns its size in bytes.

    Raises:
        UserError: there is more than MOST_BYTES to send; names what is largest.
    """
    places = {path: tree / path for path in files} | dict(own or {})
    sizes = Counter({path: place.stat().st_size for path, place in places.items()})
    if sizes.total() > MOST_BYTES:
        raise UserError(
            f"--tree {tree}: {sizes.total() / 1e6:,.0f} MB would be sent, at most {MOST_BYTES / 1e6:,.0f} are. "
            f"Largest: {_largest(sizes)}. Let .gitignore name what is no code, or move it out of the tree."
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        for path, place in sorted(places.items()):
            executable = os.access(place, os.X_OK)
            _add(package, path.as_posix(), place.read_bytes(), 0o755 if executable else 0o644)
        for name, text in sorted(extra.items()):
            _add(package, name, text.encode(), 0o644)
    return target.stat().st_size


def _add(package: zipfile.ZipFile, name: str, content: bytes, mode: int) -> None:
    entry = zipfile.ZipInfo(name, date_time=_OLDEST)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    package.writestr(entry, content)


def _listed(tree: Path) -> list[Path]:
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return [path.relative_to(tree) for path in walk(tree)]
    return [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]


def walk(tree: Path) -> Iterable[Path]:
    """Without git, all files but those that are left out, whose folders it does not even look into."""
    for folder, folders, files in os.walk(tree):
        here = Path(folder).relative_to(tree)
        folders[:] = [name for name in folders if not _is_left_out(here / name / "any")]
        yield from (Path(folder) / name for name in files)


def _is_left_out(path: Path) -> bool:
    folders = path.parts[:-1]
    if path.name == ".git" or (folders and folders[0] in _LEFT_OUT_AT_THE_TOP):
        return True
    return any(name in _LEFT_OUT or name.startswith(".") for name in folders)


def _largest(sizes: Counter[Path]) -> str:
    """Folders at the top of the tree, and single files where one is most of its folder."""
    groups: Counter[str] = Counter()
    for path, size in sizes.items():
        groups[path.as_posix() if size > MOST_BYTES / 10 or len(path.parts) == 1 else f"{path.parts[0]}/"] += size
    return ", ".join(f"{name} ({size / 1e6:,.1f} MB)" for name, size in groups.most_common(_SHOWN))
