"""The commands `tiny-onn submit` and `tiny-onn jobs`."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.options import CommandWithOldNames

_ADDRESS = click.option(
    "--address",
    required=True,
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    metavar="URL",
    help="Address of Ray's job server on the cluster's head, for example http://10.0.0.5:8265.",
)
_NAME = click.argument("name")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON array on stdout, one element per job.")
_UNTRACKED = click.option(
    "--untracked",
    multiple=True,
    metavar="CODE",
    help="Also send files that git does not track: those in the list printed with this CODE. May be repeated.",
)


@click.command(cls=CommandWithOldNames, short_help="Run CONFIG on a Ray cluster, and follow its log.")
@click.argument("config", type=click.Path(path_type=Path))
@_ADDRESS
@click.option("--name", default=None, help="The job's and the experiment's name; short for --set name=NAME.")
@click.option("--scale", default=None, metavar="NAME", help="One of CONFIG's `scales`.")
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Replace a setting. May be repeated.")
@click.option(
    "--output",
    default=None,
    metavar="DIR",
    help="Absolute path of a folder that all nodes see. Default: the head's TINY_ONN_OUTPUT.",
)
@click.option(
    "--storage",
    default=None,
    metavar="URI",
    help="A shared storage, for example s3://bucket/runs. Default: the head's TINY_ONN_STORAGE.",
)
@click.option(
    "--tracking-uri",
    default=None,
    metavar="URI",
    help="MLflow's address as seen from the head. Default: the head's TINY_ONN_TRACKING_URI.",
)
@click.option("--experiment", "mlflow_experiment", default="tiny-onn", show_default=True, help="MLflow experiment.")
@click.option("--resume", is_flag=True, help="Continue the sweep of this name.")
@click.option(
    "--allow-offline-tracking",
    is_flag=True,
    help="Start even if the tracker is unreachable; everything is delivered to it later.",
)
@click.option(
    "--accept-changed-code",
    is_flag=True,
    help="Resume even if your own code (an arm's module) has changed; the report says so.",
)
@click.option("--detach", is_flag=True, help="Return as soon as the job is submitted.")
@click.option("--install", is_flag=True, help="Let the cluster install the pinned requirements for this job.")
@click.option(
    "--skip-version-check", is_flag=True, help="Do not compare the cluster's packages with the constraints file."
)
@click.option(
    "--include",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Also send this module or package of yours: NAME.py, or a folder with an __init__.py. May be repeated.",
)
@_UNTRACKED
@click.option(
    "--tree",
    type=click.Path(path_type=Path),
    default=None,
    help="The project to send. Default: the project around the current folder.",
)
@click.option(
    "--constraints", type=click.Path(path_type=Path), default=None, help="Default: the project's constraints.txt."
)
@click.option("--verbose", is_flag=True, help="Show Ray's own output.")
def submit(
    config: Path,
    address: str,
    name: str | None,
    scale: str | None,
    changes: tuple[str, ...],
    include: tuple[Path, ...],
    untracked: tuple[str, ...],
    tree: Path | None,
    constraints: Path | None,
    detach: bool,
    resume: bool,
    **options: Any,
) -> None:
    """Run CONFIG on a Ray cluster, from a machine outside the cluster, and follow its log.

    The files that git tracks are sent, without data, runs and environments. Untracked files are listed with a code that
    sends them. Files that look like secrets are refused by name. An address that contains a password is refused, too:
    Ray would store it in clear text. CONFIG is validated here before anything is sent. It can name code, such as an arm
    `my_costs:ABSOLUTE`, which is imported and run on the cluster.

    The driver runs on the cluster, so Ctrl-C only stops following the log. The exit code is the job's: 0 on success; 1
    if a trial failed; 2 if the job was refused, here or on the cluster; 143 if it was stopped. It is 130 after Ctrl-C,
    which does not stop the job. The token is read from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    \b
    Examples:
      tiny-onn submit experiments/ablation.yaml --address http://10.0.0.5:8265
      tiny-onn submit experiments/ablation.yaml --address http://10.0.0.5:8265 --resume
      tiny-onn submit experiments/ablation.yaml --address http://10.0.0.5:8265 \\
          --name wide --set model.hidden=128 --set workers.count=4 --output /mnt/shared/tiny-onn --detach
      tiny-onn submit experiments/mine.yaml --address http://10.0.0.5:8265 --include ../my_costs.py
    """
    from pipeline.api import read
    from pipeline.settings.changes import parse_changes
    from pipeline.submission.package import project_around
    from pipeline.submission.submit import Submission, follow, how_to_go_on
    from pipeline.submission.submit import submit as send

    if name is not None:
        changes = (*changes, f"name={name}")
    paths = {"--tree": tree, "--constraints": constraints}
    typed = {"--scale": scale, "--output": options["output"], **{word: str(path or "") for word, path in paths.items()}}
    typed |= {f"--{name.replace('_', '-')}": options[name] or "" for name in ("storage", "tracking_uri")}
    if options["mlflow_experiment"] != "tiny-onn":
        typed["--experiment"] = options["mlflow_experiment"]
    words = ["tiny-onn", "submit", str(config), "--address", address]
    words += [word for change in changes for word in ("--set", change)]
    words += [word for option, value in typed.items() if value for word in (option, value)]
    words += [word for path in include for word in ("--include", str(path))]
    words += [word for code in untracked for word in ("--untracked", code)]
    words += [
        f"--{flag.replace('_', '-')}"
        for flag in ("install", "skip_version_check", "allow_offline_tracking", "accept_changed_code")
        if options[flag]
    ]
    tree = tree or project_around(Path())
    submission = Submission(
        experiment=read(config, parse_changes(changes), scale),
        tree=tree,
        constraints=constraints or tree / "constraints.txt",
        command=shlex.join(words),
        resume=resume,
        include=include,
        untracked=untracked,
        **options,
    )
    server = _server(address)
    job = send(submission, server, click.echo)
    click.echo(how_to_go_on(job.name, server.url))
    if detach:
        return
    click.echo("Following the job's output; Ctrl-C stops following and leaves the job running.")
    sys.exit(follow(job, server, click.echo))


@click.group()
def jobs() -> None:
    """List, follow and stop jobs that were submitted to a cluster.

    \b
    Examples:
      tiny-onn jobs list --address http://10.0.0.5:8265
      tiny-onn jobs logs ablation --address http://10.0.0.5:8265
      tiny-onn jobs stop ablation --address http://10.0.0.5:8265
    """


@jobs.command("list", short_help="List all jobs, oldest first.")
@_ADDRESS
@_JSON
def list_jobs(address: str, as_json: bool) -> None:
    """List all jobs that `tiny-onn submit` has sent, oldest first.

    \b
    Examples:
      tiny-onn jobs list --address http://10.0.0.5:8265
      tiny-onn jobs list --address http://10.0.0.5:8265 --json
    """
    _show(_server(address).jobs(), as_json, "no jobs yet")


@jobs.command(short_help="List the jobs of NAME; exit with the last one's code.")
@_NAME
@_ADDRESS
@_JSON
def status(name: str, address: str, as_json: bool) -> None:
    """List the jobs of NAME; exit with the exit code of the last one (0 while it runs, 143 if it was stopped).

    \b
    Examples:
      tiny-onn jobs status ablation --address http://10.0.0.5:8265
      tiny-onn jobs status ablation --address http://10.0.0.5:8265 --json
    """
    from functools import partial

    from pipeline.submission.submit import exit_code

    server = _server(address)
    last = server.newest(name)
    _show(server.jobs(name), as_json)
    sys.exit(exit_code(last, partial(click.echo, err=as_json)) if last.ended else 0)


@jobs.command(short_help="Follow the output of the last job NAME.")
@_NAME
@_ADDRESS
@click.option("--no-follow", is_flag=True, help="Print the output so far, then exit.")
def logs(name: str, address: str, no_follow: bool) -> None:
    """Print the output of the last job NAME and follow it until the job ends; Ctrl-C leaves the job running.

    The exit code is the job's, or 130 after Ctrl-C, so scripts can use this command to wait for a job.

    \b
    Examples:
      tiny-onn jobs logs ablation --address http://10.0.0.5:8265
      tiny-onn jobs logs ablation --address http://10.0.0.5:8265 --no-follow
    """
    from pipeline.errors import UserError
    from pipeline.submission.jobs import Unreachable
    from pipeline.submission.submit import follow

    server = _server(address)
    job = server.newest(name)
    if not no_follow:
        sys.exit(follow(job, server, click.echo))
    try:
        click.echo(server.poll(job)[1], nl=False)
    except Unreachable as error:
        raise UserError(
            f"{server.url}: the logs of {name} cannot be read ({error}). Try again when the cluster answers."
        ) from error


@jobs.command(short_help="Stop the job NAME; `submit --resume` continues it.")
@_NAME
@_ADDRESS
def stop(name: str, address: str) -> None:
    """Stop the job NAME: its runs get status KILLED, and `tiny-onn submit ... --resume` continues it.

    The command waits for the job to end. The exit code is 0 if it has ended, and 1 if it still runs after 90 seconds.

    \b
    Examples:
      tiny-onn jobs stop ablation --address http://10.0.0.5:8265
    """
    from pipeline.submission.submit import stop as stop_job

    sys.exit(stop_job(name, _server(address), click.echo))


@click.command(short_help="Copy the files that `submit` would send to DIR, for `ray up`.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--tree", type=click.Path(path_type=Path), default=None, help="Default: the project around this folder.")
@_UNTRACKED
def pack(folder: Path, tree: Path | None, untracked: tuple[str, ...]) -> None:
    """Copy the project files that `submit` would send to DIR; nodes in cluster.yaml install the package from there.

    The same rules hold: the files that git tracks, and other files if --untracked confirms them; files that look like
    secrets are refused by name. DIR is replaced if an earlier `pack` created it.

    \b
    Examples:
      tiny-onn pack build/package && ray up cluster.yaml
      docker build -f experiments/cluster/Dockerfile -t REGISTRY/tiny-onn:0.1 build/package
    """
    from pipeline.submission.package import files_to_send, project_around, write_folder

    tree = tree or project_around(Path())
    selection = files_to_send(tree, (), untracked)
    if notice := selection.describe_left_out(f"--tree {tree}"):
        click.echo(notice)
    click.echo(f"{write_folder(tree, selection.files, folder)} files of {tree.resolve()} are in {folder}")


COMMANDS: tuple[click.Command, ...] = (submit, jobs, pack)


def _server(address: str) -> Any:
    from pipeline.running.token import find_token
    from pipeline.submission.jobs import JobServer, job_server_url

    url, token = job_server_url(address), find_token(os.environ)
    if token and token.warning:
        click.echo(token.warning, err=True)
    return JobServer(url, token)


def _show(jobs: list[Any], as_json: bool, nothing: str = "") -> None:
    import json
    import time

    if as_json:
        click.echo(json.dumps([job.as_json() for job in jobs], indent=1))
        return
    show: Callable[[int | None], str] = lambda ms: (  # noqa: E731
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) if ms else "-"
    )
    names, states = (max((len(getattr(job, field)) for job in jobs), default=0) for field in ("name", "status"))
    for job in jobs:
        code = "" if job.exit_code is None else f"  exit code {job.exit_code}"
        when = f"from {show(job.began_ms)}  to {show(job.ended_ms):19}"
        click.echo(f"{job.name:{names}}  {job.status:{states}}  {when}  ({job.id}){code}")
    if not jobs and nothing:
        click.echo(nothing)
