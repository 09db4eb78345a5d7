"""A causal transformer over tokens and their coordinates, its projections SparseProtoLinear layers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from tiny_onn.compiling import any_size
from tiny_onn.layers import SparseProtoLinear


class LayerCache(NamedTuple):
    """Keys and values of one layer's tokens so far, [batch, heads, length, width]; written in place.

    `empty`: the tokens that come now are the first of every row, and need not look at the cache.
    """

    keys: Float[Tensor, "b h l d"]
    values: Float[Tensor, "b h l d"]
    empty: bool = False

    def up_to(self, length: int, empty: bool) -> "LayerCache":
        """The part for the first `length` tokens, to be written in place, too."""
        return LayerCache(self.keys[:, :, :length], self.values[:, :, :length], empty)

    def update(
        self, positions: Int[Tensor, "b s"], keys: Float[Tensor, "b h s d"], values: Float[Tensor, "b h s d"]
    ) -> None:
        """Writes keys and values at each row's own positions."""
        if self.empty:  # they stand at 0, 1, 2, ... in every row
            length = keys.shape[2]
            self.keys[:, :, :length] = keys
            self.values[:, :, :length] = values
            return
        index = positions[:, None, :, None].expand_as(keys)
        self.keys.scatter_(2, index, keys)
        self.values.scatter_(2, index, values)


class KVCache:
    """A LayerCache for every layer, for decoding token by token."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)

    @property
    def length(self) -> int:
        """How many tokens of a row it has room for."""
        return self.layers[0].keys.shape[2]

    def rows(self, rows: slice) -> "KVCache":
        """The part for some of the rows, to be written in place, too."""
        return KVCache([LayerCache(each.keys[rows], each.values[rows]) for each in self.layers])

    def copy(self, rows: Int[Tensor, " r"], filled: int, length: int) -> "KVCache":
        """A cache of its own for some of the rows, with the first `filled` tokens of each, and room for `length`."""

        def copied(stored: Tensor) -> Tensor:
            _, heads, _, width = stored.shape
            new = stored.new_zeros(len(rows), heads, length, width)  # what no token has written must not be NaN
            new[:, :, :filled] = stored[:, :, :filled].index_select(0, rows)
            return new

        return KVCache([LayerCache(copied(each.keys), copied(each.values)) for each in self.layers])


class Rotation(NamedTuple):
    """cos and sin of the angles by which RoPE turns, [b, s, 1, d/2]."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Int[Tensor, "b s"], width: int, dtype: torch.dtype) -> Rotation:
    """Rotary position embedding (RoPE, Su et al. 2021): pair k turns by position / 10000^(2k/d)."""
    half = width // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=positions.device) / half)
    angle = positions[:, :, None, None] * frequency
    return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(v: Float[Tensor, "b s h d"], turn: Rotation) -> Float[Tensor, "b s h d"]:
    """Turns the pairs (v_k, v_{k+d/2})."""
    first, second = v.chunk(2, dim=-1)
    cos, sin = turn
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SparseAttention(nn.Module):
    """Causal multi-head attention with q, k, v and o projected by SparseProtoLinear and RoPE on q and k."""

    def __init__(self, hidden: int, heads: int, **routing: Any) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (SparseProtoLinear(hidden, hidden, **routing) for _ in range(4))

    def forward(
        self,
        x: Float[Tensor, "b s h"],
        positions: Int[Tensor, "b s"],
        turn: Rotation,
        cache: LayerCache | None,
        last: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b q h"]:
        """Attends to the tokens up to each position; with a cache, to those that it holds as well.

        With `last`, only the token at that position of each row asks; q is 1.
        """
        batch, length, hidden = x.shape
        asking, turn_of_asking = x, turn
        if last is not None:
            asking, turn_of_asking = at(x, last), Rotation(at(turn.cos, last), at(turn.sin, last))
        q = self.q(asking).view(batch, -1, self.heads, hidden // self.heads)
        k, v = (p(x).view(batch, length, self.heads, -1) for p in (self.k, self.v))
        # RoPE before the transpose: its gradient then comes back contiguous, which the elementwise work below it
        # repays several times over.
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, turn_of_asking), rotate(k, turn), v))
        if cache is not None:
            cache.update(positions, k, v)
        if last is not None:
            seen = torch.arange(length, device=x.device) <= last[:, None, None, None]
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        elif cache is None or cache.empty:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v, _ = cache
            seen = torch.arange(k.shape[2], device=x.device) <= positions[:, None, :, None]
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.o(mixed.transpose(1, 2).reshape(batch, -1, hidden))


def at(x: Shaped[Tensor, "b s *rest"], positions: Int[Tensor, " b"]) -> Shaped[Tensor, "b 1 *rest"]:
    """Of each row the token at its position."""
    return x[torch.arange(len(x), device=x.device), positions][:, None]


class MoIETransformerBlock(nn.Module):
    """LayerNorm -> SparseProtoLinear q, k, v -> RoPE -> causal attention -> SparseProtoLinear o -> residual."""

    def __init__(self, hidden: int, heads: int, **routing: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.attention = SparseAttention(hidden, heads, **routing)

    def forward(
        self,
        x: Float[Tensor, "b s h"],
        positions: Int[Tensor, "b s"],
        turn: Rotation,
        cache: LayerCache | None = None,
        last: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b q h"]:
        """x plus what attention adds; with `last`, of the token at that position of each row alone."""
        added = self.attention(self.norm(x), positions, turn, cache, last)
        return (x if last is None else at(x, last)) + added


class GridTransformer(nn.Module):
    """Embeddings of tokens and of their coordinates, MoIETransformerBlocks, a final LayerNorm and a head.

    RoPE gives every model the position in the sequence, also one without further coordinates.

    Args:
        vocabulary: number of token ids.
        coordinates: for each axis of coordinates, its name and number of ids; a number alone: of rows and of columns.
        hidden: width; `hidden / heads` must be even, for RoPE.
        layers: number of blocks.
        heads: attention heads.
        outputs: number of logits for each token; `vocabulary` by default.
        routing: keyword arguments of every SparseProtoLinear, such as gain, density and gate_parameter.

    Raises:
        ValueError: `hidden` cannot be cut into `heads` heads of even width.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        coordinates: int | Mapping[str, int],
        hidden: int,
        layers: int,
        heads: int,
        outputs: int | None = None,
        **routing: Any,
    ) -> None:
        super().__init__()
        if hidden % (2 * heads):
            raise ValueError(f"hidden={hidden} cannot be cut into {heads} heads of even width")
        self.heads = heads
        self._blocks_are_compiled = False
        self.token_embedding = nn.Embedding(vocabulary, hidden)
        axes = {"row": coordinates, "column": coordinates} if isinstance(coordinates, int) else coordinates
        self._axes = tuple(f"{axis}_embedding" for axis in axes)
        for name, ids in zip(self._axes, axes.values(), strict=True):
            self.add_module(name, nn.Embedding(ids, hidden))
        self.blocks = nn.ModuleList(MoIETransformerBlock(hidden, heads, **routing) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary if outputs is None else outputs)

    def forward(
        self,
        tokens: Int[Tensor, "b s"],
        *coordinates: Int[Tensor, "b s"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "b s"] | None = None,
        last: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b q v"]:
        """Logits of each next token. With a cache, `positions` says where in the sequence each token stands; without
        them the cache is empty, and the tokens are the first of their sequences.

        Args:
            coordinates: one tensor for each axis, such as rows and columns.
            last: only the logits after the token at that position of each row are wanted, and returned, q being 1; the
                tokens are the first of their sequences.
        """
        empty = positions is None
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.token_embedding(tokens)
        for name, ids in zip(self._axes, coordinates, strict=True):
            x = x + self.get_submodule(name)(ids)
        turn = rotation(positions, x.shape[-1] // self.heads, x.dtype)
        filled = int(positions.max()) + 1 if cache else 0
        for layer, block in enumerate(self.blocks):
            if self._blocks_are_compiled:
                any_size(x, positions, *turn)
            of_layer = cache.layers[layer].up_to(filled, empty) if cache else None
            if last is None or layer < len(self.blocks) - 1:
                x = block(x, positions, turn, of_layer)
            elif self._blocks_are_compiled:  # rather than compile another kind of block
                x = at(block(x, positions, turn, of_layer), last)
            else:
                x = block(x, positions, turn, of_layer, last)
        return self.head(self.norm(x))

    def compile_blocks(self) -> None:
        """Has every block run compiled: once for all blocks, and for any number of rows and tokens."""
        self._blocks_are_compiled = True
        for block in self.blocks:
            block.compile()

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` sequences of up to `length` tokens."""
        weight = self.head.weight
        shape = batch, self.heads, length, weight.shape[1] // self.heads
        return KVCache([LayerCache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.blocks])
