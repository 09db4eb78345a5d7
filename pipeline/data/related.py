"""Which tasks are one task seen differently, so that none of them may be trained on while another is held out."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.data.task import COLOURS, Pair, Task

# A pair of fewer cells, input and output together, may occur in two tasks by chance: then two are wanted in common.
# In ARC-AGI-1 and -2 the one pair of 10 cells that two tasks share is chance, the one of 27 cells is not; see LOG.md.
LARGE = 20
_MOST_SMALL = (
    64  # small pairs of a task that are compared, by hash: without a limit a thousand would make 500,000 marks
)


def canonical_form(pair: Pair) -> bytes:
    """Equal for two pairs exactly if one is the other turned or mirrored and then recoloured by any permutation.

    Both grids take part in the same symmetry and the same recolouring. Of the eight symmetries' forms, in each of which
    colours are numbered as they first occur in the input and then the output, the smallest is taken.
    """
    assert pair.output is not None
    forms = []
    for given, answer in ((pair.input, pair.output), (pair.input.T, pair.output.T)):
        for turns in range(4):
            left, right = np.rot90(given, turns), np.rot90(answer, turns)
            cells = left.tobytes() + right.tobytes()
            first = sorted((place, colour) for colour in range(COLOURS) if (place := cells.find(colour)) >= 0)
            names = bytearray(COLOURS)
            for name, (_, colour) in enumerate(first):
                names[colour] = name
            forms.append(bytes((*left.shape, *right.shape)) + cells.translate(bytes(names).ljust(256)))
    return min(forms)


def marks(task: Task) -> frozenset[bytes]:
    """Hashes, at least one of which two tasks have in common exactly if they are related.

    They are if they share, as `canonical_form` says, a pair of at least LARGE cells, or two different smaller ones, or
    if all their pairs are the same; or if they are of one family. Pairs without an output are left out.
    """
    forms = {
        _hash(canonical_form(pair)): pair.input.size + pair.output.size
        for pair in task.pairs
        if pair.output is not None
    }
    family = {_hash(b"family", task.family.encode())} if task.family else set()
    if not forms:
        return frozenset(family)
    large = {form for form, cells in forms.items() if cells >= LARGE}
    small = sorted(forms.keys() - large)[:_MOST_SMALL]
    twos = {_hash(b"two", *two) for two in itertools.combinations(small, 2)}
    return frozenset(large | twos | family | {_hash(b"all", *sorted(forms))})


def related_groups(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks in the smallest groups such that no two tasks of different groups are related; all in their order."""
    group_of = list(range(len(tasks)))
    first_with: dict[bytes, int] = {}

    def find(number: int) -> int:
        while group_of[number] != number:
            group_of[number] = number = group_of[group_of[number]]
        return number

    for number, task in enumerate(tasks):
        for mark in marks(task):
            one, other = find(first_with.setdefault(mark, number)), find(number)
            group_of[max(one, other)] = min(one, other)
    groups: dict[int, list[Task]] = {}
    for number, task in enumerate(tasks):
        groups.setdefault(find(number), []).append(task)
    return list(groups.values())


def leakage(train: Iterable[Task], other: Iterable[Task]) -> list[tuple[str, str]]:
    """Every (train task id, other task id) that are related, sorted. Names of tasks are not compared.

    All views of a task have the same marks, so this holds whichever of them are trained on.
    """
    known: dict[bytes, list[str]] = {}
    for task in other:
        for mark in marks(task):
            known.setdefault(mark, []).append(task.task_id)
    if not known:
        return []
    return sorted({(task.task_id, theirs) for task in train for mark in marks(task) for theirs in known.get(mark, [])})


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()
