import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from tiny_onn.goodness import goodness
from tiny_onn.mas import mas, normalise
from tiny_onn.objectives import JSD, jensen_shannon

shapes = st.tuples(st.integers(1, 4), st.integers(1, 6))


def random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mas_by_hand() -> None:
    worked = mas(torch.tensor([[1.0, -4.0, 2.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]], dtype=torch.float64))
    expected = torch.tensor([[0.25, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(worked, expected, rtol=0, atol=1e-9)  # eps = 1e-9 in the denominator


@given(shapes, st.integers(0, 99))
def test_mas_and_its_gradient_are_autograds(shape: tuple[int, int], seed: int) -> None:
    v = random(shape, seed).round(decimals=1)  # rounded, so that ties happen
    a, b = v.clone().requires_grad_(True), v.clone().requires_grad_(True)
    weights = random(shape, seed + 1)
    (mas(a) * weights).sum().backward()
    (oracles.mas(b) * weights).sum().backward()
    torch.testing.assert_close(mas(a), oracles.mas(b), rtol=1e-15, atol=0)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_mas_shares_a_tied_maximum() -> None:
    v = torch.tensor([2.0, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    mas(v)[2].backward()  # y = 1 / max; dy/d|v| of each tied maximum is half of -1/4
    torch.testing.assert_close(v.grad, torch.tensor([-0.125, 0.125, 0.5], dtype=torch.float64), rtol=1e-8, atol=0)


def test_mas_passes_gradcheck() -> None:
    v = random((3, 4), 0).requires_grad_(True)
    assert torch.autograd.gradcheck(mas, v)
    assert torch.autograd.gradgradcheck(mas, v)


def test_goodness_by_hand() -> None:
    # mas(contribution) = (1, 1/2, 1/4); mas(relevance) = (1/2, 1, 1); product = (1/2, 1/2, 1/4), mas: (1, 1, 1/2)
    # mas(cost) = (1, 1/2, 1/4); Goodness = (1, 2, 2)
    worked = goodness(*(torch.tensor(v, dtype=torch.float64) for v in ([4.0, 2, 1], [1.0, 2, 2], [8.0, 4, 2])))
    torch.testing.assert_close(worked, torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64), rtol=1e-8, atol=0)


@given(shapes, st.integers(0, 99), st.tuples(*[st.floats(1e-3, 1e3)] * 3))
def test_goodness_is_free_of_scale_token_by_token(shape: tuple[int, int], seed: int, scales: tuple[float, ...]) -> None:
    parts = [random(shape, seed + k).abs() + 0.01 for k in range(3)]
    per_token = [
        part * scale * (1 + torch.arange(shape[0])[:, None]) for part, scale in zip(parts, scales, strict=True)
    ]
    # eps is 1e-9 against maxima of at least 1e-5: relative changes of 1e-4 at the most, once for each mas
    torch.testing.assert_close(goodness(*per_token), goodness(*parts), rtol=5e-4, atol=0)


@given(shapes, st.integers(0, 99))
def test_goodness_with_the_per_token_cost_ranks_active_experts_by_contribution_alone(
    shape: tuple[int, int], seed: int
) -> None:
    """The cost is relevance times ||x||, the same for all experts of a token: the two cancel."""
    contribution, relevance = random(shape, seed).abs(), random(shape, seed + 1).abs() + 0.1
    scores = goodness(contribution, relevance, relevance * 3.7)
    torch.testing.assert_close(mas(scores), mas(contribution), rtol=1e-6, atol=1e-7)


def test_jensen_shannon_by_hand() -> None:
    p, q = [0.5, 0.5, 0.0], [0.0, 0.25, 0.75]
    expected = oracles.jensen_shannon(p, q)
    # m = (.25, .375, .375): KL(p||m) = .5 ln 2 + .5 ln 4/3 = .4904, KL(q||m) = .25 ln 2/3 + .75 ln 2 = .4185
    assert expected == pytest.approx(0.4545, abs=1e-4)
    divergence = jensen_shannon(torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64))
    assert float(divergence) == pytest.approx(expected, abs=1e-8)
    # Distributions with nothing in common are log 2 apart.
    apart = jensen_shannon(torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double())
    assert float(apart) == pytest.approx(math.log(2), abs=1e-8)
    assert float(jensen_shannon(torch.tensor(p).double(), torch.tensor(p).double())) == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(shapes, st.integers(0, 99), st.booleans())
def test_the_closed_form_gradient_is_autograds(shape: tuple[int, int], seed: int, shared: bool) -> None:
    logits = random(shape, seed).round(decimals=1).requires_grad_(True)
    good = random(shape[1:] if shared else shape, seed + 1).clamp(min=0)
    counts = (torch.arange(shape[0]) % 3 != 1).double()
    loss, gradient = JSD.value_and_gradient(logits.detach(), mas(good), counts)
    each = oracles.meta_loss(logits, good.expand(shape))
    truth = (each * counts).sum()
    truth.backward()
    torch.testing.assert_close(loss, truth.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(JSD.value(logits, mas(good)), each, rtol=1e-12, atol=1e-14)
    # Where all logits are <= 0 the distribution is 0 / eps, and gradients reach 1/eps = 1e9: those rows cancel to 1e-7.
    some = (logits.detach() > 0).any(dim=-1)
    torch.testing.assert_close(gradient[some], logits.grad[some], rtol=1e-9, atol=1e-10)
    assert not gradient[~some].any()


def test_normalise_by_hand() -> None:
    assert normalise(torch.tensor([1.0, 3.0]).double()).tolist() == pytest.approx([0.25, 0.75])
    assert normalise(torch.zeros(2)).tolist() == [0, 0]
