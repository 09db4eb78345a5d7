"""A report as files: the page, Markdown, figures, and the results as data."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from pipeline.files import write_whole, write_whole_with
from pipeline.reporting import tables
from pipeline.reporting.artifacts import PHASES_FILE
from pipeline.reporting.best_samples import reruns
from pipeline.reporting.comparisons import OVER_BASELINES, note
from pipeline.reporting.data_used import parse_data, scores_of
from pipeline.reporting.frames import results_frame
from pipeline.reporting.renderings import escape, latex_table, markdown_table, terminal_table
from pipeline.reporting.report import Report, headline
from pipeline.reporting.results import Results
from pipeline.settings.config import Experiment

FORGETTING_FIGURE = "forgetting.png"
_DPI = 150


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes report.md, report.html, results.json, and of finished trials also the figures and the results as data.

    The figures are activation_by_layer.png, loss_over_density.png and, where tasks came in sequence, forgetting.png;
    the data results.csv and results.parquet with a row a trial, and results.tex, the table of means for \\input. Where
    it is known where the wall time went, phases.png and phases.json, too. Returns their paths, report.md first.
    """
    from pipeline.reporting.page import html  # jinja2 and matplotlib: a second of imports

    folder.mkdir(parents=True, exist_ok=True)
    figures = _write_figures(report.results, folder)
    text, page, data = folder / "report.md", folder / "report.html", folder / "results.json"
    write_whole(text, markdown(report, [path.name for path in figures]))
    write_whole(page, html(report))
    again = _write_best_samples(report, folder)
    write_whole(data, json.dumps(_without_nan(_as_json(report)), indent=1, allow_nan=False) + "\n")
    times = _write_phases(report, folder)
    return [text, page, *figures, data, *again, *times, *(_write_data(report, folder) if report.results.rows else [])]


def print_report(report: Report, console: Console, in_short: bool = False) -> None:
    """For a terminal: one table of means, a row for each arm and cell of the grid; then, unless `in_short`, the
    findings."""
    console.print(Text(headline(report.results)))
    if report.results.rows:
        table = tables.means(report)
        shown, left = terminal_table(table, console.width)
        console.print(shown)
        marked = any(cell.best for row in table.rows for cell in row)
        remarks = ["* best of its column and cell in every seed"] * marked
        remarks += [f"{left} more columns: report.md, results.csv"] * bool(left)
        if remarks:
            console.print(Text("; ".join(remarks) + "\n"))
    for paragraph in [] if in_short else report.findings:
        console.print(Text(paragraph))
        console.print()


def markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The whole report; `figures` are the files beside it."""
    results = report.results
    parts = [f"# {escape(results.sweep)}", headline(results), *map(escape, report.findings)]
    if results.rows:
        if (equal := tables.equal_density(report)) is not None or "loss_over_density.png" in figures:
            parts.append("## At equal density")
            if "loss_over_density.png" in figures:
                parts.append("![Held-out loss against active experts](loss_over_density.png)")
            parts.append(markdown_table(equal) if equal else "")
        parts += ["## Means over seeds", markdown_table(tables.means(report)), tables.LEGEND]
        if (samples := tables.samples(report)) is not None and samples.rows:
            again = f"To run them again with fresh seeds: `tiny-onn ablate {best_samples_name(report)}`."
            parts += ["## Best samples", markdown_table(samples), again if best_samples_name(report) else ""]
        if report.to_reference:
            parts += [
                f"## Differences to {escape(report.reference)}, paired by seed",
                "Mean, and the 95 % percentile bootstrap interval of the mean over seeds.",
                markdown_table(tables.differences(report)),
                escape(note(report.differences, report.comparisons, report.reference)),
            ]
        if FORGETTING_FIGURE in figures:
            parts.append(f"## Forgetting\n\n![Loss on earlier tasks over steps]({FORGETTING_FIGURE})")
        if "activation_by_layer.png" in figures:
            parts.append("## Activation rate\n\n![Activation rate by layer over steps](activation_by_layer.png)")
        if (timed := report.filed.phases) is not None:
            from pipeline.reporting.phases import WORDS, phases_sentence, phases_table

            sentence = f"{phases_sentence(timed)} {WORDS}"
            parts += ["## Where the wall time went", sentence, markdown_table(phases_table(timed))]
        parts += ["## All seeds", markdown_table(tables.seeds(report))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _write_figures(results: Results, folder: Path) -> list[Path]:
    from pipeline.reporting.forgetting_figure import forgetting
    from pipeline.reporting.frontier_figure import loss_over_density
    from pipeline.reporting.plots import activation_by_layer

    if not results.rows:
        return []
    paths = [folder / "activation_by_layer.png"]
    activation = activation_by_layer(_series(results))
    write_whole_with(paths[0], lambda file: activation.savefig(file, format="png"))
    if (figure := forgetting(results)) is not None:
        paths.append(folder / FORGETTING_FIGURE)
        write_whole_with(paths[-1], partial(figure.savefig, format="png", dpi=_DPI))
    if (figure := loss_over_density(results)) is not None:
        paths.append(folder / "loss_over_density.png")
        write_whole_with(paths[-1], partial(figure.savefig, format="png", dpi=_DPI))
    return paths


def _write_phases(report: Report, folder: Path) -> list[Path]:
    """The Gantt chart of the sweep's last command, where it is known. Its numbers stand in phases.json, which the
    command has written in the sweep's folder, and which is filed too."""
    from pipeline.reporting.phases import PHASES_FIGURE, gantt

    if report.filed.phases is None:
        return []
    chart, numbers = folder / PHASES_FIGURE, folder.parent / PHASES_FILE
    figure = gantt(report.filed.phases)
    write_whole_with(chart, lambda file: figure.savefig(file, format="png", dpi=_DPI))
    return [chart, *([numbers] if numbers.exists() else [])]


def _write_data(report: Report, folder: Path) -> list[Path]:
    frame = results_frame(report.results)
    csv, parquet, tex = (folder / f"results.{end}" for end in ("csv", "parquet", "tex"))
    write_whole(csv, frame.to_csv(index=False))
    write_whole_with(parquet, lambda file: file.write(frame.to_parquet(index=False)))
    caption = f"{report.results.sweep}: means over seeds."
    write_whole(tex, latex_table(tables.means(report), caption, f"tab:{report.results.sweep}"))
    return [csv, parquet, tex]


def best_samples_files(report: Report) -> dict[str, Experiment]:
    """By file name, the sweeps that run a search's best samples again."""
    return reruns(report.samples, report.filed.sweep) if report.filed.sweep else {}


def best_samples_name(report: Report) -> str:
    """The first of `best_samples_files`; "" without one."""
    return next(iter(best_samples_files(report)), "")


def _write_best_samples(report: Report, folder: Path) -> list[Path]:
    paths = []
    for name, experiment in best_samples_files(report).items():
        values = experiment.model_dump(mode="json", exclude={"scales", "study"})
        paths.append(folder / name)
        head = f"# {experiment.description}\n#   tiny-onn ablate {paths[-1]}\n"
        write_whole(paths[-1], head + yaml.safe_dump(values, sort_keys=False))
    return paths


def _series(results: Results) -> dict[str, dict[int, list[tuple[list[int], list[float]]]]]:
    from pipeline.reporting.figures import MOST_ROWS

    series: dict[str, dict[int, list[tuple[list[int], list[float]]]]] = {}
    for row in results.rows[:MOST_ROWS]:
        panel = series.setdefault(" · ".join([row.arm, *(f"{n.split('.')[-1]} {v}" for n, v in row.cell)]), {})
        for trial in row.trials.values():
            for layer, curve in trial.activation.items():
                panel.setdefault(layer, []).append(curve)
    return series


def _as_json(report: Report) -> dict[str, Any]:
    results = report.results
    rows = []
    for place, row in enumerate(results.rows):
        effects = report.differences.get(place, {})
        columns = {}
        for column in report.columns:
            tested = report.comparisons.get((place, column.key))
            columns[column.key] = {
                "mean": column.mean(row),
                "seeds": column.of_row(row),
                "minus_reference": asdict(effects[column.key]) if column.key in effects else None,
                "sign_flip_p": tested.p if tested else None,
                "holm_adjusted_p": tested.adjusted if tested else None,
            }
        over, tested = effects.get(OVER_BASELINES), report.comparisons.get((place, OVER_BASELINES))
        rows.append(
            {
                "arm": row.arm,
                "cell": dict(row.cell),
                "runs": {seed: trial.run_id for seed, trial in row.trials.items()},
                "columns": columns,
                "scores": scores_of(results, place),
                "over_baselines": asdict(over) if over else None,
                "over_baselines_sign_flip_p": tested.p if tested else None,
                "over_baselines_holm_adjusted_p": tested.adjusted if tested else None,
            }
        )
    head = {"sweep": results.sweep, "statuses": results.statuses, "older_runs_set_aside": results.older}
    primary = {"primary": asdict(report.primary) if report.primary else None, "reference": report.reference}
    data = [parse_data(name, profile) for name, profile in results.data]
    return {**head, **primary, "data": data, "rows": rows, "findings": report.findings}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
