"""How many comparisons a report makes, and what of them is left when that is taken into account."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.reporting.statistics import (
    ENOUGH_SEEDS,
    MOST_EXACT,
    Difference,
    chance_of,
    holm,
    least_p,
    seeds_needed,
    sign_flip_p,
)

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """One difference's p-value, by the sign-flip test, and the same adjusted by Holm for all of the report's."""

    p: float
    adjusted: float


Key = tuple[int, str]  # a row's place, and a column's key


def compare(differences: Mapping[int, Mapping[str, Difference]]) -> dict[Key, Comparison]:
    """Every difference of at least two seeds that are all finite, adjusted for their number."""
    found = {(place, key): sign_flip_p(each.values) for place, row in differences.items() for key, each in row.items()}
    known = {key: p for key, p in found.items() if not math.isnan(p)}
    adjusted = holm(list(known.values()))
    return {key: Comparison(p, q) for (key, p), q in zip(known.items(), adjusted, strict=True)}


def note(differences: Mapping[int, Mapping[str, Difference]], comparisons: Mapping[Key, Comparison]) -> str:
    """What the number of comparisons and of seeds leaves to be said, in words; "" where nothing is compared."""
    if not comparisons:
        return ""
    total = len(comparisons)
    seeds = [differences[place][key].seeds for place, key in comparisons]
    text = f"{total} difference{'s' * (total != 1)} to the control {'are' if total != 1 else 'is'} looked at here"
    by_chance = sum(chance_of(LEVEL, each) for each in seeds)
    if total > 1 and by_chance >= 0.05:
        text += f"; were none of them real, {by_chance:.1f} would be expected not above {LEVEL:g} by chance alone"
    text += ". The p-values are those of the exact sign-flip test over seeds, which assumes nothing but that, without "
    text += "a difference, either sign is as likely; Holm's correction makes them hold for all comparisons together. "
    most = max(seeds)
    if most > MOST_EXACT:
        text += f"With more than {MOST_EXACT} seeds they come from signs drawn at random, and are not quite exact. "
    if least_p(most) > LEVEL / total:
        needed = seeds_needed(total, LEVEL)
        text += (
            f"With {most} seeds no p-value can be smaller than {least_p(most):.2g}, however large the difference: "
            f"nothing can be told here by a test, and it would take {needed} seeds before one could pass for {total} "
            f"comparison{'s' * (total != 1)}. What can be looked at is the size of a difference beside its spread over "
            "seeds, and whether all seeds agree on its sign."
        )
    else:
        passed = sum(each.adjusted <= LEVEL for each in comparisons.values())
        text += f"{passed} of {total} are below {LEVEL:g} after the correction."
    if min(seeds) < ENOUGH_SEEDS:
        text += (
            f" With fewer than {ENOUGH_SEEDS} seeds a bootstrap interval is only the spread of the differences, too: "
            "it is too narrow, and says nothing of other seeds."
        )
    return text
