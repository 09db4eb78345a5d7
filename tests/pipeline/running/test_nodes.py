"""Nodes that are not like the driver are named before a trial starts."""

from pathlib import Path
from typing import Any

import pytest

import pipeline.running.nodes
from pipeline.errors import UserError
from pipeline.running.cluster import Resources, connect
from pipeline.running.nodes import check_nodes


def test_nodes_are_asked_for_versions_and_for_the_shared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real node; what it answers is bent on the way back, as a node of another make would answer."""
    monkeypatch.setattr(pipeline.running.cluster, "local_resources", lambda: Resources(1))
    with connect(None):
        import ray

        check_nodes(tmp_path)
        assert list(tmp_path.iterdir()) == []  # no trace of the question
        describe_node = pipeline.running.nodes.describe_node

        def elsewhere(mark: str | None) -> dict[str, Any]:
            there = describe_node(f"{mark}-on-another-disk")
            return {**there, "versions": {**there["versions"], "torch": "1.0", "python": "3.9"}}

        def broken(mark: str | None) -> dict[str, Any]:
            raise ModuleNotFoundError("No module named 'pipeline'")

        address = ray.util.get_node_ip_address()
        monkeypatch.setattr(pipeline.running.nodes, "describe_node", elsewhere)
        with pytest.raises(UserError) as refused:
            check_nodes(tmp_path)
        assert f"node {address}: python is 3.9, expected 3." in str(refused.value)
        assert f"node {address}: torch is 1.0, expected " in str(refused.value)
        assert f"node {address}: does not see {tmp_path}" in str(refused.value)
        monkeypatch.setattr(pipeline.running.nodes, "describe_node", broken)
        with pytest.raises(UserError, match=r"cannot run the project's code .*No module named 'pipeline'"):
            check_nodes(None)
