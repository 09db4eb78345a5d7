"""A storage and a trial in it, for the tests of this folder."""

import pytest

from pipeline.remote.trial import RemoteTrial
from tests.pipeline.object_store import object_store


@pytest.fixture(scope="module")
def store():
    with object_store() as running:
        yield running


@pytest.fixture
def remote(store, tmp_path):
    return RemoteTrial(store.storage() / tmp_path.name, "per_token-s0")
