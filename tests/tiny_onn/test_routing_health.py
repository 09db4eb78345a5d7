import math

import pytest
import torch
from scipy.stats import spearmanr

from tiny_onn.routing_health import Health, routing_health, spearman


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
