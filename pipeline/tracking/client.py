"""MLflow's client, made independent of the environment and of where a store has been moved.

- Every call is synchronous: with MLFLOW_ENABLE_ASYNC_LOGGING a call returns before anything is delivered.
- The model registry is the store itself: MLFLOW_REGISTRY_URI would put the models elsewhere.
- The files of a SQLite store lie in `mlflow-artifacts` beside it. MLflow keeps them by absolute paths, which are wrong
  once the folder has been moved, copied or mounted elsewhere.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.entities import FileInfo, Run

from pipeline.layout import ARTIFACTS
from pipeline.mlflow_private import artifact_repository


class StoreClient(MlflowClient):
    """A client of the store at `uri`, whose SQLite file is `database` (None of any other store)."""

    def __init__(self, uri: str, database: Path | None) -> None:
        super().__init__(tracking_uri=uri, registry_uri=uri)
        self._uri, self._database = uri, database

    def artifact_uri(self, run: Run) -> str:
        """Where the files of a run are, or are to be: beside the store, unless they lie only where the run says."""
        uri = str(run.info.artifact_uri)
        return uri if self._database is None else beside(self._database, uri)

    def log_batch(self, run_id: str, *arguments: Any, **options: Any) -> None:
        """As MLflow's, and delivered when it returns."""
        super().log_batch(run_id, *arguments, **{**options, "synchronous": True})

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """As MLflow's, and delivered when it returns."""
        super().set_tag(run_id, key, value, synchronous=True)

    def log_image(self, run_id: str, *arguments: Any, **options: Any) -> None:
        """As MLflow's, and delivered when it returns."""
        super().log_image(run_id, *arguments, **{**options, "synchronous": True})

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """As MLflow's, for one file."""
        self._files(run_id).log_artifact(local_path, artifact_path)

    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        """As MLflow's."""
        self._files(run_id).log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, run_id: str, path: str | None = None) -> list[FileInfo]:
        """As MLflow's."""
        return list(self._files(run_id).list_artifacts(path))

    def download_artifacts(self, run_id: str, path: str, dst_path: str | None = None) -> str:
        """As MLflow's."""
        return str(self._files(run_id).download_artifacts(path, dst_path))

    def _files(self, run_id: str) -> Any:
        # MLflow's own way remembers by run id alone: of two copies of a store it would take the first's files.
        repository = artifact_repository(self.artifact_uri(self.get_run(run_id)), self._uri)
        return _FilesByRun(self._uri, run_id) if repository is None else repository


class _FilesByRun:
    """The files of a run, by MLflow's client alone."""

    def __init__(self, uri: str, run_id: str) -> None:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.log_artifact = partial(client.log_artifact, run_id)
        self.log_artifacts = partial(client.log_artifacts, run_id)
        self.list_artifacts = partial(client.list_artifacts, run_id)
        self.download_artifacts = partial(client.download_artifacts, run_id)


def beside(database: Path, uri: str) -> str:
    """`uri`, an address of files in a folder `mlflow-artifacts`, in the folder of that name beside `database`.

    As it is where it is no such address, or where the files lie there and not beside the store.
    """
    path = _local(uri)
    if path is None or ARTIFACTS not in path.parts:
        return uri
    place = len(path.parts) - 1 - path.parts[::-1].index(ARTIFACTS)
    here = database.parent.resolve().joinpath(ARTIFACTS, *path.parts[place + 1 :])
    # os.path's, as a Path's exists() raises where one may not look
    return uri if here == path or (os.path.exists(path) and not os.path.exists(here)) else here.as_uri()


def _local(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    return Path(unquote(uri)) if not parts.scheme and uri.startswith("/") else None
