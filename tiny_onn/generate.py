"""Decoding of whole batches, one token at a time: with a KV cache where the model has one, else without."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tiny_onn.model import GridTransformer

Advance = Callable[[Tensor, tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]
GoesOn = Callable[..., Tensor]


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
    logits = following_logits.begin(tokens, coordinates)[each, last]
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
        logits = following_logits.go_on(token, place, positions.clamp(max=limit - 1))
        positions = positions + going.long()
    return generated


class _Cached:
    """Logits from a KV cache: each token goes through the model once."""

    def __init__(self, model: GridTransformer, limit: int) -> None:
        self._model, self._limit = model, limit

    def begin(self, tokens: Tensor, coordinates: tuple[Tensor, ...]) -> Tensor:
        batch, length = tokens.shape
        self._cache = self._model.new_cache(batch, max(self._limit, length) + 1)
        logits: Tensor = self._model(tokens, *coordinates, cache=self._cache)
        return logits

    def go_on(self, token: Tensor, place: tuple[Tensor, ...], positions: Tensor) -> Tensor:
        axes = (axis[:, None] for axis in place)
        logits: Tensor = self._model(token[:, None], *axes, cache=self._cache, positions=positions[:, None])
        return logits[:, 0]


class _Whole:
    """Logits of any causal model, called with the sequences so far: what stands after a token does not matter to it."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        self._model, self._limit = model, limit

    def begin(self, tokens: Tensor, coordinates: tuple[Tensor, ...]) -> Tensor:
        room = max(self._limit - tokens.shape[1], 0)
        self._axes = [nn.functional.pad(axis, (0, room)) for axis in (tokens, *coordinates)]
        logits: Tensor = self._model(tokens, *coordinates)
        return logits

    def go_on(self, token: Tensor, place: tuple[Tensor, ...], positions: Tensor) -> Tensor:
        for axis, values in zip(self._axes, (token, *place), strict=True):
            axis.scatter_(1, positions[:, None], values[:, None])
        length = int(positions.max()) + 1
        logits: Tensor = self._model(*(axis[:, :length] for axis in self._axes))
        return logits[torch.arange(len(token), device=token.device), positions]
