"""Two gloo processes with unequal work against one with all of it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.tiny_onn.helpers import batch, loss_sum, new_dynamics, small_model
from tiny_onn.distributed import distribute, sum_over_workers

STEPS = 20
SHARES = ((0, 1), (1, 5))  # rows of each rank: one against four


def train(arm: str, shares: tuple[tuple[int, int], ...], rank: int) -> dict:
    model = small_model(arm)
    wrapped = distribute(model, router_learns_from_task=arm == "none")
    dynamics = new_dynamics(model, arm, rate=3e-3)
    generator, losses, metas, norms = torch.Generator().manual_seed(0), [], [], []
    for _ in range(STEPS):
        tokens, valid = batch(generator, 5, 7)
        first, last = shares[rank]
        with dynamics.capture(valid[first:last]) as captured:
            total, count = loss_sum(wrapped, tokens[first:last], valid[first:last])
            labels = sum_over_workers(torch.tensor(count))
            share = total / labels
            report = dynamics.compute_and_apply_gradients(share, captured, labels=labels, observe=True)
        losses.append(float(sum_over_workers(share.detach().clone())))
        metas.append(float(report.meta_loss))
        norms.append(float(report.gradient_norm))
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    health = {n: h.measures()["activation_rate"] for n, h in report.health.items()}
    return {"parameters": parameters, "losses": losses, "metas": metas, "norms": norms, "health": health}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        results = {arm: train(arm, SHARES, rank) for arm in ("per_token", "aggregated", "metric_only", "none")}
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("arm", ["per_token", "aggregated", "metric_only", "none"])
def test_sharding_does_not_change_the_result(two_workers: list[dict], arm: str) -> None:
    alone = train(arm, ((0, 5),), 0)
    for rank in range(2):
        shared = two_workers[rank][arm]
        assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-10)
        assert shared["norms"] == pytest.approx(alone["norms"], rel=1e-10)
        assert shared["metas"] == pytest.approx(alone["metas"], rel=1e-10, nan_ok=True)
        assert shared["health"] == pytest.approx(alone["health"], rel=1e-10)
        for name, value in alone["parameters"].items():
            torch.testing.assert_close(shared["parameters"][name], value, rtol=1e-10, atol=1e-10)
    assert alone["losses"][-1] < alone["losses"][0]
    for name, value in two_workers[0][arm]["parameters"].items():
        assert torch.equal(value, two_workers[1][arm]["parameters"][name])  # the replicas are bit-equal
