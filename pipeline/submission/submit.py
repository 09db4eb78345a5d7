"""Sends an experiment and the code that runs it to a Ray cluster, and follows the job there."""

import json
import secrets
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.errors import UserError
from pipeline.running.pins import pinned_requirements, read_pins, requirements
from pipeline.secrecy import has_secret, mask, public
from pipeline.settings.config import Experiment
from pipeline.submission import on_cluster
from pipeline.submission.jobs import NAME_KEY, Job, JobServer, Unreachable
from pipeline.submission.own_code import not_sent, own_files
from pipeline.submission.package import files_to_send, write_package
from pipeline.tracking.describe import COMMIT_SENT, git_commit

_STOPPING_S = 60  # that a job gets to end its runs, before it is killed
_LOST_S = 60.0  # for how long a server may not answer while a job is followed
_BYTES_A_SECOND = 200_000  # of logs read again and again
Say = Callable[[str], None]


@dataclass(frozen=True)
class Submission:
    """What is sent. `command` is what the user typed, without --resume; `include` lists the user's own modules and
    packages, `untracked` the codes that confirm lists of files which git does not track."""

    experiment: Experiment
    tree: Path
    constraints: Path
    command: str
    output: str | None = None
    storage: str | None = None
    tracking_uri: str | None = None
    mlflow_experiment: str = "tiny-onn"
    install: bool = False
    skip_version_check: bool = False
    resume: bool = False
    allow_offline_tracking: bool = False
    accept_changed_code: bool = False
    include: tuple[Path, ...] = ()
    untracked: tuple[str, ...] = ()
    verbose: bool = False

    @property
    def entrypoint(self) -> str:
        """The command that the job runs in the root of the package."""
        words = [
            "python",
            "-m",
            "pipeline.submission.on_cluster",
            *([on_cluster.SKIP_VERSION_CHECK] if self.skip_version_check else []),
        ]
        words += ["ablate" if self.experiment.sweep else "train", on_cluster.CONFIG]
        words += ["--experiment", self.mlflow_experiment]
        words += ["--output", self.output] if self.output else []
        flags = {
            "--resume": self.resume,
            "--allow-offline-tracking": self.allow_offline_tracking,
            "--verbose": self.verbose,
        }
        flags["--accept-changed-code"] = self.accept_changed_code
        words += [flag for flag, wanted in flags.items() if wanted]
        return f"exec {shlex.join(words)}"  # in place of the shell, so that its exit code and signals are the job's


def check_submission(submission: Submission) -> list[str]:
    """The requirements, pinned, of the project that is sent.

    Raises:
        UserError: something can be known to fail before anything is sent.
    """
    for name in ("pyproject.toml", "pipeline"):
        if not (submission.tree / name).exists():
            raise UserError(
                f"--tree {submission.tree}: has no {name}. Expected the project's folder, which goes with the job: "
                "submit from there, or name it with --tree."
            )
    refuse_secret_addresses(submission)
    pins = read_pins(submission.constraints)
    if submission.output is not None and not Path(submission.output).is_absolute():
        raise UserError(
            f"--output {submission.output}: is relative, but a job's working folder goes with the job. Expected the "
            "absolute path of a folder that all nodes of the cluster see."
        )
    folder = submission.experiment.data.folder
    if folder and not Path(folder).is_absolute() and not (submission.tree / folder).exists():
        raise UserError(
            f"data.folder: {submission.tree / folder} is not there, so it cannot be sent with the job. Expected a file "
            "or folder of the project that is sent, or the absolute path of one that all nodes of the cluster see."
        )
    return pinned_requirements(requirements(submission.tree / "pyproject.toml"), pins)


def refuse_secret_addresses(submission: Submission) -> None:
    """No address, and no other word of the command, holds a password or key: all of them can be read on the head.

    Raises:
        UserError: one does; says where it belongs.
    """
    belongs = {
        "--storage": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or TINY_ONN_STORAGE with the whole address,",
        "--tracking-uri": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or TINY_ONN_TRACKING_URI,",
    }
    for option, uri in (("--storage", submission.storage), ("--tracking-uri", submission.tracking_uri)):
        if uri and has_secret(uri):
            raise UserError(
                f"{option} {mask(uri, uri)}: holds a secret, or an option that may be one. Ray keeps what is submitted "
                f"in clear text, in its head's logs and in its list of jobs. Start the head with {belongs[option]} in "
                f"its environment, and submit without the secret: {option} {public(uri).partition('?')[0]}"
            )
    if mask(submission.command) != submission.command:
        raise UserError(
            f"the command `{mask(submission.command)}` holds an address with a secret in it, which Ray would keep in "
            "clear text. Leave it out, and give it in the environment that the head is started with."
        )


def submit(submission: Submission, server: JobServer, say: Say) -> Job:
    """Sends the package and starts the job.

    Raises:
        UserError: before anything is sent: a job of this name runs, or has run and `resume` is False; the tree is too
            large or not pinned; the server does not answer or refuses the token. Or the server refused the job.
    """
    pinned = check_submission(submission)
    name = submission.experiment.name
    _check_name_is_free(submission, server.jobs(name), server.url)
    data = submission.experiment.data.folder
    wanted = [Path(data)] if data and not Path(data).is_absolute() else []
    selection = files_to_send(submission.tree, wanted, submission.untracked)
    files = selection.files
    own, stays = own_files(submission.include, files, submission.untracked)
    for notice in (selection.describe_left_out(f"--tree {submission.tree}"), *stays):
        if notice:
            say(notice)
    for missing in not_sent(submission.experiment, (*files, *own)):
        say(missing)
    extra = {
        on_cluster.CONFIG: json.dumps(submission.experiment.model_dump(mode="json"), indent=1),
        on_cluster.CONSTRAINTS: submission.constraints.read_text(encoding="utf-8"),
    }
    environment = {
        on_cluster.SUBMITTED_AS: submission.command,
        COMMIT_SENT: git_commit(submission.tree),
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOPPING_S),
    }
    # Ray writes these to its head's log, which all users there can read, and shows them to whoever may see its jobs.
    places = {on_cluster.STORAGE: submission.storage, on_cluster.TRACKING_URI: submission.tracking_uri}
    environment |= {name: value for name, value in places.items() if value}
    job_id = f"{name}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.zip"
        size = write_package(submission.tree, files, extra, package, own)
        beside = f" and {len(own)} of your own" if own else ""
        say(f"Sending {len(files)} files of {submission.tree.resolve()}{beside} ({size / 1e6:.1f} MB) to {server.url}")
        runtime_env: dict[str, Any] = {"working_dir": str(package), "env_vars": environment}
        if submission.install:
            runtime_env["pip"] = {"packages": pinned, "pip_check": False}
        server.submit(job_id, submission.entrypoint, runtime_env, {NAME_KEY: name})
    return Job(job_id, name, "PENDING", "", None, 0, None)


def _check_name_is_free(submission: Submission, jobs: list[Job], url: str) -> None:
    name = submission.experiment.name
    running = [job for job in jobs if not job.ended]
    if running:
        raise UserError(
            f"{name}: a job of this name runs at {url} ({running[-1].id}). Follow it with\n"
            f"  tiny-onn jobs logs {name} --address {url}\nor give this one another name with --name."
        )
    begun = [job for job in jobs if not job.refused]
    if begun and not submission.resume:
        raise UserError(
            f"{name}: a job of this name has run at {url} ({begun[-1].id}, {begun[-1].status}). Go on with it:\n"
            f"  {submission.command} --resume\nor give this one another name with --name."
        )


def follow(job: Job, server: JobServer, say: Say, write: Callable[[str], Any] = sys.stdout.write) -> int:
    """Prints what the job prints until it ends, and returns its exit code. Ctrl-C ends only the following: 130.

    A server that does not answer is waited for; after a minute the code is 1, and the job may go on.
    """
    printed, answered = 0, time.monotonic()
    detached = threading.Event()

    def detach(number: int, frame: FrameType | None) -> None:
        detached.set()

    before = signal.signal(signal.SIGINT, detach)
    try:
        while not detached.is_set():
            try:
                job, log = server.poll(job)
            except Unreachable as error:
                if time.monotonic() - answered > _LOST_S:
                    say(f"{server.url} no longer answers ({error}). {how_to_go_on(job.name, server.url)}")
                    return 1
                detached.wait(2.0)
                continue
            answered = time.monotonic()
            write(log[printed:])
            sys.stdout.flush()
            printed = len(log)
            if job.ended:
                return exit_code(job, say)
            detached.wait(max(1.0, printed / _BYTES_A_SECOND))
        say(f"\nDetached. {how_to_go_on(job.name, server.url)}")
        return 130
    finally:
        signal.signal(signal.SIGINT, before)


def stop(name: str, server: JobServer, say: Say) -> int:
    """Stops the newest job of this name and waits until it has ended; 0 then, 1 when it has not.

    Raises:
        UserError: there is no such job, or the server does not answer.
    """
    job = server.newest(name)
    if job.ended:
        say(f"{name} has already ended: {job.status}")
        return 0
    server.stop(job)
    deadline = time.monotonic() + _STOPPING_S + 30
    while time.monotonic() < deadline:
        with suppress(Unreachable):
            job, _ = server.poll(job)
        if job.ended:
            say(f"{name}: {job.status}")
            return 0
        time.sleep(1.0)
    say(f"{name} was asked to stop and still runs; `tiny-onn jobs status {name}` shows when it has ended.")
    return 1


def exit_code(job: Job, say: Say) -> int:
    """Of a job that has ended: its driver's. 143 for one that was stopped, 1 where nothing is known."""
    if job.status == "SUCCEEDED":
        return 0
    code = 143 if job.status == "STOPPED" else job.exit_code if job.exit_code else 1
    if job.exit_code is None and job.message:
        say(f"{job.name} {job.status}: {job.message}")
    elif code == 127:
        say(f"{job.name}: no `python` on the head's PATH; start Ray there with the environment's bin folder on it.")
    return code


def how_to_go_on(name: str, url: str) -> str:
    """The commands for a job that runs by itself."""
    rest = f"{name} --address {url}"
    return (
        f"{name} runs on the cluster. Follow it, look at it, stop it:\n"
        f"  tiny-onn jobs logs {rest}\n  tiny-onn jobs status {rest}\n  tiny-onn jobs stop {rest}"
    )
