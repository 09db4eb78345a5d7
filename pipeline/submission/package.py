"""The working tree as one zip file, the same bytes for the same files, to be sent to a cluster."""

import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.submission.selection import Selection, select

MOST_BYTES = 100_000_000
_SHOWN = 5  # of what is large
_OF_THE_PROJECT = ("pyproject.toml", "pipeline", "tiny_onn")
_MARKER = ".tiny-onn-package"
_OLDEST = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file can hold


def files_to_send(tree: Path, wanted: Iterable[Path] = (), confirmed: Iterable[str] = ()) -> Selection:
    """The files below `tree` that go, as `select` says; `wanted` are files or folders that the experiment names.

    Raises:
        UserError: `tree` is not the root of a project; or as `select`.
    """
    if not (tree / "pyproject.toml").is_file():
        raise UserError(
            f"--tree {tree}: holds no pyproject.toml. Run this in the folder of the project that is to be sent, or "
            "name it with --tree."
        )
    return select(tree, f"--tree {tree}", confirmed, wanted)


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
            f"--tree {tree}: {sizes.total() / 1e6:,.0f} MB would be sent; the limit is {MOST_BYTES / 1e6:,.0f} MB. "
            f"Largest: {_largest(sizes)}. Add files that are not code to .gitignore, or move them out of the tree."
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        for path, place in sorted(places.items()):
            executable = os.access(place, os.X_OK)
            _add(package, path.as_posix(), place.read_bytes(), 0o755 if executable else 0o644)
        for name, text in sorted(extra.items()):
            _add(package, name, text.encode(), 0o644)
    return target.stat().st_size


def write_folder(tree: Path, files: Iterable[Path], target: Path) -> int:
    """Copies `files` of `tree` into the folder `target`, in place of what an earlier call put there; returns how many.

    Raises:
        UserError: `target` holds something else, or is in the way of what is copied.
    """
    marker = target / _MARKER
    if target.is_symlink() or (target.exists() and not marker.is_file() and any(target.iterdir())):
        raise UserError(
            f"{target}: is not a package of an earlier `tiny-onn pack`. Name a folder that is not there yet."
        )
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        aside.joinpath(_MARKER).write_text("Made by `tiny-onn pack`, which replaces this folder.\n")
        number = 0
        for path in files:
            place = aside / path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / path, place)
            place.chmod(0o755 if os.access(tree / path, os.X_OK) else 0o644)
            number += 1
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}). Name another folder.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return number


def _add(package: zipfile.ZipFile, name: str, content: bytes, mode: int) -> None:
    entry = zipfile.ZipInfo(name, date_time=_OLDEST)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    package.writestr(entry, content)


def _largest(sizes: Counter[Path]) -> str:
    """Folders at the top of the tree, and single files where one is most of its folder."""
    groups: Counter[str] = Counter()
    for path, size in sizes.items():
        groups[path.as_posix() if size > MOST_BYTES / 10 or len(path.parts) == 1 else f"{path.parts[0]}/"] += size
    return ", ".join(f"{name} ({size / 1e6:,.1f} MB)" for name, size in groups.most_common(_SHOWN))
