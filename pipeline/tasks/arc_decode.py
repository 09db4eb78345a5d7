"""Answers drawn greedily, in one view of a task or in several that vote."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.data import tokens
from pipeline.data.augment import View, inverse, view_grid, view_task
from pipeline.data.batch import collate
from pipeline.data.sequence import Sequence as Row
from pipeline.data.task import COLOURS, MAX_SIDE, Pair, Task, grid_of
from tiny_onn.generate import generate

Grid = list[list[int]]
ATTEMPTS = 2  # that ARC allows at each test pair
_CACHED_TOKENS = 3 * 2**14  # of a batch that is decoded, which bounds the memory of its keys and values


def batch_size(limit: int) -> int:
    """How many sequences of up to `limit` tokens are decoded at once."""
    return max(1, _CACHED_TOKENS // limit)


def decode_grids(
    model: nn.Module,
    prompts: Sequence[Row],
    limit: int,
    alive: Callable[[], None] = lambda: None,
) -> list[Grid | None]:
    """The grid that the model draws after each prompt, greedily; None where what it says is no grid.

    A few at a time, the longest together, so that little is decoded for nothing. `alive` is called before each token.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    at_once = batch_size(limit)
    grids: dict[int, Grid | None] = {}
    for start in range(0, len(order), at_once):
        places = order[start : start + at_once]
        batch = collate([prompts[place] for place in places], tokens.PAD).to(device)
        lengths = torch.tensor([len(prompts[place]) for place in places], device=device)
        tokens_drawn = generate(
            model,
            batch.tokens,
            batch.coordinates,
            lengths,
            limit=limit,
            stop=tokens.END,
            advance=_advance,
            alive=alive,
            goes_on=MayBeGrid(),
        )
        grids |= dict(zip(places, map(_grid, tokens_drawn), strict=True))
    return [grids[place] for place in range(len(prompts))]


class MayBeGrid:
    """Whether what has been said so far may still become a grid; asked of each token with its coordinates, in turn.

    Rows of a batch that can no longer become one need no more tokens: what they came to is None all the same.
    """

    def __init__(self) -> None:
        self._width = torch.zeros(0, dtype=torch.long)  # of each grid, once its first row is closed; 0 before

    def __call__(self, token: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        if not len(self._width):
            self._width = torch.zeros_like(column)
        width = self._width
        cell = (token < COLOURS) & (row <= MAX_SIDE) & (column <= torch.where(width > 0, width, MAX_SIDE))
        closing = (token == tokens.ROW_END) & (column > 1) & ((width == 0) | (column == width + 1))
        self._width = torch.where(closing & (width == 0), column - 1, width)
        return cell | closing | (token == tokens.END)


def decode_in_views(
    model: nn.Module,
    asked: Sequence[tuple[Task, int]],
    limit: int,
    views: int,
    alive: Callable[[], None] = lambda: None,
) -> list[list[Grid | None]]:
    """For each (task, number of its test pair), what the model draws in each of the first `views` symmetries, turned
    back: the task as it is first. A view whose prompt leaves no room for an answer is left out.
    """
    prompts: list[Row] = []
    seen: list[tuple[int, View]] = []
    for number, (task, pair) in enumerate(asked):
        prompt = Task(task.task_id, task.train, (Pair(task.test[pair].input, None),))
        for view in map(View, range(views)):
            encoded = tokens.encode_task(view_task(prompt, view), 0)
            if len(encoded) < limit or view == View():
                prompts.append(encoded)
                seen.append((number, view))
    turned_back: list[list[Grid | None]] = [[] for _ in asked]
    for (number, view), grid in zip(seen, decode_grids(model, prompts, limit, alive), strict=True):
        turned = None if grid is None else view_grid(grid_of(grid), inverse(view)).tolist()
        turned_back[number].append(turned)
    return turned_back


def vote(drawn: Sequence[Grid | None]) -> list[Grid]:
    """The ATTEMPTS grids drawn most often, or fewer if there are fewer; of those drawn equally often, the earlier."""
    kept = {str(grid): grid for grid in drawn if grid is not None}
    counted = Counter(str(grid) for grid in drawn if grid is not None)
    return [kept[name] for name, _ in counted.most_common(ATTEMPTS)]


def task_of(row: Row) -> Task:
    """The demonstrations and the one test pair of a row."""
    *train, test = (
        Pair(grid_of(given), None if answer is None else grid_of(answer))
        for given, answer in tokens.decode_sequence(row.tokens)
    )
    return Task(row.task_id, tuple(train), (test,))


def prompt_of(row: Row) -> Row:
    """The row up to its last OUTPUT: what a model is given before it draws the answer."""
    end = tokens.prompt_length(row.tokens)
    coordinates = tuple(axis[:end] for axis in row.coordinates)
    return Row(row.tokens[:end], coordinates, row.labelled[:end], row.task_id, row.pair)


def _advance(token: Tensor, place: tuple[Tensor, ...], following: Tensor) -> tuple[Tensor, ...]:
    row, column = place
    return tokens.advance(token, row, column, following)


def _grid(tokens_drawn: list[int]) -> Grid | None:
    try:
        return tokens.decode_grid(tokens_drawn).tolist()
    except tokens.NotDecodable:
        return None
