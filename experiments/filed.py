"""Reads results that were filed under experiments/results: the ablation's report, the studies, the benchmarks.

A value is named by where it stands: `report("per_token", "excess")`, `study("arms", "per_token", "held-out loss")`,
`bench("step", "hooks", "ms")`. Whatever is not there raises KeyError with what there is.
"""

import csv
import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import measures
from pipeline.reporting.columns import COLUMNS
from pipeline.reporting.frontier import excesses
from pipeline.reporting.results import NOT_SET, Results, Row, TrialResult
from pipeline.reporting.statistics import paired_difference

RESULTS = Path(__file__).parent / "results"
_NOT_CELLS = ("arm", "seed", "run_id")
_BY_LAYER = "active by layer (%)"
Table = list[dict[str, str]]  # a row by its headings


def report(arm: str, column: str, stat: str = "mean", sweep: str = "ablation", **cell: Any) -> float:
    """A number of a report, in the unit that its tables have.

    Args:
        column: as in results.json: held_out_loss, density, excess, ...
        stat: mean; low or high, the ends of the 95 % interval of the excess over the baselines; least or most seed.
        sweep: the folder below results; the ablation lies in results itself.
        cell: what else the sweep varies, by the last part of its name: `density=0.1`.
    """
    scale = next((each.scale for each in COLUMNS if each.key == column), 1.0)
    row = _row(_report(sweep), arm, cell)
    if stat in ("low", "high"):
        if column != "excess":
            raise KeyError(f"{column} has no interval; the excess has")
        return float(row["over_baselines"]["interval"][stat == "high"]) * scale
    seeds = list(row["columns"][column]["seeds"].values())
    return {"mean": row["columns"][column]["mean"], "least": min(seeds), "most": max(seeds)}[stat] * scale


def trials(sweep: str = "ablation") -> Results:
    """The trials of a report as they lie in results.csv: density and held-out loss, and what varies."""
    with (_folder(sweep) / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    varying = list(lines[0])[2 : list(lines[0]).index("held_out_loss")]
    rows: dict[tuple[str, tuple[tuple[str, str], ...]], Row] = {}
    for line in lines:
        cell = tuple((name, line[name] or NOT_SET) for name in varying)
        metrics = {measures.DENSITY: float(line["density"]), measures.HELD_OUT_LOSS: float(line["held_out_loss"])}
        trial = TrialResult(line["run_id"], line["arm"], int(line["seed"]), dict(cell), {}, metrics, {})
        rows.setdefault((trial.arm, cell), Row(trial.arm, cell)).trials[trial.seed] = trial
    return Results(sweep, list(rows.values()), {"FINISHED": len(lines)}, 0, varying)


def excess_over(sweep: str, arm: str, stat: str = "mean", over: str = "frontier") -> float:
    """The excess of a sweep's arm over the baselines of this sweep and another one together, in nats, paired by seed.
    Both have the same seeds, tasks, batches and steps.

    Args:
        stat: mean; low or high, the ends of the mean's 95 % interval; seeds, how many have a baseline at the density.
    """
    own, other = trials(sweep), trials(over)
    made = excesses(Results(sweep, [*own.rows, *other.rows], own.statuses, 0, [*own.varying, *other.varying]))
    rows = [row for row in own.rows if row.arm == arm]
    if len(rows) != 1:
        raise KeyError(f"{len(rows)} rows of {sweep} have the arm {arm}")
    known = {s: excess for s, trial in rows[0].trials.items() if math.isfinite(excess := made[trial.run_id])}
    if stat == "seeds":
        return len(known)
    paired = paired_difference(known, dict.fromkeys(known, 0.0))
    if paired is None or (paired.interval is None and stat != "mean"):
        raise KeyError(f"{sweep}: {arm} has no two seeds at densities of the baselines")
    return paired.mean if paired.interval is None or stat == "mean" else paired.interval[stat == "high"]


def study(name: str, arm: str, column: str, stat: str = "mean", layer: int | None = None) -> float:
    """A number of a study's page: the mean over seeds, or the least or most seed's.

    Args:
        arm: as the table has it, with its cell: `per_token · layers 4`.
        column: how its heading begins. Of "active by layer", `layer` says which; without it, the least or most layer's
            mean over seeds.
    """
    if column.startswith("active"):
        by_layer = _layers(name, arm)
        if layer is not None:
            values = by_layer[layer]
            return {"mean": statistics.fmean(values), "least": min(values), "most": max(values)}[stat]
        means = [statistics.fmean(values) for values in by_layer]
        return {"mean": statistics.fmean(means), "least": min(means), "most": max(means)}[stat]
    row = _find(_study(name)[0], arm)
    mean, _, rest = _column(row, column).partition(" (")
    low, _, high = rest.removesuffix(")").partition(" to ")
    return float({"mean": mean, "least": low, "most": high}[stat])


def seed_of(name: str, arm: str, seed: int, column: str) -> float:
    """A number of one trial of a study."""
    row = next(each for each in _study(name)[1] if (each["arm"], each["seed"]) == (arm, str(seed)))
    return float(_column(row, column))


def difference(name: str, arm: str, reference: str, column: str, stat: str = "mean") -> float:
    """`arm` less `reference`, paired by seed: the mean, or an end (low, high) of its 95 % bootstrap interval."""
    ours, theirs = (
        {int(each["seed"]): float(_column(each, column)) for each in _study(name)[1] if each["arm"] == which}
        for which in (arm, reference)
    )
    paired = paired_difference(ours, theirs)
    if paired is None or paired.interval is None:
        raise KeyError(f"study {name}: {arm} and {reference} have no two seeds in common")
    return paired.mean if stat == "mean" else paired.interval[stat == "high"]


def bench(name: str, row: str, column: str) -> float:
    """A number of a benchmark's table: of the one row that has the cells in `row`, joined by `|`, in this order."""
    tables = _tables(RESULTS / "bench" / f"{name}.md")
    rows = [each for table in tables for each in table if _in_order(row.split("|"), each)]
    if len(rows) != 1:
        raise KeyError(f"bench {name}: {len(rows)} rows have {row}")
    return float(_column(rows[0], column))


def study_table(name: str, columns: Sequence[str]) -> str:
    """The table of a study's page, with some of its columns."""
    table = _study(name)[0]
    kept = ["arm", "seeds", _BY_LAYER, *(_heading(table[0], each) for each in columns)]
    return markdown([kept, *([row[each] for each in kept] for row in table)])


def studies() -> list[str]:
    """The names of the studies that are filed."""
    return sorted(path.stem for path in (RESULTS / "study").glob("*.md"))


def study_trials(name: str) -> Results:
    """The trials of a study as its page has them, with the digits that it has."""
    rows: dict[tuple[str, tuple[tuple[str, str], ...]], Row] = {}
    for line in _study(name)[1]:
        arm, *settings = line["arm"].split(" · ")
        cell = tuple((each.split(" ")[0], each.split(" ")[1]) for each in settings)
        active = [float(each) / 100 for each in line[_BY_LAYER].split()]
        metrics = {measures.by_layer(measures.ACTIVATION_RATE, place): rate for place, rate in enumerate(active)}
        # The page has the mean over layers; given to each, the figure's mean is that again.
        selectivity = float(_column(line, "selectivity"))
        metrics |= {measures.by_layer(measures.MUTUAL_INFORMATION, place): selectivity for place in range(len(active))}
        metrics[measures.HELD_OUT_LOSS] = float(_column(line, "held-out loss"))
        curves = {metric: ([0], [rate]) for metric, rate in metrics.items()}
        trial = TrialResult("", arm, int(line["seed"]), dict(cell), {}, metrics, curves)
        rows.setdefault((arm, cell), Row(arm, cell)).trials[trial.seed] = trial
    return Results(f"study-{name}", list(rows.values()), {"FINISHED": len(_study(name)[1])}, 0, [])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the headings first, as a Markdown table."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rest))


def _folder(sweep: str) -> Path:
    return RESULTS if sweep == "ablation" else RESULTS / sweep


@functools.cache
def _report(sweep: str) -> dict[str, Any]:
    report = json.loads((_folder(sweep) / "results.json").read_text(encoding="utf-8"))
    assert isinstance(report, dict)
    return report


def _row(report: dict[str, Any], arm: str, cell: dict[str, Any]) -> dict[str, Any]:
    for row in report["rows"]:
        short = {name.rpartition(".")[2]: str(value) for name, value in row["cell"].items()}
        if row["arm"] == arm and all(short.get(name) == str(value) for name, value in cell.items()):
            assert isinstance(row, dict)
            return row
    raise KeyError(f"no row {arm} {cell}; there are {[(row['arm'], row['cell']) for row in report['rows']]}")


@functools.cache
def _study(name: str) -> tuple[Table, Table]:
    means, seeds = _tables(RESULTS / "study" / f"{name}.md")
    return means, seeds


def _in_order(wanted: Sequence[str], row: dict[str, str]) -> bool:
    """Whether the cells come in the row, in this order."""
    cells = iter(row.values())
    return all(cell in cells for cell in wanted)


def _layers(name: str, arm: str) -> list[list[float]]:
    """By layer, in %, each seed's."""
    rows = [[float(each) for each in line[_BY_LAYER].split()] for line in _study(name)[1] if line["arm"] == arm]
    if not rows:
        raise KeyError(f"study {name} has no arm {arm}")
    return [list(each) for each in zip(*rows, strict=True)]


def _tables(path: Path) -> list[Table]:
    """The Markdown tables of a file. A heading that comes again has 2 or 3 behind it."""
    tables: list[Table] = []
    heads: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            heads = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not heads:
            times = [cells[:place].count(name) + 1 for place, name in enumerate(cells)]
            heads = [name if time == 1 else f"{name}{time}" for name, time in zip(cells, times, strict=True)]
            tables.append([])
        elif set(cells) != {"---"}:
            tables[-1].append(dict(zip(heads, cells, strict=True)))
    return tables


def _find(table: Table, arm: str) -> dict[str, str]:
    for row in table:
        if row["arm"] == arm:
            return row
    raise KeyError(f"no arm {arm}; there are {[row['arm'] for row in table]}")


def _heading(row: dict[str, str], start: str) -> str:
    for heading in row:
        if heading == start:
            return heading
    for heading in row:
        if heading.startswith(start):
            return heading
    raise KeyError(f"no column {start}; there are {list(row)}")


def _column(row: dict[str, str], start: str) -> str:
    return row[_heading(row, start)]
