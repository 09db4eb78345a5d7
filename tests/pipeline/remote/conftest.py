"""A storage and a trial in it, for the tests of this folder."""

import pytest

from pipeline.layout import TrialFolder
from pipeline.remote.trial import RemoteTrial
from pipeline.training.worker import run_training
from tests.pipeline.object_store import object_store
from tests.pipeline.remote.training import CPU
from tests.pipeline.samples import small_data, small_experiment


@pytest.fixture(scope="module")
def store():
    with object_store() as running:
        yield running


@pytest.fixture
def remote(store, tmp_path):
    return RemoteTrial(store.storage() / tmp_path.name, "per_token-s0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What training comes to where nothing happens."""
    folder = TrialFolder(tmp_path_factory.mktemp("whole"))
    run_training(small_experiment(), folder, data.folder, CPU)
    return folder
