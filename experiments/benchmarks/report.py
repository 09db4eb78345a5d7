"""How a benchmark tells what it found: a table on the terminal, a table and a plot and the numbers in a folder."""

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Result:
    """What a question's answer consists of. `series` by line and then by place on the x axis, which `places` names;
    `figure` is drawn in place of their plot."""

    question: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    plot_label: str
    places: str
    series: dict[str, dict[str, float]]
    data: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    figure: "Figure | None" = None


class Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: Any = None

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, what: str, steps: int) -> None:
        """A new bar of so many steps."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(what, total=steps, doing="")

    def step(self, doing: str) -> None:
        """One step on; what is done now."""
        if self._task is not None:
            self._bars.update(self._task, advance=1, doing=doing)


def publish(result: Result, folder: Path, as_json: bool) -> None:
    """Prints the table, files table, plot and numbers in `folder`, and prints the numbers last where asked."""
    console = Console(stderr=as_json)
    table = Table(title=result.title)
    for column in result.columns:
        words = column in ("variant", "method", "what")
        table.add_column(column, justify="left" if words else "right", no_wrap=words)
    for row in result.rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for note in result.notes:
        console.print(escape(note))
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"question": result.question, "environment": environment(result.data.get("device", "cpu")), **result.data}
    (folder / f"{result.question}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    (folder / f"{result.question}.md").write_text(_markdown(result))
    _plot(result, folder / f"{result.question}.png")
    console.print(f"Filed in {folder}: {result.question}.md, .png, .json")
    if as_json:
        print(json.dumps(numbers))


def environment(device: str) -> dict[str, str]:
    """What the numbers depend on; the GPU's name where `device` is one."""
    facts = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()}
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def milliseconds(seconds: float) -> str:
    """For a table."""
    return f"{seconds * 1e3:.1f}"


def mebibytes(size: float) -> str:
    """For a table."""
    return f"{size / 2**20:.0f}"


def _markdown(result: Result) -> str:
    lines = [f"**{result.title}**", "", "| " + " | ".join(result.columns) + " |", "|" + " --- |" * len(result.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in result.rows]
    return "\n".join([*lines, "", *(f"{note}\n" for note in result.notes)])


def _plot(result: Result, path: Path) -> None:
    if result.figure is not None:
        result.figure.savefig(path, dpi=140)
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    places = list(dict.fromkeys(place for line in result.series.values() for place in line))
    if len(places) == 1:  # nothing to draw a line through
        values = {name: line[places[0]] for name, line in reversed(result.series.items())}
        bars = axes.barh(list(values), list(values.values()))
        axes.bar_label(bars, [f"{value:.3g}" for value in values.values()], padding=3, fontsize=8)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.margins(x=0.12)
        axes.set_xlabel(f"{result.plot_label}; {result.places}: {places[0]}")
    else:
        for number, (name, line) in enumerate(result.series.items()):
            for label, part in zip([name, *[None] * len(line)], _by_width(line), strict=False):
                where, heights = [places.index(place) for place in part], [line[place] for place in part]
                axes.plot(where, heights, marker="o", color=f"C{number}", label=label)
        axes.set_xticks(range(len(places)), places)
        axes.set_xlabel(result.places)
        axes.set_ylabel(result.plot_label)
        if result.series:
            axes.set_yscale("log")
            _plain_numbers(axes.yaxis)
            figure.legend(fontsize=8, frameon=False, loc="outside right center")
    figure.suptitle(result.title, fontsize=9)  # over the legend too: it is wider than the axes
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _by_width(places: Iterable[str]) -> list[list[str]]:
    """Places of one width together, `64 / 256` with `64 / 1024`: no line leads from one width to the next."""
    widths: dict[str, list[str]] = {}
    for place in places:
        widths.setdefault(place.partition(" / ")[0] if " / " in place else "", []).append(place)
    alone = all(len(each) == 1 for each in widths.values())
    return [list(places)] if alone else list(widths.values())


def _plain_numbers(axis: Any) -> None:
    """1, 2, 5, 10, 20 along a logarithmic axis, and not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
