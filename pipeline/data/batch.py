"""Sequences as the tensors of one training step. The shift of the labels happens here and nowhere else."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pipeline.data.tokens import PAD, Sequence

IGNORED = -100  # torch's cross_entropy leaves such labels out


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences, padded on the right to the longest, S tokens.

    `labels[b, t]` is the token at t + 1 where that is to be predicted, and IGNORED elsewhere; a batch may hold no label
    at all. `valid` is False on padding, whose token is PAD and whose coordinates are 0.
    """

    tokens: Int64[Tensor, "b s"]
    rows: Int64[Tensor, "b s"]
    columns: Int64[Tensor, "b s"]
    labels: Int64[Tensor, "b s"]
    valid: Bool[Tensor, "b s"]
    task_ids: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        tensors = (self.tokens, self.rows, self.columns, self.labels, self.valid)
        tokens, rows, columns, labels, valid = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(tokens, rows, columns, labels, valid, self.task_ids)


def collate(sequences: Items[Sequence]) -> Batch:
    """One batch of at least one sequence, in the order given."""
    shape = (len(sequences), max(map(len, sequences)))
    tokens = np.full(shape, PAD, dtype=np.int64)
    rows, columns = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    valid = np.zeros(shape, dtype=np.bool_)
    for b, sequence in enumerate(sequences):
        n = len(sequence)
        tokens[b, :n] = sequence.tokens
        rows[b, :n] = sequence.rows
        columns[b, :n] = sequence.columns
        predicted = np.flatnonzero(sequence.labelled[1:])
        labels[b, predicted] = sequence.tokens[predicted + 1]
        valid[b, :n] = True
    return Batch(
        tokens=torch.from_numpy(tokens),
        rows=torch.from_numpy(rows),
        columns=torch.from_numpy(columns),
        labels=torch.from_numpy(labels),
        valid=torch.from_numpy(valid),
        task_ids=tuple(sequence.task_id for sequence in sequences),
    )
