"""A row of a data set, and the format that all rows of a task share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError

IGNORED = -100  # the label of a token at which nothing is predicted; torch's cross_entropy leaves such labels out
WHOLE = -1  # in place of the number of a pair or part: all of them
_MOST_IDS = 2**31


@dataclass(frozen=True, eq=False)
class Sequence:
    """A row: n tokens and what is to be predicted at them.

    Attributes:
        tokens: ids from 0, integers [n], n >= 1.
        coordinates: for each axis of the format, in its order, a number from 0 for each token, integers [n].
        labelled: bool [n], of a format that predicts the next token: whether token t is to be predicted, from the
            tokens before it. The shift is made in `pipeline.data.batch.collate` and nowhere else.
        labels: integers [n], of a format with classes: the class at each token, IGNORED where there is none.
        task_id: names what the row is part of. Rows of one name count as one item, in routing patterns and examples.
        pair: which part of it; WHOLE for all.
        extra: values of the format's `extra` columns. They are written, and not read in training.
    """

    tokens: np.ndarray
    coordinates: tuple[np.ndarray, ...] = ()
    labelled: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    task_id: str = ""
    pair: int = WHOLE
    labels: np.ndarray | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Format:
    """What the rows of a task are made of; the Parquet schema follows from it.

    Attributes:
        vocabulary: token ids are below it.
        coordinates: for each axis beside the position in the sequence, which every model knows, how many values there
            are: {"rows": 32, "columns": 32}. The names are those of Parquet columns.
        classes: None where the next token is predicted (`Sequence.labelled`); else of how many classes the labels are
            (`Sequence.labels`).
        padding: the token that stands on padding.
        extra: further Parquet columns, by name, which training does not read.
        pair_type: of the Parquet column of `Sequence.pair`.
    """

    vocabulary: int
    coordinates: Mapping[str, int] = field(default_factory=dict)
    classes: int | None = None
    padding: int = 0
    extra: Mapping[str, pa.DataType] = field(default_factory=dict)
    pair_type: pa.DataType = field(default_factory=pa.int32)

    @property
    def outputs(self) -> int:
        """How many logits a model gives for each token."""
        return self.vocabulary if self.classes is None else self.classes

    @property
    def limits(self) -> dict[str, int]:
        """For each column of whole numbers, what all of its values are below."""
        return {"tokens": self.vocabulary, **self.coordinates, **self._labels}

    @property
    def target(self) -> str:
        """The column that says what is to be predicted."""
        return "labelled" if self.classes is None else "labels"

    @property
    def _labels(self) -> dict[str, int]:
        return {} if self.classes is None else {"labels": self.classes}

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the Parquet files."""
        lists = {name: _type_below(limit) for name, limit in (("tokens", self.vocabulary), *self.coordinates.items())}
        lists[self.target] = pa.bool_() if self.classes is None else pa.int32()
        return pa.schema(
            [
                pa.field("task_id", pa.string(), nullable=False),
                pa.field("pair", self.pair_type, nullable=False),
                *(pa.field(name, kind, nullable=False) for name, kind in self.extra.items()),
                *(
                    pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)
                    for name, kind in lists.items()
                ),
                pa.field("length", pa.int32(), nullable=False),
            ]
        )

    def problem(self) -> str | None:
        """Why there can be no such format, as a sentence without its subject; None where there can."""
        taken = {"task_id", "pair", "tokens", "labelled", "labels", "length"}
        for name, limit in {"vocabulary": self.vocabulary, **self.coordinates, "classes": self.outputs}.items():
            if type(limit) is not int or not 0 < limit < _MOST_IDS:
                return f"has {name}={limit!r}; expected a whole number above 0"
        if not 0 <= self.padding < self.vocabulary:
            return f"has padding={self.padding!r}; expected a token id, below vocabulary={self.vocabulary}"
        for name in (*self.coordinates, *self.extra):
            if not isinstance(name, str) or not name.isidentifier() or name in taken:
                return (
                    f"has a column {name!r}; expected a name of letters, digits and _ that is none of {sorted(taken)}"
                )
            taken = {*taken, name}
        return None


def check_sequence(row: Sequence, form: Format, most: int, where: str) -> None:
    """Whether a row is of the format and has at most `most` tokens.

    Raises:
        UserError: it is not; `where` says whose row it is.
    """
    if problem := _problem(row, form, most):
        raise UserError(f"{where}: row {row.task_id!r} (part {row.pair}) {problem}")


def _problem(row: Any, form: Format, most: int) -> str | None:
    n = len(row.tokens)
    if not isinstance(row.task_id, str) or not row.task_id:
        return f"has task_id={row.task_id!r}; expected the name of what it is part of"
    if not 1 <= n <= most:
        return f"has {n} tokens; expected 1 to data.max_tokens={most}. Leave longer rows out, and count them"
    if len(row.coordinates) != len(form.coordinates):
        return f"has {len(row.coordinates)} coordinates; expected {len(form.coordinates)}: {list(form.coordinates)}"
    named = {"tokens": row.tokens, **dict(zip(form.coordinates, row.coordinates, strict=True))}
    if form.classes is None:
        if row.labels is not None:
            return "has labels, which go with Format.classes; expected labelled, the mask of the tokens to predict"
        mask = np.asarray(row.labelled)
        if mask.dtype != np.bool_ or mask.shape != (n,):
            return f"has labelled as {mask.dtype} {list(mask.shape)}; expected bool [{n}]"
    elif row.labels is None:
        return f"has no labels; expected whole numbers [{n}], the class at each token, {IGNORED} for none"
    else:
        named["labels"] = row.labels
    for name, values in named.items():
        array = np.asarray(values)
        if array.dtype.kind not in "iu" or array.shape != (n,):
            return f"has {name} as {array.dtype} {list(array.shape)}; expected whole numbers [{n}]"
        if name == "labels":
            array = array[array != IGNORED]
        limit = form.limits[name]
        if len(array) and not 0 <= array.min() <= array.max() < limit:
            wrong = array.min() if array.min() < 0 else array.max()
            return f"has {wrong} among its {name}; expected whole numbers from 0 and below {limit}"
    if set(row.extra) != set(form.extra):
        return f"has extra columns {sorted(row.extra)}; expected {sorted(form.extra)}"
    return None


def _type_below(limit: int) -> pa.DataType:
    return pa.uint8() if limit <= 2**8 else pa.uint16() if limit <= 2**16 else pa.int32()
