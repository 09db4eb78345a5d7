"""The network of the cluster drill is its own, and goes away with it."""

import subprocess

import pytest

from tests.drills.namespaces import Network, why_not


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_network_reaches_its_own_and_leaves_nothing() -> None:
    with Network() as network:
        address, _ = network.add("one", 1)
        _, inside = network.add("two", 2)
        knock = f"import socket; socket.create_connection(('{address}', 9), 3)"
        refused = subprocess.run([*inside, "python3", "-c", knock], capture_output=True, text=True)
        assert "ConnectionRefusedError" in refused.stderr  # it is there; nobody listens
        assert address not in subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True).stdout
        ours = inside[3].removesuffix("two")  # by which its names begin; others may have networks of their own
        assert ours in _namespaces()
    assert ours not in _namespaces()


def _namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
