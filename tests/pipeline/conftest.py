"""One MLflow server for all tests that need one, and a proxy before it that fails on demand."""

import pytest

from pipeline.layout import Output
from tests.pipeline.mlflow_server import FaultyProxy, MlflowServer


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Where the server keeps what it is told."""
    return Output(tmp_path_factory.mktemp("store"))


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
