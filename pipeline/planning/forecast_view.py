"""A forecast for a terminal: a table of what would run, and what it would take, in a few lines."""

import datetime
import math
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.planning.forecast import ALIKE, SWEEP_START_S, TRIAL_START_S, Forecast, Kind
from pipeline.planning.memory import HELPERS_BYTES
from pipeline.running.live import clock, duration

_BUSY = 0.8  # a smaller share of the time asked for is worth a word


def print_forecast(forecast: Forecast, console: Console, where: str) -> None:
    """The table of the trials, those alike in one row, and below it the sums. `where`: whose times they are."""
    if not forecast.trials:
        ended = f"all {forecast.ended} trials have" if forecast.ended != 1 else "its one trial has"
        console.print(Text(f"{forecast.name}: {ended} ended; nothing would run."))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("arm", "model"):
        table.add_column(heading, no_wrap=True)
    for heading in ("trials", "steps", "epochs", "tokens/step", "memory", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, apart in zip(forecast.kinds, differing_settings(forecast.kinds), strict=True):
        arm, *others = _row(kind)
        table.add_row(Text("\n  ".join([arm, *apart])), *others)
    console.print(table)
    for line in summary(forecast, where):
        console.print(Text(line), soft_wrap=True)


def summary(forecast: Forecast, where: str) -> list[str]:
    """How many trials and how many of them at once, tokens, memory, disk, time and when it would end."""
    done = f", {forecast.ended} have ended before" if forecast.ended else ""
    cpus, gpus = sum(n.cpus for n in forecast.nodes), sum(n.gpus for n in forecast.nodes)
    machines = f"{len(forecast.nodes)} machine{'s' * (len(forecast.nodes) > 1)}"
    gpu_text = f" and {gpus:g} GPUs" if gpus else ""
    lines = [
        f"{forecast.name}: {forecast.trials} trial{'s' * (forecast.trials != 1)} to run{done}; {forecast.at_once} at "
        f"once on {machines} with {cpus:g} CPUs{gpu_text}",
        _workers(forecast.kinds),
        _models(forecast.kinds),
        f"Tokens: {number(forecast.tokens)} in all, padding included",
    ]
    memory = [
        forecast.at_once * (kind.worker_bytes * kind.example.workers.count + HELPERS_BYTES)
        for kind in forecast.kinds
        if kind.worker_bytes is not None and not kind.example.workers.gpus
    ]
    if memory:
        lines.append(
            f"Memory: {size(max(memory))} for all that run at once, Ray's own processes of each trial included"
        )
    lines.append(f"Disk: at most {size(forecast.disk_bytes)}; {size(forecast.free_disk_bytes)} are free")
    seconds = forecast.seconds
    if seconds is None:
        return [*lines, "Time: not estimated (without calibration)"]
    ends = datetime.datetime.now().astimezone() + datetime.timedelta(seconds=seconds)
    most = "at most " if forecast.prunes else "about "
    share = min(kind.measured.core_share for kind in forecast.kinds if kind.measured)
    busy = []
    if share < _BUSY and forecast.alone_seconds is not None:
        busy.append(
            f"Other work was running: the workers got {100 * share:.0f} % of the CPU time that they asked for. On an "
            f"idle machine it would take about {duration(forecast.alone_seconds)}"
        )
    return [
        *lines,
        f"Time: {most}{duration(seconds)}, until {clock(ends)}, from steps that were timed {where}. It "
        f"includes {TRIAL_START_S:.0f} s per trial to start its workers and {SWEEP_START_S:.0f} s for Ray and the "
        "report, as measured before on two cores" + ("; pruned trials shorten it" if forecast.prunes else ""),
        *busy,
    ]


def differing_settings(kinds: Sequence[Kind]) -> list[list[str]]:
    """For each kind the settings, as `precision float64`, in which it differs from another that its row looks like."""
    looks: dict[tuple[str, ...], list[int]] = {}
    for place, kind in enumerate(kinds):
        model, training = kind.example.model, kind.example.training
        looks.setdefault((training.arm, str(model.layers), str(model.hidden), str(training.steps)), []).append(place)
    differences: list[list[str]] = [[] for _ in kinds]
    for places in looks.values():
        settings = [_settings(kinds[place]) for place in places]
        differing = [name for name in settings[0] if len({str(each[name]) for each in settings}) > 1]
        for place, each in zip(places, settings, strict=True):
            differences[place] = [f"{name} {each[name]}" for name in differing if name not in ALIKE]
    return differences


def _settings(kind: Kind) -> dict[str, object]:
    groups = (kind.example.model, kind.example.training, kind.example.workers)
    return {name: value for group in groups for name, value in group.model_dump().items()}


def number(value: float) -> str:
    """`950`, `3.7 million`."""
    for factor, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if value >= factor:
            return f"{value / factor:.3g}{word}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """`512 MB`, `3.7 GB`."""
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{math.ceil(value / 1e6)} MB"


def _row(kind: Kind) -> list[str]:
    model, training = kind.example.model, kind.example.training
    return [
        training.arm,
        f"{model.layers} x {model.hidden}",
        str(len(kind.trials)),
        str(training.steps),
        f"{kind.epochs:.2g}",
        f"{kind.tokens_per_step:,.0f}",
        "–" if kind.worker_bytes is None else size(kind.worker_bytes),
        "–" if kind.seconds is None else duration(kind.seconds),
    ]


def _models(kinds: Sequence[Kind]) -> str:
    counts = sorted({kind.parameters for kind in kinds})
    states = sorted({kind.state_bytes for kind in kinds})
    text = (
        f"Model: {_range(counts, number)} parameters; {_range(states, size)} with gradients and the optimizer's state"
    )
    measured = [kind.worker_bytes for kind in kinds if kind.worker_bytes is not None]
    return text + (f"; a worker takes {_range(sorted(measured), size)} in all, as measured" if measured else "")


def _workers(kinds: Sequence[Kind]) -> str:
    each = {
        f"{w.count} worker{'s' * (w.count > 1)} of {w.cpus:g} CPU" + (f" and {w.gpus:g} GPU" if w.gpus else "")
        for w in (kind.example.workers for kind in kinds)
    }
    return f"Each trial has {' or '.join(sorted(each))}"


def _range(values: Sequence[float], show: Callable[[float], str]) -> str:
    low, high = show(values[0]), show(values[-1])
    return low if low == high else f"{low} to {high}"
