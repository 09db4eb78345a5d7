"""What a fuzzed reader is: a function of bytes, and what it is tried with first."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """`run(bytes)` says whether they are good, and raises only on a finding.

    `seeds` are mutated, and the first of them is good; `words` are what a mutation may put in.
    """

    run: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
