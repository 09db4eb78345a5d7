"""Text, byte by byte: each byte of a passage is predicted from those before it."""

import hashlib
import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.contract import Encoded, Examples, Rows, Score, Source, Splits, Task
from pipeline.data.model_use import Answers, Layout, RoutingMaps, in_lines
from pipeline.data.randomness import generator
from pipeline.data.sequence import Format, Sequence
from pipeline.data.split import hold_out_groups
from pipeline.data.text import Passage, passages, python_topics, read_texts, related_passages
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig, Experiment

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from pipeline.data.batch import Batch
    from pipeline.training.model_file import TrainedModel

BEGIN = 256  # the token before the first byte
FORMAT = Format(vocabulary=257)
PROMPT, SAID = 64, 192  # bytes of a held-out passage that the model is given at most, and that it says
TEMPERATURE = 0.8
_LINE = 64  # bytes, in a routing map
_VERSION = "text 1"  # of how documents become rows; part of the data's digest


def _read(config: DataConfig) -> Source:
    documents = python_topics() if config.folder is None else read_texts(config.folder)
    pieces, note = passages(documents, config.max_tokens - 1)
    digest = hashlib.sha256(f"{_VERSION} {documents.digest()}".encode()).hexdigest()
    return Source(digest, partial(_splits, pieces, config), documents.refused, (note,) if note else ())


def _splits(pieces: list[Passage], config: DataConfig) -> Splits:
    train, held_out = hold_out_groups(related_passages(pieces), config.held_out, config.seed, config.held_out_for)
    if not held_out or not train:
        raise UserError(
            f"data: none of the {len(pieces)} passages of at most {config.max_tokens - 1} bytes can be held out, "
            "because all are related or there is only one. Give more text, or lower data.max_tokens."
        )
    trained = [passage for passage in pieces if passage.name in train]
    order = generator("order of rows", config.seed).permutation(len(trained))
    return Splits(
        train=_rows([trained[place] for place in order]),
        held_out=_rows([passage for passage in pieces if passage.name in held_out]),
    )


def _rows(pieces: list[Passage]) -> Rows:
    return Rows(Encoded(pieces, _encode), len({passage.document for passage in pieces}))


def _encode(passage: Passage) -> Sequence:
    tokens = as_tokens(passage.data)
    labelled = np.ones(len(tokens), dtype=np.bool_)
    labelled[0] = False
    return Sequence(tokens, (), labelled, passage.document, passage.number)


def as_tokens(data: bytes) -> np.ndarray:
    """BEGIN and the bytes, uint16 [1 + n]."""
    return np.concatenate([np.array([BEGIN], dtype=np.uint16), np.frombuffer(data, dtype=np.uint8)]).astype(np.uint16)


def as_text(tokens: Iterable[int]) -> str:
    """The bytes among the tokens as text; what is no UTF-8 becomes the replacement character."""
    return bytes(int(token) for token in tokens if token < BEGIN).decode("utf-8", "replace")


def bits_per_byte(logits: "Tensor", batch: "Batch") -> "tuple[Tensor, Tensor]":
    """(cross-entropy in bits, summed over the bytes; number of bytes)."""
    from pipeline.data.batch import IGNORED
    from pipeline.training.step import summed_loss

    return summed_loss(logits, batch.labels) / math.log(2), (batch.labels != IGNORED).sum()


def generate_texts(
    model: "nn.Module",
    prompts: Items[np.ndarray],
    most: int,
    draws: np.ndarray,
    temperature: float = TEMPERATURE,
    alive: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The model's continuation of each prompt, `most` tokens.

    Args:
        draws: for each prompt a number in [0, 1) for each of its tokens, [b, most]: by these, tokens are drawn from the
            model's distribution at the temperature, whatever else is in the batch. A temperature of 0 takes the most
            likely.
    """
    import torch

    from tiny_onn.generate import generate

    device = next(model.parameters()).device
    generated: list[list[int]] = []
    for prompt, row in zip(prompts, torch.from_numpy(draws).to(device), strict=True):
        numbers = iter(row)

        def choose(logits: "Tensor", numbers: Any = numbers) -> "Tensor":
            if not temperature:
                return logits.argmax(dim=-1)
            upto = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
            place = next(numbers) * upto[:, -1:]
            return torch.searchsorted(upto, place, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

        tokens = torch.from_numpy(prompt.astype(np.int64))[None].to(device)
        lengths = torch.tensor([len(prompt)], device=device)
        limit = len(prompt) + most
        generated += generate(model, tokens, (), lengths, limit=limit, stop=BEGIN, alive=alive, choose=choose)
    return generated


def _part_of(document: str) -> str:
    """The folder that a document lies in, the one at the top, or the document itself: what is read at a time."""
    return document.partition("/")[0]


def _draw(
    model: "nn.Module", rows: Items[Sequence], experiment: Experiment, alive: Callable[[], None]
) -> list[dict[str, Any]]:
    examples = []
    for row in rows:
        given = min(PROMPT + 1, max(2, len(row) // 2))
        most = max(1, min(SAID, experiment.data.max_tokens - given))
        draws = generator("text", experiment.training.seed, row.task_id, row.pair).random((1, most))
        (generated,) = generate_texts(model, [row.tokens[:given]], most, draws, alive=alive)
        tokens_of: dict[str, Iterable[int]] = {
            "given": row.tokens[:given],
            "predicted": generated,
            "target": row.tokens[given : given + most],
        }
        texts = {name: as_text(tokens) for name, tokens in tokens_of.items()}
        examples.append({"task_id": row.task_id, "pair": int(row.pair), **texts})
    return examples


def _spread(rows: Items[Sequence], wanted: int) -> list[Sequence]:
    """So many rows, evenly from first to last."""
    count = min(wanted, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def continue_text(
    trained: "TrainedModel", prompt: str, most: int = SAID, temperature: float = TEMPERATURE, seed: int = 0
) -> str:
    """How the model continues a prompt, by at most `most` bytes.

    Raises:
        UserError: the prompt leaves no room in sequences as long as those that the model was trained on.
    """
    tokens, limit = as_tokens(prompt.encode()), trained.experiment.data.max_tokens
    if len(tokens) >= limit:
        raise UserError(
            f"the prompt has {len(tokens) - 1} bytes; expected fewer than data.max_tokens - 1 = {limit - 1}"
        )
    count = min(most, limit - len(tokens))
    (generated,) = generate_texts(
        trained.model, [tokens], count, generator("prompt", seed).random((1, count)), temperature
    )
    return as_text(generated)


def answer_prompts(trained: "TrainedModel", file: "Path") -> Answers:
    """How the model continues each line of a UTF-8 file that is not blank: [{"prompt", "continuation"}, ...].

    Raises:
        UserError: the file cannot be read or holds no prompt, or a line is too long; nothing is generated then.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"FILE {file}: cannot be read ({error}). Expected UTF-8 text, a prompt in each line.") from None
    prompts = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    if not prompts:
        raise UserError(f"FILE {file}: holds no prompt. Expected UTF-8 text, a prompt in each line.")
    most = trained.experiment.data.max_tokens - 2
    for number, line in prompts.items():
        if (length := len(line.encode())) > most:
            raise UserError(
                f"FILE {file}, line {number}: the prompt has {length} bytes; the model takes at most {most}"
            )
    continued = [{"prompt": line, "continuation": continue_text(trained, line)} for line in prompts.values()]
    return Answers(continued, f"{len(prompts)} prompt{'s' * (len(prompts) != 1)} continued")


def _lay_out(row: Sequence) -> Layout:
    """Lines of 64 bytes, each written in its cell; BEGIN is not drawn."""
    lines = in_lines(row, _LINE)
    places = np.maximum(np.arange(len(row)) - 1, 0)
    panels = np.where(np.asarray(row.tokens) == BEGIN, -1, 0)
    letters = tuple(_letter(int(token)) for token in row.tokens)
    rows = (places // _LINE).clip(max=int(lines.rows.max()))
    return Layout(panels, rows, places % _LINE, None, letters, title="text")


def _letter(token: int) -> str:
    """One character for a byte: itself where it is a printable one of ASCII, else a sign in its place."""
    if token == BEGIN:
        return ""
    return "↵" if token == ord("\n") else chr(token) if 32 <= token < 127 else "·"


def _row_of(trained: "TrainedModel", text: str) -> Sequence:
    """The text as the model reads it."""
    tokens = as_tokens(text.encode())
    return Sequence(tokens, (), np.ones(len(tokens), dtype=np.bool_), "text", 0)


TEXT = Task(
    name="text",
    format=FORMAT,
    read=_read,
    item="document",
    scores=(Score("bits_per_byte", bits_per_byte, unit="bits", best="lowest", title="bits per byte"),),
    examples=Examples(draw=_draw, choose=_spread),
    predict=continue_text,
    answer=answer_prompts,
    maps=RoutingMaps(_lay_out, _row_of),
    group=_part_of,
)
