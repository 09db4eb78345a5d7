"""Views that vote for two attempts, with answers known beforehand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import tokens
from pipeline.data.augment import View, inverse, view_grid, view_task
from pipeline.data.sequence import Sequence
from pipeline.data.task import Pair, Task, grid_of
from pipeline.data.tokens import encode_task
from pipeline.tasks import arc_decode as decode
from pipeline.tasks.arc_decode import batch_size, decode_grids, decode_in_views, prompt_of, task_of, vote
from pipeline.tasks.arc_predictions import Prediction, exact_match, predict, voting_views
from pipeline.training.build import build_model
from tests.pipeline.arc_samples import random_task
from tests.pipeline.samples import small_experiment

A, B, C = [[1]], [[2]], [[1, 2]]


@pytest.mark.parametrize(
    ("drawn", "attempts"),
    [
        ([A, B, B, None, C], [B, A]),
        ([A, B, C], [A, B]),  # equally often: the earlier, and the task as it is comes first
        ([C, C, B, B, A], [C, B]),
        ([None, A, None], [A]),
        ([None, None], []),
        ([[[1, 2]], [[1], [2]]], [[[1, 2]], [[1], [2]]]),  # the same cells in another shape
    ],
)
def test_the_grids_drawn_most_often_are_the_attempts(drawn: list[Any], attempts: list[Any]) -> None:
    assert vote(drawn) == attempts


def answers(monkeypatch: pytest.MonkeyPatch, rule: Callable[[np.ndarray], np.ndarray]) -> list[int]:
    """Instead of a model: `rule` of the input that a prompt ends with. Returns the lengths of the prompts."""
    lengths: list[int] = []

    def drawn(model: Any, prompts: list[Sequence], limit: int, alive: Any) -> list[Any]:
        lengths.extend(map(len, prompts))
        return [rule(tokens.decode_sequence(prompt.tokens)[-1][0]).tolist() for prompt in prompts]

    monkeypatch.setattr(decode, "decode_grids", drawn)
    return lengths


TASK = Task(
    "t",
    (Pair(grid_of([[1, 2, 3]]), grid_of([[3, 2, 1]])),),
    (Pair(grid_of([[0]]), None), Pair(grid_of([[1, 2, 3], [4, 5, 6]]), None)),
)
GIVEN = TASK.test[1].input


def test_what_is_drawn_in_a_view_is_turned_back(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda given: given)
    ((*grids,),) = decode_in_views(None, [(TASK, 1)], 1000, 8)  # type: ignore[arg-type]
    assert grids == [GIVEN.tolist()] * 8
    answers(monkeypatch, np.fliplr)  # mirrors to the left and right of what is seen
    ((*grids,),) = decode_in_views(None, [(TASK, 1)], 1000, 8)  # type: ignore[arg-type]
    by_hand = [view_grid(grid_of(np.fliplr(view_grid(GIVEN, v))), inverse(v)).tolist() for v in map(View, range(8))]
    assert grids == by_hand
    assert sorted(map(str, grids)) == sorted(map(str, [np.fliplr(GIVEN).tolist(), np.flipud(GIVEN).tolist()] * 4))
    assert vote(grids) == [np.fliplr(GIVEN).tolist(), np.flipud(GIVEN).tolist()]


def test_every_view_asks_the_same_task_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence] = []

    def drawn(model: Any, prompts: list[Sequence], limit: int, alive: Any) -> list[None]:
        asked.extend(prompts)
        return [None] * len(prompts)

    monkeypatch.setattr(decode, "decode_grids", drawn)
    assert decode_in_views(None, [(TASK, 1), (TASK, 0)], 1000, 3) == [[None] * 3] * 2  # type: ignore[arg-type]
    expected = [prompt_of(encode_task(view_task(TASK, View(d)), pair)) for pair in (1, 0) for d in range(3)]
    assert [row.tokens.tolist() for row in asked] == [row.tokens.tolist() for row in expected]
    assert [row.coordinates[0].tolist() for row in asked] == [row.coordinates[0].tolist() for row in expected]


def test_a_view_that_leaves_no_room_is_left_out_and_the_task_as_it_is_never(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = answers(monkeypatch, lambda given: given)
    decode_in_views(None, [(TASK, 1)], 1000, 8)  # type: ignore[arg-type]
    upright, turned = lengths[0], lengths[1]
    assert turned > upright  # as it has more rows
    ((*grids,),) = decode_in_views(None, [(TASK, 1)], turned, 8)  # type: ignore[arg-type]
    assert len(grids) == 4
    ((*grids,),) = decode_in_views(None, [(TASK, 1)], 2, 8)  # type: ignore[arg-type]
    assert len(grids) == 1


def test_two_attempts_count_where_either_is_right() -> None:
    def made(task: str, pair: int, attempts: list[Any]) -> Prediction:
        first = attempts[0] if attempts else None
        return Prediction(task, pair, A, A, first, first == A, attempts)

    scores = exact_match([made("a", 0, [A, B]), made("a", 1, [B, A]), made("b", 0, [B, C]), made("c", 0, [])])
    assert scores == {
        "pairs_exact": 0.25,
        "tasks_exact": 0.0,
        "pass_at_2": 0.5,
    }


def test_a_row_is_judged_by_the_task_as_it_is_and_by_the_votes() -> None:
    experiment = small_experiment()
    model = build_model(experiment, torch.device("cpu"))
    task = random_task("t", 3, tests=2)
    rows = [encode_task(task, pair) for pair in range(2)]
    made = predict(model, rows, 128, views=5)
    for pair, each in enumerate(made):
        assert (each.task_id, each.pair) == ("t", pair)
        assert each.input == task.test[pair].input.tolist()
        assert each.target == task.test[pair].output.tolist()  # type: ignore[union-attr]
        assert each.prediction == decode_grids(model, [prompt_of(rows[pair])], 128)[0]
        assert each.attempts == vote(decode_in_views(model, [(task, pair)], 128, 5)[0])
    assert np.array_equal(task_of(rows[1]).test[0].input, task.test[1].input)


def test_only_views_that_are_trained_on_vote() -> None:
    experiment = small_experiment(vote_views=8)
    assert experiment.data.dihedral_views == 2
    assert voting_views(experiment) == 2
    assert voting_views(experiment.model_copy(update={"training": small_experiment(vote_views=1).training})) == 1


def test_fewer_are_decoded_at_once_the_longer_they_are() -> None:
    assert [batch_size(limit) for limit in (512, 2048, 65536)] == [96, 24, 1]


def said(ids: list[int]) -> list[int]:
    """The tokens that are drawn of what a model would say, token by token, up to END or where MayBeGrid ends them."""
    may, kept = decode.MayBeGrid(), []
    token, row, column = tokens.OUTPUT, 0, 0
    for following in ids:
        row, column = tokens.advance(token, row, column, following)
        token = following
        if token == tokens.END:
            break
        kept.append(token)
        if not may(*(torch.tensor([value]) for value in (token, row, column)))[0]:
            break
    return kept


def grid_or_none(ids: list[int]) -> Any:
    try:
        return tokens.decode_grid(ids).tolist()
    except tokens.NotDecodable:
        return None


@given(st.lists(st.sampled_from([1, 2, tokens.ROW_END, tokens.ROW_END, tokens.END, tokens.INPUT]), max_size=14))
def test_what_can_no_longer_be_a_grid_is_ended_and_no_grid_is_lost(ids: list[int]) -> None:
    whole = ids[: ids.index(tokens.END)] if tokens.END in ids else ids
    kept = said(ids)
    assert grid_or_none(kept) == grid_or_none(whole)
    if kept != whole:
        assert grid_or_none(whole) is None


@pytest.mark.parametrize(("height", "width"), [(30, 30), (31, 2), (2, 31), (1, 1)])
def test_grids_up_to_the_largest_are_drawn_whole(height: int, width: int) -> None:
    ids = ([3] * width + [tokens.ROW_END]) * height
    assert (said([*ids, tokens.END]) == ids) == (max(height, width) <= 30)
    assert len(said([3] * 5000)) == 31
    assert said([3, tokens.ROW_END, 3, 3, 3]) == [3, tokens.ROW_END, 3, 3]


def test_rows_of_a_batch_are_ended_each_by_itself() -> None:
    may = decode.MayBeGrid()
    asked = [([1, 1], [1, 1], [1, 1]), ([tokens.ROW_END, 1], [1, 1], [2, 2]), ([1, tokens.ROW_END], [2, 1], [1, 3])]
    asked += [([1, 1], [2, 2], [2, 1])]
    assert [may(*map(torch.tensor, each)).tolist() for each in asked] == [[True, True]] * 3 + [[False, True]]
