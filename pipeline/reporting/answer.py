"""What a sweep came to, in at most three sentences."""

import math

from pipeline.reporting.baselines import is_baseline
from pipeline.reporting.columns import HELD_OUT_LOSS
from pipeline.reporting.frontier import density_of
from pipeline.reporting.report import Report, seeds_of
from pipeline.reporting.results import Row
from pipeline.reporting.statistics import mean, signed

_NAMED = 6
_CONVENTIONAL = 0.05


def answer(report: Report) -> list[str]:
    """The sentences: arms against the baselines at equal density; how sparse they are; what the seeds can show."""
    if not report.results.rows:
        return ["No trial has finished, so there is no answer yet."]
    return [_at_equal_density(report), _how_sparse(report), _seeds(report)]


def _at_equal_density(report: Report) -> str:
    rows = report.results.rows
    means = {place: each.mean for place, each in report.over_baselines.items() if math.isfinite(each.mean)}
    if not any(is_baseline(row.arm) for row in rows):
        return (
            "No baseline was run, so the losses cannot be compared at equal density. Add an arm such as top_k or dense."
        )
    if not means:
        return "No arm could be compared with the baselines at equal density."
    best = sorted(means, key=means.__getitem__)
    listed = ", ".join(f"{_name(rows[place])} {signed(means[place], 3)}" for place in best[:_NAMED])
    more = f" and {len(best) - _NAMED} more" if len(best) > _NAMED else ""
    return (
        "At equal density the held-out loss lies above (+) or below (-) the best baseline's by, in nats: "
        f"{listed}{more}."
    )


def _how_sparse(report: Report) -> str:
    rows = [row for row in report.results.rows if not is_baseline(row.arm)] or report.results.rows
    known = sorted((row for row in rows if math.isfinite(density_of(row))), key=density_of)
    if not known:
        return "The density was not measured."
    least, most = known[0], known[-1]
    text = f"{_name(least)} has {_percent(least)} of its experts active (held-out loss {_loss(least)} nats)"
    return f"{text}." if least is most else f"{text}, {_name(most)} {_percent(most)} ({_loss(most)})."


def _seeds(report: Report) -> str:
    seeds = seeds_of(report)
    if seeds < 2:
        return "With one seed, chance cannot be ruled out; add seeds before you draw a conclusion."
    smallest = 2 / 2**seeds
    text = f"With {seeds} seeds the sign-flip test cannot give a p below {smallest:.2g}"
    return f"{text}, so no difference here is significant." if smallest > _CONVENTIONAL else f"{text}."


def _name(row: Row) -> str:
    return ", ".join([row.arm, *(f"{field.split('.')[-1]} {value}" for field, value in row.cell)])


def _percent(row: Row) -> str:
    return f"{100 * density_of(row):.3g} %"


def _loss(row: Row) -> str:
    return f"{mean(HELD_OUT_LOSS.of_row(row)):.3f}"
