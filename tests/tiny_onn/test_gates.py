import pytest
import torch

from tiny_onn.gates import choose


def sorted_choice(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Token by token: as large as the k-th of all scores, sorted."""
    rows = [row >= sorted(row.tolist(), reverse=True)[k - 1] for row in scores.reshape(-1, scores.shape[-1])]
    return torch.stack(rows).view(scores.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_the_k_largest_scores_are_chosen_with_all_that_tie_with_the_last(k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(k)
    scores = torch.randn(3, 400, 9, generator=generator, dtype=dtype)  # enough for the quick way
    assert torch.equal(choose(scores, k), sorted_choice(scores, k))
    assert (choose(scores, k).sum(dim=-1) == k).all()
    tied = scores.clone()
    tied[1, 7, :5] = 9.0
    tied[2, 3] = -torch.inf
    tied[0, 0, :4] = torch.tensor([torch.inf, torch.inf, -torch.inf, torch.finfo(dtype).max])
    assert torch.equal(choose(tied, k), sorted_choice(tied, k))
    assert int(choose(tied, k)[1, 7].sum()) == max(5, k)


def test_a_score_that_is_no_number_leaves_the_other_tokens_as_they_are() -> None:
    scores = torch.randn(2000, 9, generator=torch.Generator().manual_seed(0))
    scores[4, 2] = torch.nan
    chosen = choose(scores, 3)
    assert not chosen[4].any()
    kept = torch.arange(len(scores)) != 4
    assert torch.equal(chosen[kept], sorted_choice(scores[kept], 3))


def test_choices_can_be_mapped_over_tokens() -> None:
    scores = torch.randn(4, 1000, 9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.func.vmap(lambda s: choose(s, 3))(scores), choose(scores, 3))
