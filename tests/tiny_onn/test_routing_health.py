import math

import pytest
import torch
from scipy.stats import spearmanr

from tiny_onn.health_sums import CallSums, call_sums, ranked_places
from tiny_onn.rank_correlation import ranks_by_bits, ranks_by_search, spearman
from tiny_onn.routing_health import Health, HealthOfStep, routing_health


def test_by_hand() -> None:
    # Two tokens use experts 0 and 1 each alone, one uses both alike, one goes nowhere; expert 2 is never used.
    weights = torch.tensor([[1.0, 0, 0], [0, 0.5, 0], [0.3, 0.3, 0], [0, 0, 0]])
    measures = routing_health(weights).measures()
    assert measures["activation_rate"] == pytest.approx(4 / 12)
    assert measures["routed_nowhere"] == pytest.approx(1 / 4)
    # The mean distribution over the routed tokens is (1/2, 1/2, 0): two experts in use.
    assert measures["effective_experts"] == pytest.approx(2.0)
    # H(mean) = ln 2; the tokens' own entropies are 0, 0, ln 2.
    assert measures["mutual_information"] == pytest.approx(math.log(2) * 2 / 3)
    assert math.isnan(measures["fraction_good"])


def test_good_and_rank_correlations_by_hand() -> None:
    weights = torch.tensor([[0.2, 0.4, 0.6, 1.0]])
    good = torch.tensor([[0.29, 0.31, 2.0, 3.0]])
    up, down = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[4.0, 3, 2, 1]])
    measures = routing_health(weights, good, (up, down, torch.ones(1, 4))).measures()
    assert measures["fraction_good"] == pytest.approx(3 / 4)  # mas = .097, .103, .67, 1 against 0.1
    assert measures["rank_correlation_contribution"] == pytest.approx(1.0)
    assert measures["rank_correlation_relevance"] == pytest.approx(-1.0)
    assert math.isnan(measures["rank_correlation_cost"])  # a constant has no ranks


def test_one_goodness_for_all_tokens() -> None:
    weights = torch.rand(5, 4) + 0.1
    good = torch.tensor([1.0, 0.5, 0.01, 0.0])
    measures = routing_health(weights, good, (good, good, -good)).measures()
    assert measures["fraction_good"] == pytest.approx(2 / 4)
    assert measures["rank_correlation_contribution"] == pytest.approx(1.0)
    assert measures["rank_correlation_cost"] == pytest.approx(-1.0)


def test_shards_add_up() -> None:
    torch.manual_seed(0)
    weights, good = torch.rand(40, 6).sub(0.5).relu(), torch.rand(40, 6)
    parts = (good, good.square(), 1 - good)
    whole = routing_health(weights, good, parts)
    halves = [routing_health(weights[s], good[s], tuple(p[s] for p in parts)) for s in (slice(0, 13), slice(13, 40))]
    added = Health.from_flat((halves[0] + halves[1]).flat()).measures()
    assert added == pytest.approx(whole.measures(), rel=1e-12)


def test_spearman_is_scipys() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(6, 9).round(decimals=1), torch.randn(6, 9).round(decimals=1)  # rounded: ties
    mask = (torch.rand(6, 9) < 0.7).double()
    mask[0] = 0
    correlations = spearman(a.double(), b.double(), mask)
    assert math.isnan(correlations[0])
    for row in range(1, 6):
        chosen = mask[row] > 0
        truth = spearmanr(a[row][chosen], b[row][chosen]).statistic
        assert float(correlations[row]) == pytest.approx(truth, abs=1e-12)


def test_ranks_by_bits_are_those_by_search() -> None:
    # 1100 rows of 31 and one row of 40,000 are more than is ranked at once; rounded, with zeros of both signs: ties.
    torch.manual_seed(2)
    for shape in ((2, 1100, 31), (1, 1, 40_000), (3, 2, 1), (4, 0, 5)):
        v = torch.randn(shape).mul(4).round() / 4
        v[torch.rand(shape) < 0.2] = -0.0
        mask = (torch.rand(shape[1:]) < 0.6).float()
        assert torch.equal(ranks_by_bits(v, mask) * mask, ranks_by_search(v, mask) * mask)
    by_hand = ranks_by_bits(torch.tensor([[3.0, -1, 0, -0.0, 7]]), torch.tensor([[1.0, 1, 1, 1, 0]]))
    assert by_hand[0, :4].tolist() == [3.5, 0.5, 2, 2]  # ranks less a half


def _tokens(n: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(n)
    weights = torch.rand(n, 7).sub(0.4).relu()
    weights[3] = 0
    good, contribution, relevance, cost = (torch.rand(n, 7) * (weights > 0) for _ in range(4))
    return weights, (good, contribution, relevance, cost)


def _health(sums: CallSums) -> Health:
    gathered = HealthOfStep()
    gathered.add("a", sums)
    return gathered.by_module()["a"]


def test_padding_counts_as_if_it_were_not_there() -> None:
    weights, signals = _tokens(150)
    valid = torch.rand(150) < 0.6
    sums = call_sums(weights, valid.float(), ranked_places(valid, 150, valid.device), signals)
    good, *parts = (each[valid] for each in signals)
    truth = routing_health(weights[valid], good, (parts[0], parts[1], parts[2]))
    assert torch.equal(_health(sums).flat()[:5], truth.flat()[:5])
    torch.testing.assert_close(_health(sums).flat(), truth.flat(), rtol=1e-12, atol=1e-12)


def test_calls_of_one_module_and_of_several_widths_add_up() -> None:
    weights, signals = _tokens(50)
    counts, places = torch.ones(50), ranked_places(None, 50, weights.device)
    both = call_sums(weights, counts, places, signals), call_sums(weights, counts, places, None)
    narrow = [each[..., :4] for each in signals]
    gathered = HealthOfStep()
    for name, sums in (("a", both[0]), ("b", both[1]), ("a", both[0])):
        gathered.add(name, sums)
    gathered.add("c", call_sums(weights[:, :4], counts, places, (narrow[0], narrow[1], narrow[2], narrow[3])))
    health = gathered.by_module()
    assert list(health) == ["a", "b", "c"]
    assert torch.equal(health["a"].flat(), 2 * _health(both[0]).flat())
    assert float(health["b"].costs.sum()) == float(health["b"].scalars[6:].abs().sum()) == 0
    assert float(health["c"].costs.sum()) == 50 * 4


def test_tokens_that_are_routed_alike_tell_nothing_of_their_experts() -> None:
    """Whatever rounding does to the two entropies, their difference is no negative number."""
    for experts in range(2, 40):
        weights = torch.rand(1, experts).expand(33, experts)
        measured = routing_health(weights).measures()["mutual_information"]
        assert 0 <= measured < 1e-6
