"""Routing on held-out tokens: against loops over tokens, by hand, under compiled blocks, and on two workers."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests import oracles
from tests.tiny_onn.helpers import batch, small_model
from tiny_onn.layers import SparseProtoCall, sparse_layers
from tiny_onn.model import GridTransformer
from tiny_onn.routing import Routing, Rule
from tiny_onn.routing_patterns import NOT_A_TASK, RoutingPatterns, watch_routing

NAMES = ("density", "dead_experts", "union_of_chunk", "task_information", "task_distance")
BATCHES = ((3, 19), (2, 11))  # rows and tokens
TASKS = (torch.tensor([0, 1, 0]), torch.tensor([2, 1]))
SHARES = ((0, 1), (1, 5))  # rows of each rank: one against four


def _batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(*batch(generator, *size), tasks) for size, tasks in zip(BATCHES, TASKS, strict=True)]


def _measured(patterns: RoutingPatterns) -> dict[str, float]:
    return {name: getattr(patterns, name)() for name in NAMES}


def _run(model: GridTransformer, batches: list[tuple[Tensor, Tensor, Tensor]], tasks: int = 3) -> RoutingPatterns:
    with torch.no_grad(), watch_routing(model, tasks) as patterns:
        for tokens, valid, of_rows in batches:
            patterns.use_rows(valid, of_rows)
            model(tokens, tokens % 5, tokens % 5)
    patterns.sum_over_workers()
    return patterns


def test_every_measure_is_its_slow_twin() -> None:
    model, batches = small_model(), _batches()
    seen: dict[str, list[tuple[str, list[list[bool]]]]] = {name: [] for name in sparse_layers(model)}
    for tokens, valid, tasks in batches:
        for row in range(len(tokens)):  # alone, and cut to its length: no padding at all
            length = int(valid[row].sum())
            calls: dict[str, SparseProtoCall] = {}
            handles = [
                layer.call_point.register_forward_hook(
                    lambda _m, args, _o, name=name, calls=calls: calls.update({name: args[0]})
                )
                for name, layer in sparse_layers(model).items()
            ]
            mine = tokens[row : row + 1, :length]
            model(mine, mine % 5, mine % 5)
            for handle in handles:
                handle.remove()
            for name, call in calls.items():
                seen[name].append((str(int(tasks[row])), (call.routing.weights()[0] > 0).tolist()))
    twins = [oracles.routing_patterns(rows) for rows in seen.values()]
    expected = {name: sum(twin[name] for twin in twins) / len(twins) for name in NAMES}
    assert expected["task_information"] > 0.001
    assert 0 < expected["density"] < expected["union_of_chunk"] < 1
    assert _measured(_run(model, batches)) == pytest.approx(expected, rel=1e-12)  # float64, and so is the twin


def _by_hand(weights: Tensor, valid: Tensor, tasks: Tensor) -> dict[str, float]:
    patterns = RoutingPatterns(["only"], [weights.shape[-1]], int(tasks.max()) + 1, torch.device("cpu"))
    patterns.use_rows(valid, tasks)
    routing = Routing(weights, None, Rule(1.0, 1))  # whose weights are mas(match)
    patterns.count(0, SparseProtoCall(weights, weights, weights, routing))
    return _measured(patterns)


def test_by_hand() -> None:
    # Task 0 uses expert 0 for all of its 8 tokens, task 1 expert 1; expert 2 is never used.
    weights = torch.zeros(2, 8, 3)
    weights[0, :, 0], weights[1, :, 1] = 1, 1
    valid = torch.ones(2, 8, dtype=torch.bool)
    apart = {"density": 1 / 3, "dead_experts": 1 / 3, "union_of_chunk": 1 / 3, "task_distance": 1.0}
    assert _by_hand(weights, valid, torch.tensor([0, 1])) == pytest.approx({**apart, "task_information": math.log(2)})
    weights[1] = weights[0]
    alike = {"density": 1 / 3, "dead_experts": 2 / 3, "union_of_chunk": 1 / 3, "task_distance": 0.0}
    alike["task_information"] = 0.0
    assert _by_hand(weights, valid, torch.tensor([0, 1])) == pytest.approx(alike, abs=1e-12)
    # One expert in turn for each of the eight tokens: three of eight tokens use expert 0, and the union is all of them.
    turns = torch.eye(3)[torch.arange(8) % 3][None]
    assert _by_hand(turns, valid[:1], torch.tensor([0]))["union_of_chunk"] == pytest.approx(1.0)
    assert _by_hand(torch.ones(2, 8, 3), valid, torch.tensor([0, 1]))["density"] == 1.0


def test_what_was_not_counted_is_nan_and_a_task_out_of_count_is_in_the_density_alone() -> None:
    weights, valid = torch.ones(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    measures = _by_hand(weights, valid, torch.tensor([0, NOT_A_TASK]))
    assert measures["density"] == 1.0
    assert math.isnan(measures["union_of_chunk"])  # no sequence has 8 tokens
    assert math.isnan(measures["task_distance"])  # one task has no other
    assert math.isnan(RoutingPatterns([], [], 0, torch.device("cpu")).density())
    assert math.isnan(RoutingPatterns(["a"], [3], 0, torch.device("cpu")).dead_experts())


COMPILED = """
import torch
from tests.tiny_onn.test_routing_patterns import _batches, _measured, _run, small_model
from tiny_onn.layers import CallPoint
model, batches = small_model(), _batches()
expected = _measured(_run(model, batches))
for block in model.blocks:
    block.compile(backend="eager")
def forward():
    with torch.no_grad():
        for tokens, _, _ in batches:
            model(tokens, tokens % 5, tokens % 5)
forward()
seen = []
points = [module for module in model.modules() if isinstance(module, CallPoint)]
handles = [point.register_forward_hook(lambda *_: seen.append(1)) for point in points]
forward()
for handle in handles:
    handle.remove()
assert not seen, "compiled blocks call hooks: there is nothing to test here"
assert _measured(_run(model, batches)) == expected
assert not any(point._forward_hooks for point in points)
print("equal")
"""


def test_compiled_blocks_are_counted_too() -> None:
    """In a process of its own, where nothing checks shapes at run time."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"


def test_nothing_is_changed() -> None:
    model, (tokens, valid, tasks) = small_model(), _batches()[0]
    with torch.no_grad():
        before = model(tokens, tokens % 5, tokens % 5)
        with watch_routing(model, 3) as patterns:
            patterns.use_rows(valid, tasks)
            assert torch.equal(model(tokens, tokens % 5, tokens % 5), before)
    with pytest.raises(AssertionError, match="use_rows"), watch_routing(nn.Sequential(model)):
        model(tokens, tokens % 5, tokens % 5)


def _shared(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        first, last = SHARES[rank]
        rows = [
            (tokens[row : row + 1], valid[row : row + 1], tasks[row : row + 1])
            for tokens, valid, tasks in _batches()
            for row in range(len(tokens))
        ]
        torch.save(_measured(_run(small_model(), rows[first:last])), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_workers_of_unequal_load_measure_the_same(tmp_path: Path) -> None:
    mp.spawn(_shared, args=(str(tmp_path),), nprocs=2)
    alone = _measured(_run(small_model(), _batches()))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(alone, rel=1e-12)
