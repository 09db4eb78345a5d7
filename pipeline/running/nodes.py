"""What every node of a cluster must share with the driver: the versions of what computes, and the output folder."""

import secrets
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.running.pins import disagreements, installed

_THAT_MATTER = ("ray", "torch", "numpy", "pyarrow", "pydantic", "safetensors")
_ANSWER_S = 90.0  # a node starts a Python process for this first


def check_nodes(folder: Path | None) -> None:
    """Asks every living node. `folder` is one that the driver writes to; None when nodes need not see it.

    Raises:
        UserError: names each node that does not see the folder, has other versions, or cannot run the project's code.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = None if folder is None else folder / f".seen-{secrets.token_hex(4)}"
    if mark is not None:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        asked: dict[str, Any] = {}
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ray.remote(num_cpus=0, max_retries=0)(describe_node).options(scheduling_strategy=there)
                asked[node["NodeManagerAddress"]] = task.remote(None if mark is None else str(mark))
        here = installed(dict.fromkeys(_THAT_MATTER, ""))
        problems = [problem for address, answer in asked.items() for problem in _problems(address, answer, here, mark)]
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)
    if problems:
        raise UserError("the cluster's nodes differ:\n" + "\n".join(f"  {problem}" for problem in problems))


def describe_node(mark: str | None) -> dict[str, Any]:
    """On a node: which versions are there, and whether it sees the file."""
    return {"versions": installed(dict.fromkeys(_THAT_MATTER, "")), "sees": mark is None or Path(mark).exists()}


def _problems(address: str, answer: Any, here: dict[str, str], mark: Path | None) -> list[str]:
    import ray

    try:
        seen = ray.get(answer, timeout=_ANSWER_S)
    except ray.exceptions.GetTimeoutError:
        return [f"node {address}: did not answer within {_ANSWER_S:g} s."]
    except Exception as error:  # whatever keeps that node from running a function of ours
        lines = str(getattr(error, "cause", None) or error).strip().splitlines()
        return [f"node {address}: cannot run the project's code ({lines[-1] if lines else type(error).__name__})."]
    problems = [f"node {address}: {each}, as the driver has." for each in disagreements(here, seen["versions"])]
    if not seen["sees"] and mark is not None:
        problems.append(
            f"node {address}: does not see {mark.parent}. Expected --output on a folder that all nodes share."
        )
    return problems
