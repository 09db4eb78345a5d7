import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmarks.cli import bench
from experiments.benchmarks.cost_model import (
    Network,
    StepCost,
    all_reduce_seconds,
    efficiency,
    fit_network,
    step_seconds,
)
from experiments.benchmarks.scaling import cells
from experiments.benchmarks.workers import WorkerGroup

GIGABYTE_A_SECOND = Network(1e9, 0.0)
COUNTS = st.integers(1, 2000)
COSTS = st.builds(
    lambda compute, part, inside, outside: StepCost(compute, compute * part, tuple(inside), tuple(outside)),
    st.floats(1e-4, 10),
    st.floats(0, 1),
    st.lists(st.integers(0, 10**9), max_size=4),
    st.lists(st.integers(0, 10**9), max_size=2),
)


def test_a_ring_all_reduce_worked_by_hand() -> None:
    # 1 GB at 1 GB/s: each of W workers sends 2 (W - 1) pieces of 1/W GB.
    assert all_reduce_seconds(1e9, 1, GIGABYTE_A_SECOND) == 0
    assert all_reduce_seconds(1e9, 2, GIGABYTE_A_SECOND) == pytest.approx(1.0)
    assert all_reduce_seconds(1e9, 4, GIGABYTE_A_SECOND) == pytest.approx(1.5)
    assert all_reduce_seconds(1e9, 1000, GIGABYTE_A_SECOND) == pytest.approx(1.998)
    # 4 workers take 6 rounds of half a second's latency.
    assert all_reduce_seconds(1e9, 4, Network(1e9, 0.5)) == pytest.approx(4.5)


def test_a_step_worked_by_hand() -> None:
    # Two workers: a message takes as many seconds as it has gigabytes.
    cost = StepCost(compute=2.0, backward=1.0, in_backward=(10**9, 2 * 10**9), apart=(5 * 10**8,))
    assert step_seconds(cost, 2, GIGABYTE_A_SECOND, overlap=False) == pytest.approx(2 + 3 + 0.5)
    assert step_seconds(cost, 2, GIGABYTE_A_SECOND, overlap=True) == pytest.approx(2 + (3 - 1) + 0.5)
    assert efficiency(cost, 2, GIGABYTE_A_SECOND, overlap=False) == pytest.approx(2 / 5.5)
    hidden = StepCost(compute=2.0, backward=1.5, in_backward=(10**9,), apart=())
    assert efficiency(hidden, 2, GIGABYTE_A_SECOND, overlap=True) == 1.0


def test_the_same_bytes_cost_more_after_the_backward_pass() -> None:
    inside, after = StepCost(1.0, 0.6, (10**9,), ()), StepCost(1.0, 0.6, (4 * 10**8,), (6 * 10**8,))
    network = Network(1e10, 0.0)
    assert step_seconds(inside, 8, network, overlap=True) == 1.0
    assert step_seconds(after, 8, network, overlap=True) == pytest.approx(1 + 2 * 7 / 8 * 0.06)
    assert step_seconds(inside, 8, network, overlap=False) == pytest.approx(
        step_seconds(after, 8, network, overlap=False)
    )


@given(COSTS, COUNTS, st.floats(1e6, 1e12), st.floats(0, 1e-2), st.floats(1, 100), st.booleans())
def test_more_bandwidth_and_less_latency_are_never_slower(
    cost: StepCost, workers: int, bandwidth: float, latency: float, factor: float, overlap: bool
) -> None:
    slow = step_seconds(cost, workers, Network(bandwidth, latency), overlap=overlap)
    assert step_seconds(cost, workers, Network(bandwidth * factor, latency), overlap=overlap) <= slow * (1 + 1e-12)
    assert step_seconds(cost, workers, Network(bandwidth, latency / factor), overlap=overlap) <= slow * (1 + 1e-12)


@given(COSTS, COUNTS, st.floats(1e6, 1e12), st.floats(0, 1e-2))
def test_the_bounds_are_in_order_and_compute_is_the_least(
    cost: StepCost, workers: int, bandwidth: float, latency: float
) -> None:
    network = Network(bandwidth, latency)
    full, none = (step_seconds(cost, workers, network, overlap=overlap) for overlap in (True, False))
    assert cost.compute <= full <= none
    assert efficiency(cost, 1, network, overlap=False) == efficiency(cost, 1, network, overlap=True) == 1
    assert step_seconds(cost, workers + 1, network, overlap=False) >= none * (1 - 1e-12)


@given(st.floats(1e6, 1e11), st.floats(1e-6, 1e-2), st.integers(2, 9))
def test_the_fit_finds_the_network_that_made_the_times(bandwidth: float, latency: float, workers: int) -> None:
    made = Network(bandwidth, latency)
    sizes = (10**3, 10**5, 10**7, 10**9)
    fitted = fit_network(sizes, [all_reduce_seconds(size, workers, made) for size in sizes], workers)
    # The normal equations lose digits where one of the two terms is a millionth of the other.
    assert fitted.bandwidth == pytest.approx(bandwidth, rel=1e-4)
    assert fitted.latency == pytest.approx(latency, rel=1e-4)


def test_a_fit_has_no_negative_latency_and_refuses_times_without_a_slope() -> None:
    assert fit_network((100, 200), (1.0, 2.1), 2).latency == 0
    with pytest.raises(ValueError, match="expected several sizes"):
        fit_network((100,), (1.0,), 2)
    with pytest.raises(ValueError, match="no longer for more bytes"):
        fit_network((100, 200), (2.0, 1.0), 2)


def test_weak_and_strong_cells() -> None:
    sequences = {(c.scaling, c.workers): c.sequences for c in cells((2, 3)) if c.variant == "fused"}
    assert sequences == {
        **{("weak", workers): 1 for workers in (1, 2, 3)},
        **{("independent", workers): 1 for workers in (2, 3)},
        **{("strong", workers): 6 // workers for workers in (1, 2, 3)},
    }


def test_it_measures_fits_and_predicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")  # so that nothing is compiled, which takes its time
    words = ["--hidden", "16", "--layers", "1", "--seq", "12", "--workers", "2", "--repeats", "2", "--json"]
    done = CliRunner().invoke(bench, ["scaling", *words, "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["compiled"] is False
    measured = {(each["scaling"], each["workers"], each["variant"]): each for each in result["measured"]}
    assert {key[:2] for key in measured} == {
        *((scaling, count) for scaling in ("weak", "strong") for count in (1, 2)),
        ("independent", 2),
    }
    for (_, workers, _), each in measured.items():
        assert each["seconds"] > 0
        assert len(each["all_seconds"]) == 2
        assert each["more_workers_than_cores"] == (workers > len(os.sched_getaffinity(0)))
        assert (each["efficiency"] == 1) == (workers == 1)
    # Embeddings (16 + 32 + 32) x 16, two LayerNorms, a head of 16 x 16 + 16, and 4 layers of 2 x 16 x 16 + 16 numbers.
    gradients = 4 * (80 * 16 + 2 * 32 + 272 + 4 * (2 * 256 + 16))
    for variant in ("none", "fused", "hooks"):
        pair, apart = measured["weak", 2, variant], measured["independent", 2, variant]
        ratios = [a / b for a, b in zip(apart["all_seconds"], pair["all_seconds"], strict=True)]
        assert pair["of_floor"] == pytest.approx(sum(ratios) / 2)
        assert apart["collectives"] == apart["bytes"] == 0
        assert apart["of_floor"] is measured["weak", 1, variant]["of_floor"] is None
        # Counts of labels and tokens, int64, and both losses; the prototypes' sums and counts of hooks.
        assert pair["collectives"] == 3
        assert measured["weak", 1, variant]["bytes"] == measured["weak", 1, variant]["collectives"] == 0
    costs = result["fit"]["costs"]
    assert sum(costs["fused"]["in_backward"]) == sum(costs["none"]["in_backward"]) == gradients
    assert costs["fused"]["apart"][0] == costs["none"]["apart"][0] == 2 * 8
    assert sum(costs["hooks"]["in_backward"]) == gradients - 4 * (4 * 256)
    assert costs["hooks"]["apart"][1] == 4 * (4 * (256 + 2) + 1)
    for cost in costs.values():
        assert 0 < cost["backward"] < cost["compute"]
    assert result["fit"]["bandwidth_gbit"] > 0
    assert set(result["fit"]["check"]) == set(costs)
    assert [each["workers"] for each in result["predicted"]] == [8, 16, 64, 256, 1024] * 3
    for each in result["predicted"]:
        assert 0 < each["no_overlap"]["efficiency"] <= each["full_overlap"]["efficiency"] <= 1
    told = (tmp_path / "scaling.md").read_text()
    assert "predictions, not measurements" in told
    assert "100 Gbit/s each way and 10 us" in told
    assert "of the speed of as many independent processes" in told
    assert "run eagerly: there is no C++ compiler" in told


class Obedient:
    """What the workers below have in them."""

    def total(self, number: int) -> float:
        both = torch.tensor([float(number + dist.get_rank())])
        dist.all_reduce(both)
        return float(both)

    def fail(self, rank: int) -> None:
        if dist.get_rank() == rank:
            raise ValueError("as told")

    def die(self, rank: int) -> None:
        if dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()


def test_workers_answer_and_end_whatever_happens() -> None:
    with WorkerGroup(2, Obedient, (), 1) as group:
        assert group.call("total", 3) == [7.0, 7.0]
        with pytest.raises(RuntimeError, match=r"(?s)worker 1 of 2 failed in 'fail'.*ValueError: as told"):
            group.call("fail", 1)
        with pytest.raises(RuntimeError, match=r"worker \d of 2"):
            group.call("die", 0)
        pids = [process.pid for process in group._processes]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(("option", "value"), [("--latency-us", "nan"), ("--bandwidth-gbit", "inf")])
def test_a_network_of_no_number_is_refused(option: str, value: str) -> None:
    done = CliRunner().invoke(bench, ["scaling", option, value])
    assert done.exit_code == 2
    assert f"{value} is no finite number" in done.stderr
