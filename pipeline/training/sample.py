"""Rows that are made up, of a task's format, to try things on before any data have been read."""

import numpy as np

from pipeline.data.contract import find_task
from pipeline.data.sequence import Sequence
from pipeline.settings.config import Experiment

_LENGTHS = (13, 9)


def sample_rows(experiment: Experiment, seed: int = 0) -> list[Sequence]:
    """Two rows of unlike length, the values drawn evenly; at every token there is something to predict."""
    form, draw = find_task(experiment.data.task).format, np.random.default_rng(seed)
    rows = []
    for number, n in enumerate(_LENGTHS):
        axes = tuple(draw.integers(limit, size=n) for limit in form.coordinates.values())
        labels = None if form.classes is None else draw.integers(form.classes, size=n)
        tokens, mask = draw.integers(form.vocabulary, size=n), np.ones(n if labels is None else 0, dtype=np.bool_)
        rows.append(Sequence(tokens, axes, mask, f"sample-{number}", labels=labels))
    return rows
