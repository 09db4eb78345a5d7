"""Tasks and models of somebody else's, good and broken ones, for the tests."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.batch import collate
from pipeline.settings.config import DataConfig
from pipeline.tasks import (
    Answers,
    Examples,
    Format,
    ModelSettings,
    RoutingMaps,
    Rows,
    Score,
    Sequence,
    Source,
    Splits,
    Task,
    in_lines,
)
from tiny_onn import SparseProtoLinear

PARITY = Format(vocabulary=5, coordinates={"half": 2}, classes=3, padding=4)


def parity_row(number: int, n: int) -> Sequence:
    """Tokens 0..3; the class at each is the parity of their sum so far, 2 is never right; the first has none."""
    draw = np.random.default_rng(number)
    tokens = draw.integers(4, size=n)
    labels = tokens.cumsum() % 2
    labels[0] = -100
    half = (np.arange(n) >= n // 2).astype(np.int64)
    return Sequence(tokens, (half,), task_id=f"r{number:02d}", labels=labels)


def read_parity(config: DataConfig) -> Source:
    rows = [parity_row(number, 3 + number % 7) for number in range(48)]
    held = Rows(rows[:12], 12)
    return Source("parity", lambda: Splits(Rows(rows[12:], 36), held, Rows(rows[12:14], 2)), notes=("Made up.",))


def wrong_third(logits: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """How often the class that is never right is the most likely."""
    known = batch.labels >= 0
    return ((logits.argmax(-1) == 2) & known).sum(), known.sum()


def draw(model: nn.Module, rows: Any, experiment: Any, alive: Callable[[], None]) -> list[dict[str, Any]]:
    samples = []
    for row in rows:
        alive()
        batch = collate([row])
        said = model(*batch.inputs)[0].argmax(-1).tolist()
        known = [label for label in row.labels.tolist() if label >= 0]
        texts = {"given": str(row.tokens.tolist()), "predicted": str(said), "target": str(known)}
        samples.append({"task_id": row.task_id, "pair": int(row.pair), **texts})
    return samples


def answer(trained: Any, file: Path) -> Answers:
    """The class at each of the tokens in the file."""
    tokens = torch.tensor([[int(word) for word in file.read_text().split()]])
    classes = trained.model(tokens, torch.zeros_like(tokens))[0].argmax(-1).tolist()
    return Answers(classes, f"{len(classes)} tokens")


TASK = Task(
    "parity",
    PARITY,
    read_parity,
    item="row",
    scores=(Score("third", wrong_third, unit="%", best="lowest", title="never right", scale=100),),
    examples=Examples(draw, measure=lambda examples: {"examples": float(len(examples))}),
)


def _with(row: Sequence, **changes: Any) -> Task:
    def read(config: DataConfig) -> Source:
        rows = [replace(row, **changes)]
        return Source("x", lambda: Splits(Rows(rows, 1), Rows(rows, 1)))

    return replace(TASK, read=read)


def _raises(config: DataConfig) -> Source:
    raise RuntimeError("no such server")


def _changes(config: DataConfig) -> Source:
    rows = [parity_row(int(torch.randint(10**6, ())), 9)]
    return Source("x", lambda: Splits(Rows(rows, 1), Rows(rows, 1)))


HIT = Score("hits", lambda logits, batch: wrong_third(logits, batch), unit="%", best="highest", scale=100, digits=1)
SCORED = replace(TASK, scores=(HIT, Score("plain", wrong_third)))  # one with a better end and one without
GROUPED = replace(TASK, group=lambda task_id: task_id[1])  # of r00 to r47: by tens
NO_GROUP_NAME = replace(TASK, group=lambda task_id: "")
GROUP_RAISES = replace(TASK, group=lambda task_id: task_id[99])
ROW = parity_row(1, 6)
NO_TASK = 3
RAISES = replace(TASK, read=_raises)
NO_SOURCE = replace(TASK, read=lambda config: [1, 2])
CHANGES = replace(TASK, read=_changes)
NOTHING_HELD_OUT = replace(TASK, read=lambda config: Source("x", lambda: Splits(Rows([ROW], 1), Rows())))
NO_ROWS = replace(TASK, read=lambda config: Source("x", lambda: Splits([ROW], Rows())))  # type: ignore[arg-type]
LARGE_TOKEN = _with(ROW, tokens=np.array([0, 1, 2, 5, 0, 1]))
FLOATS = _with(ROW, tokens=np.linspace(0, 1, 6))
SHORT_LABELS = _with(ROW, labels=np.array([1, 1]))
NO_LABELS = _with(ROW, labels=None)
LARGE_LABEL = _with(ROW, labels=np.array([-100, 0, 1, 3, 0, 0]))
NO_NAME = _with(ROW, task_id="")
NO_AXIS = _with(ROW, coordinates=())
LONG = _with(ROW, tokens=np.zeros(99, dtype=np.int64))
PATH = replace(TASK, name="../x")
PADDING = replace(TASK, format=Format(vocabulary=5, padding=5))
COLUMN = replace(TASK, format=Format(vocabulary=5, coordinates={"tokens": 2}))
SCORE = replace(TASK, scores=(Score("bad", lambda logits, batch: logits.sum()),))  # type: ignore[arg-type,return-value]
TAKEN = replace(TASK, scores=(Score("density", wrong_third),))
SCORE_NAN = replace(TASK, scores=(Score("bad", lambda logits, batch: (logits.sum() * math.nan, logits.sum())),))
COLLATE = replace(TASK, collate=lambda rows: collate(rows[:1]))
ANSWERS = replace(TASK, answer=answer)
NO_ANSWERS = replace(TASK, answer=lambda trained, file: [1])  # type: ignore[arg-type,return-value]
ANSWERS_NO_JSON = replace(TASK, answer=lambda trained, file: Answers({1, 2}, "two"))
ANSWER_NO_FUNCTION = replace(TASK, answer="x")  # type: ignore[arg-type]
MAPS = replace(TASK, maps=True)  # type: ignore[arg-type]
NO_LAYOUT = replace(TASK, maps=RoutingMaps(lambda row: row))  # type: ignore[arg-type,return-value]
SHORT_LAYOUT = replace(TASK, maps=RoutingMaps(lambda row: in_lines(parity_row(1, 2))))
LAYOUT_RAISES = replace(TASK, maps=RoutingMaps(lambda row: 1 / 0))  # type: ignore[arg-type,return-value]
EXAMPLES = replace(TASK, examples=Examples(lambda model, rows, experiment, alive: []))
NO_JSON = replace(TASK, examples=Examples(lambda model, rows, experiment, alive: [{"x": row} for row in rows]))


class Chain(nn.Module):
    """No transformer: each token by itself through two routed layers, and the running mean of all before it."""

    def __init__(self, settings: ModelSettings, outputs: int | None = None) -> None:
        super().__init__()
        size = settings.hidden
        self.embed = nn.Embedding(settings.vocabulary, size)
        self.axes = nn.ModuleList(nn.Embedding(n, size) for n in settings.coordinates.values())
        self.entry = SparseProtoLinear(size, size, **settings.routing)
        self.rungs = nn.ModuleList(SparseProtoLinear(size, size, **settings.routing) for _ in range(settings.layers))
        self.head = nn.Linear(size, outputs or settings.outputs)

    def forward(self, tokens: Tensor, *coordinates: Tensor) -> Tensor:
        x = self.embed(tokens)
        for embed, numbers in zip(self.axes, coordinates, strict=True):
            x = x + embed(numbers)
        count = torch.arange(1, tokens.shape[1] + 1, device=x.device)[:, None]
        x = self.entry(x + x.cumsum(1) / count)
        for rung in self.rungs:
            x = x + rung(x)
        logits: Tensor = self.head(x)
        return logits


class Tied(Chain):
    """Its head is its embedding; it has dropout, a part that stays frozen, one that is never used, and a count of its
    passes in training."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.head.weight = self.embed.weight
        self.drop, self.frozen = nn.Dropout(0.5), nn.Dropout(0.9).eval()
        self.unused = nn.Linear(3, 2)
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, tokens: Tensor, *coordinates: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return self.frozen(self.drop(super().forward(tokens, *coordinates)))


class SeesAll(Chain):
    def forward(self, tokens: Tensor, *coordinates: Tensor) -> Tensor:
        return super().forward(tokens, *coordinates) + self.embed(tokens).mean(dim=(1, 2), keepdim=True)


def build(settings: ModelSettings) -> nn.Module:
    return Chain(settings)


def tied(settings: ModelSettings) -> nn.Module:
    return Tied(settings)


def no_model(settings: ModelSettings) -> str:
    return "Chain"


def no_layers(settings: ModelSettings) -> nn.Module:
    return nn.Embedding(settings.vocabulary, settings.outputs)


def ignores_density(settings: ModelSettings) -> nn.Module:
    return Chain(replace(settings, density=0.5))


def wrong_outputs(settings: ModelSettings) -> nn.Module:
    return Chain(settings, outputs=settings.outputs + 1)


def sees_all(settings: ModelSettings) -> nn.Module:
    return SeesAll(settings)


def breaks(settings: ModelSettings) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), SparseProtoLinear(2, 2, **settings.routing))
