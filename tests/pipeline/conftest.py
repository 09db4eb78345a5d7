"""One MLflow server for all tests that need one, and a proxy before it that fails on demand."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.layout import Output
from pipeline.tracking.store import open_store
from tests.pipeline.mlflow_server import FaultyProxy, MlflowServer


@pytest.fixture(scope="session")
def with_store(tmp_path_factory) -> Callable[[Path], Output]:
    """Puts an empty MLflow store into a folder, in no time: MLflow takes seconds to make its tables."""
    first = Output(tmp_path_factory.mktemp("first"))
    open_store(first.tracking_uri)

    def put(folder: Path) -> Output:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(first.root / "mlflow.db", folder)
        return Output(folder)

    return put


@pytest.fixture(scope="session")
def store(tmp_path_factory, with_store):
    """Where the server keeps what it is told."""
    return with_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def server(store):
    server = MlflowServer(store)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def proxy(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy = FaultyProxy(server)
    yield proxy
    proxy.be("down")
