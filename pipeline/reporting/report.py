"""The report of a sweep, from MLflow alone: tables, a figure, and what the numbers say."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.reporting.columns import Column, columns_of
from pipeline.reporting.comparisons import Comparison, Key, compare, note
from pipeline.reporting.filed import Filed, read_filed
from pipeline.reporting.findings import CONTROL, findings
from pipeline.reporting.results import Results, Row, read_results
from pipeline.reporting.statistics import Difference, mean, paired_difference

_WIDEST = len("* 1.2345")  # number in a table for a terminal


@dataclass(frozen=True)
class Report:
    """A sweep's results, each row's paired differences to the control by column, and the findings in words.

    `columns` are those that there are values for; `filed` is what else the runs have left.
    """

    results: Results
    columns: tuple[Column, ...]
    differences: dict[int, dict[str, Difference]]  # by the row's place in results.rows
    comparisons: dict[Key, Comparison]
    findings: list[str]
    filed: Filed


def make_report(uri: str, experiment_name: str, sweep: str, sweep_id: str | None = None) -> Report:
    """Reads the sweep's finished trials from MLflow and compares every arm with `per_token`, paired by seed and cell.

    Raises:
        UserError: as `read_results`, which says what `sweep_id` is.
    """
    results = read_results(uri, experiment_name, sweep, sweep_id)
    columns = columns_of(results)
    differences: dict[int, dict[str, Difference]] = {}
    for place, row in enumerate(results.rows):
        control = results.row(CONTROL, row.cell)
        if control is None or control is row:
            continue
        found = {column.key: paired_difference(column.of_row(row), column.of_row(control)) for column in columns}
        differences[place] = {key: difference for key, difference in found.items() if difference is not None}
    words, filed = findings(results), read_filed(uri, results)
    if filed.lost:
        words.append(
            f"The files of {len(filed.lost)} of {results.finished} runs are not where MLflow has put them, so that "
            "figures of them are missing here. A SQLite store expects them in mlflow-artifacts beside it."
        )
    return Report(results, columns, differences, compare(differences), words, filed)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes report.md, report.html, results.json and, if any trial has finished, activation_by_layer.png.

    Returns their paths, report.md first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    if report.results.rows:
        from pipeline.reporting.plots import activation_by_layer  # a second of imports

        figure = folder / "activation_by_layer.png"
        activation_by_layer(_series(report.results)).savefig(figure)
        paths.append(figure)
    from pipeline.reporting.report_html import html

    text, page, data = folder / "report.md", folder / "report.html", folder / "results.json"
    text.write_text(markdown(report, bool(paths)), encoding="utf-8")
    page.write_text(html(report), encoding="utf-8")
    data.write_text(json.dumps(_without_nan(_as_json(report)), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return [text, page, *paths, data]


def print_report(report: Report, console: Console) -> None:
    """For a terminal: for each cell of the grid a table of means, an arm a column; then the findings."""
    results = report.results
    console.print(Text(headline(results)))
    for cell in dict.fromkeys(row.cell for row in results.rows):
        rows = [row for row in results.rows if row.cell == cell]
        title = ", ".join(f"{name} {value}" for name, value in cell)
        table = Table(title=Text(title) if title else None, title_justify="left")
        table.add_column("mean over seeds", no_wrap=True)
        for row in rows:  # a long name is folded, as a row without its title says nothing
            table.add_column(Text(row.arm, overflow="fold"), justify="right", min_width=_WIDEST)
        table.add_row("seeds", *(str(len(row.trials)) for row in rows))
        means = [[_mean(results, row, column, "* {}".format) for row in rows] for column in report.columns]
        for column, cells in zip(report.columns, means, strict=True):
            table.add_row(f"{column.title}, {column.unit}", *map(Text, cells))
        if any(cell.startswith("* ") for cells in means for cell in cells):
            table.caption, table.caption_justify = "* best of its row", "left"
        console.print(table)
    for paragraph in report.findings:
        console.print(Text(paragraph))
        console.print()


def markdown(report: Report, with_figure: bool) -> str:
    """The whole report."""
    results = report.results
    grid = list(results.varying)
    names = ["arm", *grid]
    titles = [f"{column.title} ({column.unit})" for column in report.columns]
    parts = [f"# {escape(results.sweep)}", headline(results)]
    if results.rows:
        means = [
            [*_names(row), str(len(row.trials)), *(_mean(results, row, c, "**{}**".format) for c in report.columns)]
            for row in results.rows
        ]
        seeds = [
            [*_names(row), str(seed), *(column.show(column.of(trial)) for column in report.columns)]
            for row in results.rows
            for seed, trial in sorted(row.trials.items())
        ]
        parts += [*map(escape, report.findings)]
        parts += ["## Means over seeds", _table([*names, "seeds", *titles], means), LEGEND]
        if report.differences:
            differences = [
                [*_names(results.rows[place]), *(_difference(found.get(c.key), c) for c in report.columns)]
                for place, found in report.differences.items()
            ]
            parts += [
                f"## Differences to {CONTROL}, paired by seed",
                "Mean, and the 95 % percentile bootstrap interval of the mean over seeds.",
                _table([*names, *titles], differences),
                escape(note(report.differences, report.comparisons)),
            ]
        if with_figure:
            parts.append("## Activation rate\n\n![Activation rate by layer over steps](activation_by_layer.png)")
        parts += ["## All seeds", _table([*names, "seed", *titles], seeds)]
    else:
        parts += [*map(escape, report.findings)]
    return "\n\n".join(filter(None, parts)) + "\n"


def headline(results: Results) -> str:
    """How many trials the report rests on."""
    text = f"{results.finished} of {results.total} trials finished"
    others = [f"{n} {status}" for status, n in sorted(results.statuses.items()) if status != "FINISHED"]
    text += f" ({', '.join(others)})" if others else ""
    if results.older:
        runs = "run of the same trials is" if results.older == 1 else "runs of the same trials are"
        text += f"; {results.older} older {runs} set aside"
    return text + "."


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no tags, no table cells, no links, no code, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*\[\]])", r"\\\1", text)


LEGEND = (
    "Last value of each run; step time is the median over the run. *active*: part of the experts with a routing weight "
    "above 0, mean over valid tokens and the layer's projections. *judged good* and *selectivity* (mutual information "
    "of expert and token) are means over layers. A bold number is the best of its column and cell, where its arms have "
    "the same seeds."
)


def _names(row: Row) -> list[str]:
    return [escape(row.arm), *(escape(value) for _, value in row.cell)]


def is_best(results: Results, row: Row, column: Column) -> bool:
    """Whether the row's mean is the best among the finite means of its cell, where they differ as shown.

    Means over other seeds are not compared: an arm whose hardest seed failed would look the better for it.
    """
    if column.best is None:
        return False
    values = [column.of_row(other) for other in results.rows if other.cell == row.cell]
    rivals = [each for each in values if math.isfinite(mean(each))]
    means = [mean(each) for each in rivals]
    comparable = len({frozenset(each) for each in rivals}) == 1 and len({column.show(each) for each in means}) > 1
    return comparable and mean(column.of_row(row)) == column.best(means)


def _mean(results: Results, row: Row, column: Column, mark: Callable[[str], str]) -> str:
    """The row's mean, marked if it is the best."""
    shown = column.show(mean(column.of_row(row)))
    return mark(shown) if is_best(results, row, column) else shown


def _difference(found: Difference | None, column: Column) -> str:
    if found is None:
        return "–"
    shown = column.show(found.mean, sign=True)
    if found.interval is None:
        return shown if math.isnan(found.mean) else f"{shown} (1 seed)"
    return f"{shown} \\[{', '.join(column.show(end, sign=True) for end in found.interval)}\\]"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [[*map(escape, head)], ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _series(results: Results) -> dict[str, dict[int, list[tuple[list[int], list[float]]]]]:
    series: dict[str, dict[int, list[tuple[list[int], list[float]]]]] = {}
    for row in results.rows:
        panel = series.setdefault(" · ".join([row.arm, *(f"{n.split('.')[-1]} {v}" for n, v in row.cell)]), {})
        for trial in row.trials.values():
            for layer, curve in trial.activation.items():
                panel.setdefault(layer, []).append(curve)
    return series


def _as_json(report: Report) -> dict[str, Any]:
    results = report.results
    rows = []
    for place, row in enumerate(results.rows):
        found = report.differences.get(place, {})
        columns = {
            column.key: {
                "mean": mean(column.of_row(row)),
                "seeds": column.of_row(row),
                f"minus_{CONTROL}": asdict(found[column.key]) if column.key in found else None,
                "sign_flip_p": tested.p if (tested := report.comparisons.get((place, column.key))) else None,
                "holm_adjusted_p": tested.adjusted if tested else None,
            }
            for column in report.columns
        }
        runs = {seed: trial.run_id for seed, trial in row.trials.items()}
        rows.append({"arm": row.arm, "cell": dict(row.cell), "runs": runs, "columns": columns})
    head = {"sweep": results.sweep, "statuses": results.statuses, "older_runs_set_aside": results.older}
    return {**head, "rows": rows, "findings": report.findings}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
