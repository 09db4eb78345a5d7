"""Makes a forecast: the checks of a run, the counts, and a few steps of each kind of trial."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from pipeline.data.preparing import prepare_and_report
from pipeline.layout import Output
from pipeline.planning import forecast as forecasting
from pipeline.planning import memory as memories
from pipeline.planning.calibration import timed
from pipeline.planning.forecast import Forecast, Kind
from pipeline.planning.forecast_view import print_forecast
from pipeline.planning.preflight import check_data, check_metrics, check_start
from pipeline.records.continued import is_left
from pipeline.running.claim import check_claim
from pipeline.running.cluster import connect, local_resources
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial, arms_setting
from pipeline.storage.storage import location


def forecast(
    experiment: Experiment,
    trials: Sequence[Trial],
    output: Path,
    address: str | None,
    calibrate: bool,
    console: Console | None,
    show: bool,
) -> Forecast:
    """What those of `trials` that have not ended would take; see `pipeline.api.plan`.

    Raises:
        UserError: `ablate` would refuse it, or the cluster cannot hold it; names the field, or what there is too little
            of.
    """
    where, console = Output(output), console or Console()
    folders = {trial.key: where.trial(experiment.name, trial.key) for trial in trials}
    left = [trial for trial in trials if is_left(folders[trial.key], trial.experiment.training.steps)]
    check_metrics(experiment)
    for warning in check_start(left, where.root, address, arms_setting(experiment)):
        console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
    nodes: tuple[Any, ...] = (local_resources(),)
    memory, whose = memories.machine_memory(), "this machine"
    if address is not None:
        with connect(address) as cluster:
            nodes, memory, whose = cluster.nodes, memories.cluster_memory(), "the cluster"
    sweep = experiment.sweep
    together = forecasting.at_once(left, nodes, sweep.max_concurrent if sweep else None)
    prepared = prepare_and_report(experiment.data, where.data, console if show else Console(quiet=True))
    added = check_claim(where.sweep(experiment.name), experiment, prepared.manifest.data_hash)
    if added:
        message = f"{experiment.name} has been started before; it would grow by {'; '.join(added)}."
        console.print(message, highlight=False, markup=False, soft_wrap=True)
    check_data(left, prepared)
    kinds = forecasting.kinds_of(left, prepared)
    if calibrate and kinds:
        kinds = _timed(kinds, Path(location(prepared.folder)), together, address is None, console)
        memories.check_memory(kinds, together, memory, whose)
    estimate = forecasting.Forecast(
        name=experiment.name,
        kinds=kinds,
        order=tuple(trial.key for trial in left),
        ended=len(trials) - len(left),
        at_once=together,
        nodes=nodes,
        free_disk_bytes=forecasting.free_disk(where.root),
        prunes=bool(sweep and sweep.scheduler),
    )
    if show:
        print_forecast(estimate, console, "on this machine" + ("" if address is None else ", not on the cluster"))
    return estimate


def _timed(kinds: tuple[Kind, ...], data: Path, at_once: int, here: bool, console: Console) -> tuple[Kind, ...]:
    """Times as many side by side as would run at once; one, where that is elsewhere, or on GPUs, which share little."""
    alone = not here or any(kind.example.workers.gpus for kind in kinds)
    wanted = 1 if alone else at_once * max(kind.example.workers.count for kind in kinds)
    side_by_side = min(wanted, math.ceil(local_resources().cpus))
    with Progress(console=console, transient=True, disable=console.is_jupyter) as progress:
        bar = progress.add_task("Timing a few steps of each kind", total=None)
        return timed(kinds, data, side_by_side, lambda done, total: progress.update(bar, completed=done, total=total))
