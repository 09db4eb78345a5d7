"""Decoding of whole batches, one token at a time: with a KV cache where the model has one, else without."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tiny_onn.model import GridTransformer

Advance = Callable[[Tensor, tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]
GoesOn = Callable[..., Tensor]
_PROMPT_TOKENS = 2048  # of prompts that go through the model together
_ROOM = 64  # tokens by which a cache is longer than what is in it
_KEPT = 0.75  # where no more of the cache's rows go on, the others are dropped


def _greedy(logits: Float[Tensor, "b v"]) -> Int[Tensor, " b"]:
    return logits.argmax(dim=-1)


@torch.no_grad()
def generate(
    model: nn.Module,
    tokens: Int[Tensor, "b s"],
    coordinates: tuple[Int[Tensor, "b s"], ...],
    lengths: Int[Tensor, " b"],
    *,
    limit: int,
    stop: int | None,
    advance: Advance = lambda token, place, following: (),
    alive: Callable[[], None] = lambda: None,
    goes_on: GoesOn = lambda token, *place: torch.ones_like(token, dtype=torch.bool),
    choose: Callable[[Float[Tensor, "b v"]], Int[Tensor, " b"]] = _greedy,
) -> list[list[int]]:
    """What the model says after each prompt, up to `stop` (left out) or until the sequence holds `limit` tokens.

    Prompts are padded on the right to s; row b counts its first `lengths[b]` tokens. Each row writes its next token at
    its own position, over the padding, so that a row's result does not depend on the others in the batch.

    Args:
        model: (tokens, *coordinates) -> logits of each next token. One that is no GridTransformer has no cache, and is
            called with the whole sequences each time.
        coordinates: of the tokens, a tensor for each axis.
        advance: (token, its coordinates, next token) -> the next token's coordinates, elementwise.
        alive: called before each token, for those who wait.
        goes_on: (token, *coordinates) of each row's newest token, in turn -> bool [b]: False ends a row with this
            token, as one of which nothing good can come. It may keep a state.
        choose: logits of each row -> its next token; the most likely by default.
    """
    batch, device = len(tokens), tokens.device
    each, last = torch.arange(batch, device=device), lengths - 1
    following_logits = _Cached(model, limit) if isinstance(model, GridTransformer) else _Whole(model, limit)
    logits = following_logits.begin(tokens, coordinates, last)
    token, place = tokens[each, last], tuple(axis[each, last] for axis in coordinates)
    positions, going = lengths.clone(), lengths < limit
    generated: list[list[int]] = [[] for _ in range(batch)]
    while bool(going.any()):
        alive()
        following = choose(logits)
        place = advance(token, place, following)
        token = following
        if stop is not None:
            going = going & (token != stop)
        for words, goes, word in zip(generated, going.tolist(), token.tolist(), strict=True):
            if goes:
                words.append(word)
        going = going & (positions + 1 < limit) & goes_on(token, *place)
        following_logits.go_on(logits, token, place, positions, going)
        positions = positions + going.long()
    return generated


class _Cached:
    """Logits from a KV cache: each token goes through the model once. Rows that have ended leave the cache."""

    def __init__(self, model: GridTransformer, limit: int) -> None:
        self._model, self._limit = model, limit

    def begin(self, tokens: Tensor, coordinates: tuple[Tensor, ...], last: Tensor) -> Tensor:
        """Logits after the token at `last` of each row. A few rows at a time, for what fits a CPU's cache is faster."""
        batch, length = tokens.shape
        self._rows = torch.arange(batch, device=tokens.device)  # of those that the cache holds
        self._cache = self._model.new_cache(batch, min(length + _ROOM, max(self._limit, length) + 1))
        lengths = (last + 1).tolist()
        parts = []
        for rows in _groups(lengths, _PROMPT_TOKENS):
            longest = max(lengths[rows])
            axes = (axis[rows, :longest] for axis in (tokens, *coordinates))
            parts.append(self._model(*axes, cache=self._cache.rows(rows), last=last[rows])[:, 0])
        return torch.cat(parts)

    def go_on(self, logits: Tensor, token: Tensor, place: tuple[Tensor, ...], positions: Tensor, going: Tensor) -> None:
        """Writes the logits after each token, which stands at its row's position, into the rows that are `going`."""
        still = going.nonzero().flatten()
        if not len(still):
            return
        filled, length = int(positions[still].max()) + 1, self._cache.length
        if len(still) <= _KEPT * len(self._rows) or filled > length:
            room = length if filled <= length else min(length + _ROOM, self._limit)
            self._cache = self._cache.copy(torch.searchsorted(self._rows, still), filled - 1, room)
            self._rows = still
        rows = self._rows
        axes = (axis[rows, None] for axis in (token, *place))
        # A row that has ended, and is still here, writes on at the place after its last token.
        at = positions[rows, None].clamp(max=filled - 1)
        logits[rows] = self._model(*axes, cache=self._cache, positions=at)[:, 0]


def _groups(lengths: list[int], most: int) -> Iterator[slice]:
    """Neighbouring rows together, at most `most` padded tokens at a time."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or max(lengths[start : stop + 1]) * (stop + 1 - start) > most:
            yield slice(start, stop)
            start = stop


class _Whole:
    """Logits of any causal model, called with the sequences so far: what stands after a token does not matter to it."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        self._model, self._limit = model, limit

    def begin(self, tokens: Tensor, coordinates: tuple[Tensor, ...], last: Tensor) -> Tensor:
        room = max(self._limit - tokens.shape[1], 0)
        self._axes = [nn.functional.pad(axis, (0, room)) for axis in (tokens, *coordinates)]
        logits: Tensor = self._model(tokens, *coordinates)
        return logits[torch.arange(len(tokens), device=tokens.device), last]

    def go_on(self, logits: Tensor, token: Tensor, place: tuple[Tensor, ...], positions: Tensor, going: Tensor) -> None:
        at = positions.clamp(max=self._limit - 1)
        for axis, values in zip(self._axes, (token, *place), strict=True):
            axis.scatter_(1, at[:, None], values[:, None])
        length = int(at.max()) + 1
        each = torch.arange(len(token), device=token.device)
        logits.copy_(self._model(*(axis[:, :length] for axis in self._axes))[each, at])
