"""What workers tell each other beside their sums: what one of them has to stop for, and values of any kind."""

import json
from typing import Any

import torch

from pipeline.training.stopping import TrainingStopped
from tiny_onn.distributed import gather_over_workers


def is_to_end(stopped: TrainingStopped | None, prune: bool, device: torch.device) -> bool:
    """Whether any worker says that the trial is to be pruned. Every worker calls it after each log entry.

    It is one gather of two bytes a worker, in which each also waits for all others: of a worker that does not arrive
    the others learn here, by the collective's time limit. Reasons are exchanged only where there are any.

    Raises:
        TrainingStopped: on every worker, if any of them has `stopped`.
    """
    gathered = gather_over_workers(torch.tensor([stopped is not None, prune], dtype=torch.uint8, device=device))
    stops, prunes = gathered.any(dim=0).tolist()
    if stops:
        problem = next(filter(None, gather_json(str(stopped) if stopped else "", device)))
        raise stopped or TrainingStopped(problem)
    return bool(prunes)


def gather_json(value: Any, device: torch.device) -> list[Any]:
    """Every worker's value, by rank, sent as JSON."""
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    sizes = gather_over_workers(torch.tensor([len(text)], device=device)).flatten().tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    padded[: len(text)] = text
    rows = gather_over_workers(padded).cpu()
    return [json.loads(bytes(row[:size].tolist())) for row, size in zip(rows, sizes, strict=True)]
