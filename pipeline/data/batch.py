"""Sequences as the tensors of one training step. The shift of the labels happens here and nowhere else."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pipeline.data.sequence import IGNORED, Sequence

__all__ = ["IGNORED", "Batch", "collate"]


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences, padded on the right to the longest, S tokens.

    `labels[b, t]` is what is to be predicted at token t, the token at t + 1 or a class, and IGNORED where nothing is; a
    batch may hold no label at all. `valid` is False on padding, whose coordinates are 0. `coordinates` holds a tensor
    for each axis of the task's format.
    """

    tokens: Int64[Tensor, "b s"]
    coordinates: tuple[Int64[Tensor, "b s"], ...]
    labels: Int64[Tensor, "b s"]
    valid: Bool[Tensor, "b s"]
    task_ids: tuple[str, ...]

    @property
    def inputs(self) -> tuple[Int64[Tensor, "b s"], ...]:
        """What the model is called with."""
        return self.tokens, *self.coordinates

    def part(self, rows: slice) -> "Batch":
        """Some of its rows, as wide as all."""
        axes = tuple(axis[rows] for axis in self.coordinates)
        return Batch(self.tokens[rows], axes, self.labels[rows], self.valid[rows], self.task_ids[rows])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        tensors = (self.tokens, self.labels, self.valid, *self.coordinates)
        tokens, labels, valid, *coordinates = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(tokens, tuple(coordinates), labels, valid, self.task_ids)


def collate(sequences: Items[Sequence], padding: int = 0) -> Batch:
    """One batch of at least one sequence, in the order given; `padding` is the token that stands on padding."""
    shape = (len(sequences), max(map(len, sequences)))
    tokens = np.full(shape, padding, dtype=np.int64)
    coordinates = [np.zeros(shape, dtype=np.int64) for _ in sequences[0].coordinates]
    labels = np.full(shape, IGNORED, dtype=np.int64)
    valid = np.zeros(shape, dtype=np.bool_)
    for b, sequence in enumerate(sequences):
        n = len(sequence)
        tokens[b, :n] = sequence.tokens
        for axis, values in zip(coordinates, sequence.coordinates, strict=True):
            axis[b, :n] = values
        if sequence.labels is None:
            predicted = np.flatnonzero(sequence.labelled[1:])
            labels[b, predicted] = sequence.tokens[predicted + 1]
        else:
            labels[b, :n] = sequence.labels
        valid[b, :n] = True
    return Batch(
        tokens=torch.from_numpy(tokens),
        coordinates=tuple(map(torch.from_numpy, coordinates)),
        labels=torch.from_numpy(labels),
        valid=torch.from_numpy(valid),
        task_ids=tuple(sequence.task_id for sequence in sequences),
    )
