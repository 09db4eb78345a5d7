"""Greedy decoding of whole batches, one token at a time, with a KV cache."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from tiny_onn.model import GridTransformer

Advance = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
GoesOn = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def generate(
    model: GridTransformer,
    tokens: Int[Tensor, "b s"],
    rows: Int[Tensor, "b s"],
    columns: Int[Tensor, "b s"],
    lengths: Int[Tensor, " b"],
    *,
    limit: int,
    stop: int,
    advance: Advance,
    alive: Callable[[], None] = lambda: None,
    goes_on: GoesOn = lambda token, row, column: torch.ones_like(token, dtype=torch.bool),
) -> list[list[int]]:
    """What the model says after each prompt, up to `stop` (left out) or until the sequence holds `limit` tokens.

    Prompts are padded on the right to s; row b counts its first `lengths[b]` tokens. Each row writes its next token at
    its own position, over the padding, so that a row's result does not depend on the others in the batch.

    Args:
        advance: (token, row, column, next_token) -> the next token's row and column, elementwise.
        alive: called before each token, for those who wait.
        goes_on: (token, row, column) of each row's newest token, in turn -> bool [b]: False ends a row with this token,
            as one of which nothing good can come. It may keep a state.
    """
    batch, device = len(tokens), tokens.device
    cache = model.new_cache(batch, max(limit, tokens.shape[1]) + 1)
    each, last = torch.arange(batch, device=device), lengths - 1
    logits = model(tokens, rows, columns, cache, torch.arange(tokens.shape[1], device=device).expand_as(tokens))
    logits = logits[each, last]
    token, row, column = tokens[each, last], rows[each, last], columns[each, last]
    positions, going = lengths.clone(), lengths < limit
    said: list[list[int]] = [[] for _ in range(batch)]
    while bool(going.any()):
        alive()
        following = logits.argmax(dim=-1)
        row, column = advance(token, row, column, following)
        token = following
        going = going & (token != stop)
        for words, goes, word in zip(said, going.tolist(), token.tolist(), strict=True):
            if goes:
                words.append(word)
        going = going & (positions + 1 < limit) & goes_on(token, row, column)
        at = positions.clamp(max=limit - 1)[:, None]
        logits = model(token[:, None], row[:, None], column[:, None], cache, at)[:, 0]
        positions = positions + going.long()
    return said
