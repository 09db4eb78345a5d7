"""The study's results beside each other, from MLflow alone: a table and a figure for each question.

    python -m experiments.study.summary                                    of all studies in runs/
    python -m experiments.study.summary --output DIR --file experiments/results/study

`--file` writes NAME.png, and NAME.md with the table and every seed's numbers. The tables are printed, too.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import matplotlib as mpl

from pipeline import measures
from pipeline.colours import arm_colour
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.reporting.figures import STYLE, name_of, new_figure, row_layers
from pipeline.reporting.labels import legend_of_arms
from pipeline.reporting.results import Results, Row, TrialResult, read_results
from pipeline.tracking.destination import EXPERIMENT
from pipeline.tracking.find_runs import recorded_id

HERE = Path(__file__).parent


class Column(NamedTuple):
    """A number of a trial, as the tables and figures show it."""

    title: str
    of: Callable[[TrialResult], float]
    digits: int


def _over_layers(measure: str, scale: float = 1.0) -> Callable[[TrialResult], float]:
    return lambda trial: scale * trial.over_layers(measure)


COLUMNS = (
    Column("held-out loss (nats)", lambda trial: trial.last(measures.HELD_OUT_LOSS), 3),
    Column("judged good (%)", _over_layers(measures.FRACTION_GOOD, 100), 1),
    Column("selectivity (nats)", _over_layers(measures.MUTUAL_INFORMATION), 2),
    Column("effective experts", _over_layers(measures.EFFECTIVE_EXPERTS), 1),
    Column("Goodness ~ contribution", _over_layers(measures.RANK_CORRELATION_CONTRIBUTION), 2),
    Column("~ relevance", _over_layers(measures.RANK_CORRELATION_RELEVANCE), 2),
    Column("~ cost", _over_layers(measures.RANK_CORRELATION_COST), 2),
)
_DOTS = (COLUMNS[0], COLUMNS[2])


def active(trial: TrialResult, layer: int) -> float:
    """Experts active in a layer at the end of training, in %."""
    return 100 * trial.last(measures.by_layer(measures.ACTIVATION_RATE, layer))


def table(results: Results) -> str:
    """A row for each arm and cell of the grid: the mean over seeds, and the smallest and largest."""
    lines = [["arm", "seeds", "active by layer (%)", *(column.title for column in COLUMNS)]]
    for row in results.rows:
        trials = list(row.trials.values())
        layers = " ".join(f"{statistics.fmean(active(t, layer) for t in trials):.0f}" for layer in row_layers(row))
        cells = [_spread([column.of(trial) for trial in trials], column.digits) for column in COLUMNS]
        lines.append([name_of(row), str(len(trials)), layers, *cells])
    return _markdown(lines)


def table_of_seeds(results: Results) -> str:
    """A row for each trial."""
    lines = [["arm", "seed", "active by layer (%)", *(column.title for column in COLUMNS)]]
    for row in results.rows:
        for seed, trial in sorted(row.trials.items()):
            layers = " ".join(f"{active(trial, layer):.1f}" for layer in trial.layers)
            lines.append([name_of(row), str(seed), layers, *(_number(c.of(trial), c.digits) for c in COLUMNS)])
    return _markdown(lines)


def figure(results: Results) -> mpl.figure.Figure:
    """For each cell of the grid: activation by layer, held-out loss and selectivity; the seeds as dots."""
    cells = list(dict.fromkeys(row.cell for row in results.rows))
    with mpl.rc_context(STYLE):
        made = new_figure(9.4, 0.6 + 2.5 * len(cells))
        grid = made.subplots(len(cells), 3, squeeze=False, sharey="col", width_ratios=(2, 1, 1))
        for axes_row, cell in zip(grid, cells, strict=True):
            rows = [row for row in results.rows if row.cell == cell]
            _by_layer(axes_row[0], rows)
            for axes, column in zip(axes_row[1:], _DOTS, strict=True):
                for place, row in enumerate(rows):
                    values = [column.of(trial) for trial in row.trials.values()]
                    axes.scatter([place] * len(values), values, color=arm_colour(row.arm), alpha=0.7, s=24)
                    axes.hlines(statistics.fmean(values), place - 0.3, place + 0.3, color=arm_colour(row.arm), lw=2)
                axes.set_xticks([])
                axes.set_xlim(-0.6, len(rows) - 0.4)
                axes.set_title(column.title, loc="left", fontsize=10)
                axes.grid(alpha=0.25, axis="y")
            if cell:
                axes_row[0].set_ylabel(", ".join(f"{name.split('.')[-1]} {value}" for name, value in cell))
        legend_of_arms(made, (row.arm for row in results.rows))
    return made


def _by_layer(axes: mpl.axes.Axes, rows: list[Row]) -> None:
    for place, row in enumerate(rows):
        layers, shift = row_layers(row), 0.3 * ((place + 0.5) / len(rows) - 0.5)
        means = [statistics.fmean(active(trial, layer) for trial in row.trials.values()) for layer in layers]
        axes.plot([layer + shift for layer in layers], means, color=arm_colour(row.arm), lw=1.4, alpha=0.7)
        for trial in row.trials.values():
            values = [active(trial, layer) for layer in layers]
            axes.scatter([layer + shift for layer in layers], values, color=arm_colour(row.arm), s=14)
    layers = sorted({layer for row in rows for layer in row_layers(row)})
    axes.set_xticks(layers, [f"L{layer}" for layer in layers])
    axes.set_ylim(0, 100)
    axes.set_title("experts active at the end, by layer (%)", loc="left", fontsize=10)
    axes.grid(alpha=0.25, axis="y")


def _spread(values: list[float], digits: int) -> str:
    if any(value != value for value in values):  # not measured: the control has no Goodness
        return "–"
    low, high = (_number(value, digits) for value in (min(values), max(values)))
    return f"{_number(statistics.fmean(values), digits)} ({low} to {high})"


def _number(value: float, digits: int) -> str:
    return "–" if value != value else f"{value:.{digits}f}"


def _markdown(lines: list[list[str]]) -> str:
    head, *rest = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rest))


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option(
    "--file", "folder", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Also write files."
)
def main(output: Path, folder: Path | None) -> None:
    if not (output / "mlflow.db").exists():
        raise click.ClickException(f"--output {output}: holds no mlflow.db; run `make study` first")
    for path in sorted(HERE.glob("*.yaml")):
        sweep = f"study-{path.stem}"
        try:
            place = Output(output)
            wanted = recorded_id(place, place.tracking_uri, sweep)
            results = read_results(place.tracking_uri, EXPERIMENT, sweep, wanted)
        except UserError as error:
            click.echo(f"{sweep}: {error}\n", err=True)
            continue
        question = results.about.get("question", "")
        click.echo(f"## {sweep}: {results.finished} of {results.total} trials\n\n{question}\n\n{table(results)}\n")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            figure(results).savefig(folder / f"{path.stem}.png", dpi=110)
            about = "\n\n".join(f"*{name.replace('_', ' ')}*: {text}" for name, text in results.about.items())
            parts = [f"# {sweep}", about, table(results), "## All seeds", table_of_seeds(results), ""]
            (folder / f"{path.stem}.md").write_text("\n\n".join(parts))


if __name__ == "__main__":
    main()
