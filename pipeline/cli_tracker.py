"""The commands that read what a tracker has: `tiny-onn ui`, `server`, `sync` and `predict`."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UserError
from pipeline.options import EXPERIMENT, OUTPUT, URI


@click.command(short_help="Serve MLflow's page on this machine, and print links into it.")
@OUTPUT
@URI
@EXPERIMENT
@click.option("--port", type=click.IntRange(1, 65535), default=None, help="Port to listen on. Default: a free one.")
def ui(output: Path, tracking_uri: str | None, mlflow_experiment: str, port: int | None) -> None:
    """Serve MLflow's page on this machine and print links that open it as a leaderboard of arms.

    \b
    Examples:
      tiny-onn ui
      tiny-onn ui --output /tmp/try --port 5005
    """
    from pipeline.api import local_store
    from pipeline.layout import Output
    from pipeline.tracking.moved import correct_paths
    from pipeline.tracking.serve import serve
    from pipeline.tracking.store import sqlite_file

    uri = tracking_uri or local_store(output, "a sweep")
    if database := sqlite_file(uri):
        with suppress(OSError):  # who may only read sees the page, though not the files of a store that was moved
            correct_paths(database)
    serve(uri, mlflow_experiment, Output(output).artifacts, port)


@click.command(short_help="Run an MLflow server for many machines.")
@OUTPUT
@click.option(
    "--backend-uri",
    default=None,
    metavar="URI",
    envvar="MLFLOW_BACKEND_STORE_URI",
    show_envvar=True,  # where a password is better kept than on a command line
    help="The database of runs, for example postgresql://user@host/mlflow. Default: a SQLite file in --output.",
)
@click.option(
    "--artifacts",
    default=None,
    metavar="URI",
    help="Where uploaded files are kept, for example s3://bucket/mlflow. Default: --output.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all addresses.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port to listen on.")
@click.option(
    "--allowed-hosts",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A host name that clients may use, NAME or NAME:PORT, beside localhost and the address of --host; no "
    "wildcards. May be repeated.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Number of server processes.")
def server(
    output: Path,
    backend_uri: str | None,
    artifacts: str | None,
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    workers: int,
) -> None:
    """Run an MLflow server for many machines. It stores runs in a database, and clients upload files through it.

    The server has no password, so by default it listens on this machine only: keep its port inside your network.

    \b
    Examples:
      tiny-onn server
      tiny-onn server --host 10.0.0.5 --allowed-hosts mlflow.cluster.local
      tiny-onn server --backend-uri postgresql://tiny:PASSWORD@db/mlflow --artifacts s3://bucket/mlflow
    """
    from pipeline.errors import UserError
    from pipeline.layout import Output, sqlite_uri
    from pipeline.tracking.serve import serve_all

    place = Output(output).server
    try:
        if backend_uri is None or artifacts is None:
            place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be used ({error.strerror}). Expected a folder that can be written to."
        ) from error
    uri = backend_uri or sqlite_uri(place / "mlflow.db")
    serve_all(uri, artifacts or str((place / "artifacts").resolve()), host, port, allowed_hosts, workers)


@click.command(short_help="Deliver to MLflow everything that it lacks.")
@click.argument("sweep", required=False)
@OUTPUT
@click.option(
    "--tracking-uri",
    default=None,
    metavar="URI",
    help="MLflow's store. Default: the sweep's own. Another store gets a complete copy.",
)
@click.option("--experiment", "mlflow_experiment", default=None, help="MLflow experiment. Default: the sweep's own.")
def sync(sweep: str | None, output: Path, tracking_uri: str | None, mlflow_experiment: str | None) -> None:
    """Deliver to MLflow everything that it lacks of SWEEP, or of all sweeps in the output folder.

    Use it after the tracker was unreachable or a command was killed. It sends the metrics, figures and files that are
    still on disk, sets each run's final status, and uploads the report. It can be repeated safely.

    \b
    Examples:
      tiny-onn sync
      tiny-onn sync ablation --output /tmp/try
      tiny-onn sync ablation --tracking-uri http://host:5000      copy a sweep to another server
    """
    from pipeline.layout import Output
    from pipeline.run import file_report
    from pipeline.tracking.sync import sync_and_print

    def report(uri: str, experiment: str, name: str) -> list[Path]:
        return file_report(uri, experiment, name, output)[1]

    sys.exit(sync_and_print(Output(output), sweep, tracking_uri, mlflow_experiment, report))


@click.command(short_help="Answer what is in FILE with the model of RUN.")
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--submission",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Write the answers to this file, as JSON. Of ARC it is what Kaggle's competitions take. Default: print them.",
)
@click.option(
    "--step",
    default="last",
    show_default=True,
    metavar="STEP",
    help="Which model of the run: last, best (the lowest held-out loss of its checkpoints), or a step that was saved.",
)
@click.option("--own-code", is_flag=True, help="Import the code that the model names, such as model.build, and run it.")
@OUTPUT
@URI
def predict(
    run: str, file: Path, submission: Path | None, step: str, own_code: bool, output: Path, tracking_uri: str | None
) -> None:
    """Answer what is in FILE with the model of RUN.

    RUN is the id of a finished run, which `train` prints and a report's results.json contains, or the folder of a trial
    or a model. What FILE has to be depends on the task that the model was trained on:

    \b
      arc   tasks in any format that data.folder accepts, including Kaggle's *_test_challenges.json. Answers in it are
            ignored. Several views of each task vote on two attempts for each test pair.
      text  UTF-8 text; each line is a prompt, which the model continues.
      yours what the `answer` of your own task reads; without it the command is refused. It needs --own-code.

    \b
    Examples:
      tiny-onn predict 0123abcd0123abcd0123abcd0123abcd test_challenges.json --submission submission.json
      tiny-onn predict runs/sweeps/ablation/trials/per_token-s0 my_task.json --step best
      tiny-onn predict runs/sweeps/text/trials/per_token-s0 prompts.txt
    """
    import json

    from pipeline import api

    if step not in ("last", "best") and not step.isdecimal():
        raise UserError(f"--step: found {step!r}; expected last, best or the number of a step")
    wanted: Any = int(step) if step.isdecimal() else step
    answers = api.predict(run, file, submission, output, tracking_uri=tracking_uri, step=wanted, own_code=own_code)
    if submission is None:
        click.echo(json.dumps(answers.values))
    click.echo(f"{answers.summary}{f'. Written: {submission}' if submission else ''}", err=True)


COMMANDS = (ui, server, sync, predict)
