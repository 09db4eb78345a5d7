"""The drill of the cluster of three nodes, as a test; and that its network goes away with it."""

import subprocess
from pathlib import Path

import pytest

from tests.drills.cluster_drill import rehearse
from tests.drills.namespaces import Network, why_not

needs_namespaces = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@needs_namespaces
def test_the_network_reaches_its_own_and_leaves_nothing() -> None:
    before = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    with Network() as network:
        address, _ = network.add("one", 1)
        _, inside = network.add("two", 2)
        knock = f"import socket; socket.create_connection(('{address}', 9), 3)"
        refused = subprocess.run([*inside, "python3", "-c", knock], capture_output=True, text=True)
        assert "ConnectionRefusedError" in refused.stderr  # it is there; nobody listens
        assert address not in subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True).stdout
    assert subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout == before


@pytest.mark.slow
@needs_namespaces
def test_a_cluster_loses_a_node_and_gains_one(tmp_path: Path) -> None:
    assert rehearse(tmp_path).startswith("4 of 4 finished")
