"""Every private or undocumented name of MLflow that this project uses, and what takes its place without it.

No other file names one. Nothing of MLflow is imported before a function here is called, and no function here raises
because a name is gone.
"""

import importlib
import inspect
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

# Where a SQLite store keeps the places of files.
PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
VIEW = "mlflow.sharedViewState."  # begins the tags of an experiment that MLflow's page takes a view from
_IMAGES = "images"
_REPOSITORY = "get_artifact_repository"


def missing() -> list[str]:
    """A sentence for each name that this version of MLflow lacks."""
    import mlflow

    uses: dict[str, tuple[Callable[[], object], str]] = {
        _REPOSITORY: (
            _probe_repository,
            "the files of an output folder that was moved or copied are looked for in its old place",
        ),
        "UnsupportedModelRegistryStoreURIException": (
            _probe_registry,
            "a store without a model registry is recognised by the text of its error",
        ),
    }
    problems = []
    for name, (probe, without) in uses.items():
        try:
            probe()
        except Exception as error:
            problem = f"{type(error).__name__}: {error!s:.200}"
            problems.append(f"MLflow {mlflow.__version__} lacks {name} ({problem}): {without}.")
    return problems


def artifact_repository(uri: str, tracking_uri: str) -> Any | None:
    """What reads and writes the files at `uri`; None where MLflow lacks it."""
    try:
        _probe_repository()
    except Exception:  # any way in which a private name can be missing; the caller falls back to public calls
        return None
    return _get_repository()(uri, tracking_uri=tracking_uri)


def is_no_registry(error: BaseException) -> bool:
    """Whether a store has no model registry, by the name of the error's class: no import that could fail instead."""
    return any(kind.__name__ == "UnsupportedModelRegistryStoreURIException" for kind in type(error).__mro__)


def known_path_columns(store: sqlite3.Connection) -> list[tuple[str, str]]:
    """Those of PATH_COLUMNS that this store has."""
    names = {table: {row[1] for row in store.execute(f"pragma table_info({table})")} for table, _ in PATH_COLUMNS}
    return [(table, column) for table, column in PATH_COLUMNS if column in names[table]]


def image_steps(paths: Sequence[str], key: str) -> set[int]:
    """The steps of the images that were logged under `key`, by the paths of a run's files in `images`.

    MLflow keeps one as images/<key>+step+<step>+timestamp+...; older versions part with %. Paths of another form say
    nothing.
    """
    start = f"{_IMAGES}/{key}+step+"
    decoded = (path.replace("%", "+") for path in paths)
    steps = (path.removeprefix(start).split("+")[0] for path in decoded if path.startswith(start))
    return {int(step) for step in steps if step.isascii() and step.isdecimal()}


def _get_repository() -> Any:
    return getattr(importlib.import_module("mlflow.store.artifact.artifact_repository_registry"), _REPOSITORY)


def _probe_repository() -> None:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    inspect.signature(_get_repository()).bind("uri", tracking_uri=None)
    for name, given in (
        ("log_artifact", 2),
        ("log_artifacts", 2),
        ("list_artifacts", 1),
        ("download_artifacts", 2),
    ):
        inspect.signature(getattr(ArtifactRepository, name)).bind("self", *["given"] * given)


def _probe_registry() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    if not issubclass(UnsupportedModelRegistryStoreURIException, MlflowException):
        raise TypeError("it is no MlflowException")
