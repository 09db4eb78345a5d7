"""The part of `pipeline.api` that reads results from MLflow and reports them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.tracking.destination import EXPERIMENT

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

    from pipeline.reporting.report import Report
    from pipeline.reporting.results import Results


def report(
    sweep: str,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    mlflow_experiment: str = EXPERIMENT,
    console: "Console | None" = None,
    file: bool = True,
    sweep_id: str | None = None,
) -> "Report":
    """Makes the report of a sweep from MLflow alone, prints it, and writes it to the output folder.

    Args:
        file: also files it on the sweep's summary run in MLflow, in the place of an older one.
        sweep: its name; or its id, or NAME@ID, where others have the name. An id's first digits will do.
        sweep_id: of several sweeps of that name, which ("none": that whose runs have no id). By default the one whose
            record lies in the output folder, or beside the store; without a record, the only one that there is.

    Raises:
        UserError: the store cannot be used, has no trial of the sweep, or has several sweeps of that name or id.
    """
    from pipeline.run import file_report

    uri, sweep, wanted = _find_sweep(sweep, output, tracking_uri, mlflow_experiment, sweep_id)
    made, paths = file_report(uri, mlflow_experiment, sweep, Path(output), console, wanted)
    if file:
        from pipeline.tracking.file_report import file_report_on_summary
        from pipeline.tracking.moved import correct_paths
        from pipeline.tracking.store import sqlite_file

        if database := sqlite_file(uri):
            correct_paths(database)
        file_report_on_summary(uri, mlflow_experiment, sweep, paths, wanted)
    return made


def results(
    sweep: str,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    mlflow_experiment: str = EXPERIMENT,
    sweep_id: str | None = None,
) -> "DataFrame":
    """The results of a sweep as a data frame, a row for each finished trial; runs and writes nothing.

    Its columns are arm, seed, what else varies by its dotted name, the report's numbers in the units of the metrics
    (rates from 0 to 1, seconds, nats; NaN was not measured) and run_id. `results.csv` of the report holds the same.

    Args:
        sweep_id: as in `report`.

    Raises:
        UserError: as `report`.
    """
    from pipeline.reporting.frames import results_frame

    return results_frame(_read_results(sweep, output, tracking_uri, mlflow_experiment, sweep_id))


def compare(
    first: str,
    second: str,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    mlflow_experiment: str = EXPERIMENT,
    console: "Console | None" = None,
) -> "DataFrame":
    """Compares two sweeps seed by seed, as yesterday's code and today's: prints and writes `second` less `first`.

    Args:
        first, second: a sweep's name; or its id, or NAME@ID, where both have one name. An id's first digits will do.

    Returns:
        A row for each pair of trials: arm, what varies, seed, and of every column KEY_first, KEY_second and
        KEY_difference. The same is written as less-FIRST.csv, with a table of means, to the second's report folder.

    Raises:
        UserError: as `report`, or the folder cannot be written to.
    """
    from rich.console import Console as Screen

    from pipeline.reporting import two_sweeps
    from pipeline.reporting.results import read_results
    from pipeline.tracking.find_runs import WITHOUT_ID

    meant = [_find_sweep(word, output, tracking_uri, mlflow_experiment, None) for word in (first, second)]
    if meant[0] == meant[1]:
        raise UserError(
            f"report: {first} and {second} are the same sweep; expected two. Of several of one name, say which by "
            "NAME@ID."
        )
    read = [read_results(uri, mlflow_experiment, name, known) for uri, name, known in meant]
    if meant[0][1] == meant[1][1]:
        read = [
            dataclasses.replace(each, sweep=f"{name}@{(known or WITHOUT_ID)[:8]}")
            for each, (_, name, known) in zip(read, meant, strict=True)
        ]
    comparison = two_sweeps.compare_sweeps(*read)
    console, folder = console or Screen(), Output(Path(output)).sweep(meant[1][1]) / "report"
    two_sweeps.print_comparison(comparison, console)
    try:
        paths = two_sweeps.write_comparison(comparison, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: the comparison cannot be written ({error.strerror}). Expected a folder that can be written "
            "to; name another with --output, and the store with --tracking-uri."
        ) from error
    console.print("\n".join(f"Written: {path}" for path in paths), highlight=False, soft_wrap=True)
    return two_sweeps.frame(comparison)


def local_store(output: Path, sweep: str) -> str:
    """The MLflow store in an output folder.

    Raises:
        UserError: there is none.
    """
    if not (output / "mlflow.db").exists():
        raise UserError(
            f"--output {output}: holds no mlflow.db. Run {sweep} there first (tiny-onn ablate ... --output {output}), "
            "or name a store with --tracking-uri."
        )
    return Output(output).tracking_uri


def _read_results(
    sweep: str, output: str | Path, tracking_uri: str | None, mlflow_experiment: str, sweep_id: str | None
) -> "Results":
    from pipeline.reporting.results import read_results

    uri, sweep, wanted = _find_sweep(sweep, output, tracking_uri, mlflow_experiment, sweep_id)
    return read_results(uri, mlflow_experiment, sweep, wanted)


def _find_sweep(
    sweep: str, output: str | Path, tracking_uri: str | None, mlflow_experiment: str, sweep_id: str | None
) -> tuple[str, str, str | None]:
    """The store that a sweep is in, its name, and its id there, where one is named or recorded."""
    from pipeline.settings.config import check_name
    from pipeline.tracking.find_runs import find_sweep, recorded_id

    check_name(sweep.partition("@")[0], "SWEEP")
    uri = tracking_uri or local_store(Path(output), sweep)
    name, known = find_sweep(uri, mlflow_experiment, sweep, sweep_id)
    return uri, name, recorded_id(Output(Path(output)), uri, name) if known is None else known
