"""A model's two modes: what it draws at random and counts while it is trained, it does not where it is judged."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.data.randomness import stable_hash
from tiny_onn.model import GridTransformer


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """In evaluation mode: without dropout, and with no statistics updated. Each module is in its own mode afterwards.

    Our transformer computes the same in both, and blocks of it that are compiled for one would be compiled anew.
    """
    if isinstance(model, GridTransformer):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch's global generators for a training step, so that what a model draws at random, such as dropout's
    masks, is a function of the trial's seed, the step and the rank: a run that is resumed draws the same."""
    torch.manual_seed(int(stable_hash("training step", seed, step, rank)[:15], 16))
