import pytest
import torch

from tiny_onn.histogram import COST_BINS, GOODNESS_BINS, LogBins, log_bins
from tiny_onn.routing_health import Health, routing_health


def test_bins_by_hand() -> None:
    bins = LogBins(-1, 1, 2)  # (0.1, 0.316], (0.316, 1], (1, 3.16], (3.16, 10], and what is outside
    assert bins.edges() == [-1, -0.5, 0, 0.5, 1]
    assert bins.size == 6
    values = torch.tensor([[0.0, 0.1, 0.11], [0.5, 1.0, 1.01], [10.0, 11.0, torch.inf]], dtype=torch.float64)
    assert log_bins(values, bins).tolist() == [[0, 0, 1], [2, 2, 3], [4, 5, 5]]
    assert log_bins(torch.tensor([torch.nan, -1.0, 1e-45]), bins).tolist() == [0, 0, 0]


def test_what_is_judged_good_lies_in_the_bins_above_a_tenth() -> None:
    torch.manual_seed(0)
    weights, goodness = torch.rand(30, 7), torch.rand(30, 7) ** 4
    health = routing_health(weights, goodness, (goodness, goodness, goodness))
    above = torch.tensor([edge > -1 for edge in [*GOODNESS_BINS.edges(), 1]])
    assert float(health.goodness[above].sum()) == float(health.scalars[2])
    assert float(health.goodness.sum()) == float(health.costs.sum()) == 30 * 7


def test_a_value_that_all_tokens_share_counts_for_each_of_them() -> None:
    weights, good = torch.rand(5, 4), torch.tensor([1.0, 0.5, 0.01, 0.0])
    cost = torch.tensor([1.0, 0.2, 0.02, 0.002])
    health = routing_health(weights, good, (good, good, cost))
    each = routing_health(weights, good.expand(5, 4), (good.expand(5, 4),) * 2 + (cost.expand(5, 4),))
    assert torch.equal(health.goodness, each.goodness)
    assert torch.equal(health.costs, each.costs)
    assert health.costs[-1] == 0
    assert health.costs.argmax() == (12 - 3) * COST_BINS.per_decade + 2  # 10^-2.7 in (10^-2.75, 10^-2.5]


def test_shards_add_up_and_survive_a_reduction() -> None:
    torch.manual_seed(1)
    weights, good = torch.rand(20, 3), torch.rand(20, 3)
    parts = [routing_health(weights[s], good[s], (good[s],) * 3) for s in (slice(0, 7), slice(7, 20))]
    added = Health.from_flat((parts[0] + parts[1]).flat())
    whole = routing_health(weights, good, (good,) * 3)
    assert torch.equal(added.costs, whole.costs)
    assert torch.equal(added.goodness, whole.goodness)
    assert len(added.active) == 3


def test_without_goodness_nothing_is_counted_and_an_idle_expert_is_seen() -> None:
    health = routing_health(torch.tensor([[0.5, 0.0, 0.1, 0.0], [0.5, 0.2, 0.0, 0.0]]))
    assert float(health.costs.sum()) == float(health.goodness.sum()) == 0
    assert health.measures()["never_active"] == pytest.approx(1 / 4)
