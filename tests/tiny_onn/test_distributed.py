"""Two gloo processes with unequal work against one with all of it."""

import contextlib
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.tiny_onn.helpers import all_gradients, batch, loss_sum, new_dynamics, small_model
from tiny_onn.arm import arm as find_arm
from tiny_onn.capture import CaptureError
from tiny_onn.distributed import distribute, sum_over_workers
from tiny_onn.dynamics import DynamicsReport, LearningDynamics
from tiny_onn.layers import computation_parameters, router_parameters, sparse_layers

STEPS = 20
SHARES = ((0, 1), (1, 5))  # rows of each rank: one against four


ARMS = [
    ("per_token", "hooks"),
    ("aggregated", "hooks"),
    ("metric_only", "hooks"),
    ("none", "hooks"),
    ("per_token", "fused"),
    ("relative", "fused"),
    ("fisher", "fused"),
    ("none", "fused"),
    *(
        (arm, engine)
        for arm in ("opening", "balanced", "remoe", "switch", "both teachers")
        for engine in ("hooks", "fused")
    ),
]
OF_PARTS: dict[str, tuple[str, dict[str, object]]] = {  # arms limited to a part of the experts, or regulated towards it
    "opening": ("opening", {}),
    "balanced": ("balanced", {}),
    "remoe": ("remoe", {}),
    "switch": ("switch", {}),
    "both teachers": ("opening", {"gate": "mas", "task_weight": 0.5, "regulation": "quantile"}),
}


def train(arm: str, engine: str, shares: tuple[tuple[int, int], ...], rank: int) -> dict:
    name, parts = OF_PARTS.get(arm, (arm, None))
    chosen = find_arm(name, parts)
    model = small_model(chosen, density=None if parts is None else 0.3)
    dynamics = LearningDynamics(
        model,
        chosen,
        torch.optim.AdamW(computation_parameters(model), lr=3e-3),
        torch.optim.AdamW(router_parameters(model), lr=3e-3, weight_decay=0.0),
        engine=engine,
    )
    wrapped = distribute(model, router_in_backward=dynamics.router_in_backward)
    generator, losses, metas, norms = torch.Generator().manual_seed(0), [], [], []
    for number in range(STEPS):
        tokens, valid = batch(generator, 5, 7)
        first, last = shares[rank]
        mine = valid[first:last]
        labels = sum_over_workers(mine[:, 1:].sum())
        known = {"tokens": sum_over_workers(mine.sum())} if number % 2 else {}  # else the engine's message has them
        with dynamics.watch(mine, labels=labels, observe=True, **known) as engine:
            total, _ = loss_sum(wrapped, tokens[first:last], mine)
            report = dynamics.compute_and_apply_gradients(total / labels, engine)
        losses.append(float(report.task_loss))
        metas.append(float(report.meta_loss))
        norms.append(float(report.gradient_norm))
    parameters = {n: p.detach().clone() for n, p in model.state_dict().items()}  # a regulation's buffers among them
    health = {n: h.measures()["activation_rate"] for n, h in report.health.items()}
    bins = torch.stack([torch.cat([h.costs, h.goodness]) for h in report.health.values()])
    return {"parameters": parameters, "losses": losses, "metas": metas, "norms": norms, "health": health, "bins": bins}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        results = {f"{arm}/{engine}": train(arm, engine, SHARES, rank) for arm, engine in ARMS}
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("arm", "engine"), ARMS)
def test_sharding_does_not_change_the_result(two_workers: list[dict], arm: str, engine: str) -> None:
    alone = train(arm, engine, ((0, 5),), 0)
    for rank in range(2):
        shared = two_workers[rank][f"{arm}/{engine}"]
        assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-10)
        assert shared["norms"] == pytest.approx(alone["norms"], rel=1e-10)
        # Adam divides by the size of gradients that are next to nothing, and their rounding with it.
        assert shared["metas"] == pytest.approx(alone["metas"], rel=1e-9, nan_ok=True)
        assert shared["health"] == pytest.approx(alone["health"], rel=1e-10)
        assert float(shared["bins"].sum()) == float(alone["bins"].sum())
        # Rounding may carry a value over the edge of its bin, and one that all tokens share with all of them.
        assert float((shared["bins"] - alone["bins"]).abs().sum()) <= 0.01 * float(alone["bins"].sum())
        for name, value in alone["parameters"].items():
            torch.testing.assert_close(shared["parameters"][name], value, rtol=1e-10, atol=1e-10)
    assert alone["losses"][-1] < alone["losses"][0]
    for name, value in two_workers[0][f"{arm}/{engine}"]["parameters"].items():
        assert torch.equal(value, two_workers[1][f"{arm}/{engine}"]["parameters"][name])  # the replicas are bit-equal


def traffic(arm: str, engine: str, folder: str, rank: int) -> list[tuple[str, int]]:
    """Every collective of one step as (kind, bytes), by the profiler's record of what was asked of gloo."""
    seen: list[tuple[str, int]] = []
    model = small_model(arm)
    dynamics = new_dynamics(model, arm, engine=engine)
    wrapped = distribute(model, router_in_backward=dynamics.router_in_backward)
    tokens, valid = batch(torch.Generator().manual_seed(0), 5, 7)
    first, last = SHARES[rank]

    def one_step() -> None:
        labels = sum_over_workers(valid[first:last, 1:].sum())
        with dynamics.watch(valid[first:last], labels=labels, tokens=valid.sum()) as opened:
            total, _ = loss_sum(wrapped, tokens[first:last], valid[first:last])
            dynamics.compute_and_apply_gradients(total / labels, opened)

    one_step()  # DDP settles its buckets in the first step
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        one_step()
    for event in profiler.events():
        if event.name.startswith("gloo:"):
            shapes = event.input_shapes
            seen.append((event.name, 8 * sum(int(torch.tensor(shape).prod()) for shape in shapes if shape)))
    return seen


def traffic_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        cells = [("none", "hooks"), ("none", "fused"), ("per_token", "fused"), ("per_token", "hooks")]
        torch.save(
            {f"{arm}/{engine}": traffic(arm, engine, folder, rank) for arm, engine in cells}, f"{folder}/{rank}.pt"
        )
    finally:
        dist.destroy_process_group()


def test_the_single_pass_sends_what_plain_ddp_sends(tmp_path: Path) -> None:
    mp.spawn(traffic_worker, args=(str(tmp_path),), nprocs=2)
    seen = torch.load(tmp_path / "0.pt", weights_only=True)
    plain = seen["none/hooks"]
    assert plain
    assert seen["per_token/fused"] == plain
    assert seen["none/fused"] == plain
    # The hooks send P's and G's gradients after DDP's, in the message that carries the losses.
    assert len(seen["per_token/hooks"]) == len(plain)


def in_micro_batches(engine: str, rows: range, *, sync: bool = False) -> dict[str, torch.Tensor]:
    """Gradients of a step of one micro-batch a row; the router of the first layer is half frozen. `sync`: wrongly, in
    each backward pass."""
    tokens, valid = batch(torch.Generator().manual_seed(2), 5, 7)
    labels = valid[:, 1:].sum()
    model = small_model()
    next(iter(sparse_layers(model).values())).gate_param.requires_grad_(False)
    dynamics = new_dynamics(model, "per_token", engine=engine)
    wrapped = distribute(model, router_in_backward=dynamics.router_in_backward)

    def run() -> DynamicsReport:
        with dynamics.watch(labels=labels) as opened:
            for row in rows:
                last = row == rows[-1]
                with contextlib.nullcontext() if sync or last or wrapped is model else wrapped.no_sync():
                    mine = slice(row, row + 1)
                    opened.use_valid(valid[mine])
                    loss = loss_sum(wrapped, tokens[mine], valid[mine])[0] / labels
                    if not last:
                        loss.backward()
            return dynamics.compute_and_apply_gradients(loss, opened)

    return all_gradients(dynamics, run)


def micro_batches_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        by_engine = {engine: in_micro_batches(engine, range(*SHARES[rank])) for engine in ("hooks", "fused")}
        torch.save(by_engine, f"{folder}/{rank}.pt")
        for engine in ("hooks", "fused"):
            with pytest.raises(CaptureError, match="gradients of 2 backward passes of this step were each added up"):
                in_micro_batches(engine, range(2 * rank, 2 * rank + 2), sync=True)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # errors hold on to DDP, and with it to a thread of gloo's, which must not outlive the interpreter


def test_micro_batches_on_two_workers_are_one_batch_or_refused(tmp_path: Path) -> None:
    """One on one worker and four on the other; what is frozen stays so."""
    mp.spawn(micro_batches_worker, args=(str(tmp_path),), nprocs=2)
    truth = in_micro_batches("hooks", range(5))
    for rank in range(2):
        by_engine = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for engine in ("hooks", "fused"):
            assert by_engine[engine].keys() == truth.keys()
            for name, value in truth.items():
                torch.testing.assert_close(by_engine[engine][name], value, rtol=1e-10, atol=1e-12)


WRAPPERS = {
    "plain": lambda model, dynamics: torch.nn.parallel.DistributedDataParallel(model),
    "not at all": lambda model, dynamics: model,
    "static_graph": lambda model, dynamics: distribute(
        model, router_in_backward=dynamics.router_in_backward, static_graph=True
    ),
    "find_unused_parameters": lambda model, dynamics: distribute(
        model, router_in_backward=dynamics.router_in_backward, find_unused_parameters=True
    ),
    "distribute": lambda model, dynamics: distribute(model, router_in_backward=dynamics.router_in_backward),
}


def three_steps(engine: str, wrapper: str, rank: int) -> dict[str, torch.Tensor]:
    model = small_model()
    dynamics = new_dynamics(model, "per_token", engine=engine, rate=3e-3)
    wrapped = WRAPPERS[wrapper](model, dynamics)
    generator = torch.Generator().manual_seed(1)
    first, last = SHARES[rank]
    for _ in range(3):
        tokens, valid = batch(generator, 5, 7)
        labels = valid[:, 1:].sum()
        with dynamics.watch(valid[first:last], labels=labels) as opened:
            loss = loss_sum(wrapped, tokens[first:last], valid[first:last])[0] / labels
            dynamics.compute_and_apply_gradients(loss, opened)
    return {name: p.detach() for name, p in model.named_parameters()}


def wrappers_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for engine in ("hooks", "fused"):
            truth = three_steps(engine, "distribute", rank)
            for wrapper in ("static_graph", "find_unused_parameters"):
                for name, value in three_steps(engine, wrapper, rank).items():
                    torch.testing.assert_close(value, truth[name], rtol=1e-12, atol=1e-14, msg=f"{wrapper}: {name}")
            for wrapper in ("plain", "not at all"):
                with pytest.raises(CaptureError, match=r"were not summed over the workers.*wrap the bare model"):
                    three_steps(engine, wrapper, rank)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # errors hold on to DDP, and with it to a thread of gloo's, which must not outlive the interpreter


def test_a_wrapper_that_averages_is_refused_and_ddps_own_options_change_nothing(tmp_path: Path) -> None:
    mp.spawn(wrappers_worker, args=(str(tmp_path),), nprocs=2)
