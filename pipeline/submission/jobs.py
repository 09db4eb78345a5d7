"""Ray's job server over HTTP, with time limits: who may talk to it, which jobs there are, their logs and their end."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import requests

from pipeline.errors import UserError
from pipeline.foreign_json import DamagedJson, integer, parse_json, text
from pipeline.running.token import Token
from pipeline.secrecy import mask

_CONNECT_S, _ANSWER_S = 3.0, 5.0
_MOST_BYTES = 256 * 2**20  # of an answer: a job's log is one
_LATEST_MS = 253_402_300_799_000  # the end of the year 9999
NAME_KEY = "tiny_onn_name"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_REDIRECTING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # Ray would take these in place of the address it is given


class Unreachable(Exception):
    """The job server did not answer this time."""


@dataclass(frozen=True)
class Job:
    """A job as the server describes it. Times are milliseconds since 1970."""

    id: str
    name: str
    status: str
    message: str
    exit_code: int | None
    began_ms: int
    ended_ms: int | None

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.status in _ENDED

    @property
    def refused(self) -> bool:
        """Whether it ended before anything was started, as `tiny-onn` then says by this exit code."""
        return self.exit_code == 2

    def as_json(self) -> dict[str, Any]:
        """For a script; times as ISO 8601."""
        times = {"began": _iso(self.began_ms), "ended": _iso(self.ended_ms)}
        return {k: v for k, v in asdict(self).items() if not k.endswith("_ms")} | times


def job_server_url(address: str) -> str:
    """`address` as http(s)://host:port.

    Raises:
        UserError: it is of another form.
    """
    scheme, there, rest = address.rstrip("/").partition("://")
    if not there:
        scheme, rest = "http", scheme
    if "@" in rest:
        raise UserError(
            f"address {mask(address, address)}: has a user or a password in it, which no Ray cluster takes. Expected "
            "http://HEAD:8265; a token goes into ~/.ray/auth_token."
        )
    host, _, port = rest.rpartition(":")
    if scheme not in ("http", "https") or not host or not port.isdigit():
        raise UserError(
            f"address {address!r}: expected http://HEAD:8265, where the head of a Ray cluster takes jobs "
            "(its dashboard), not the address that nodes join."
        )
    return f"{scheme}://{rest}"


class JobServer:
    """The job server at `url`. Every call ends within ten seconds; sending a package takes what it takes."""

    def __init__(self, url: str, token: Token | None) -> None:
        self.url, self._token = url, token
        self._headers = {"Authorization": f"Bearer {token.secret}"} if token else {}

    @property
    def open_to_all(self) -> bool:
        """Whether it takes jobs without a token, too.

        Raises:
            Unreachable: it does not answer.
        """
        try:
            return requests.get(f"{self.url}/api/jobs/", timeout=(_CONNECT_S, _ANSWER_S)).ok
        except requests.RequestException as error:
            raise Unreachable(str(error)) from error

    def jobs(self, name: str | None = None) -> list[Job]:
        """The jobs that this command submitted, oldest first; those of `name` alone.

        Raises:
            UserError: nothing answers, it is no job server, or the token is missing or wrong.
        """
        jobs = parse_jobs(self._or_refuse("GET", "/api/jobs/"), self.url)
        return sorted((job for job in jobs if name in (None, job.name)), key=lambda job: job.began_ms)

    def newest(self, name: str) -> Job:
        """The job of this name that was submitted last.

        Raises:
            UserError: as `jobs`; or there is none.
        """
        jobs = self.jobs()
        of_name = [job for job in jobs if job.name == name]
        if not of_name:
            known = ", ".join(sorted({job.name for job in jobs})) or "none"
            raise UserError(f"no job {name!r} at {self.url}; there are: {known}.")
        return of_name[-1]

    def poll(self, job: Job) -> tuple[Job, str]:
        """The job as it is now, and then all that it has printed.

        Raises:
            Unreachable: the server does not answer.
        """
        now, log_reply = self._call("GET", f"/api/jobs/{job.id}"), self._call("GET", f"/api/jobs/{job.id}/logs")
        logs = log_reply.get("logs") if isinstance(log_reply, dict) else None
        if not isinstance(logs, str | None):
            raise Unreachable(f"{self.url}: its answer holds no logs")
        return parse_job(now, self.url), logs or ""

    def stop(self, job: Job) -> None:
        """Asks the job to stop: its driver gets SIGTERM.

        Raises:
            UserError: as `jobs`.
        """
        self._or_refuse("POST", f"/api/jobs/{job.id}/stop")

    def submit(self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Sends the package and starts the job.

        Raises:
            UserError: the server refused it.
        """
        for name in _REDIRECTING:
            os.environ.pop(name, None)
        from ray.job_submission import JobSubmissionClient  # seconds

        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # it has set itself to INFO
        try:
            client = JobSubmissionClient(self.url, headers=dict(self._headers))
            client.submit_job(submission_id=job_id, entrypoint=entrypoint, runtime_env=runtime_env, metadata=metadata)
        except (RuntimeError, ConnectionError, ValueError, requests.RequestException) as error:
            raise UserError(
                f"{self.url}: did not accept the job ({error}). See the log of the head's dashboard, or mend "
                "what the message names."
            ) from error

    def _call(self, method: str, path: str) -> Any:
        try:
            with requests.request(
                method,
                self.url + path,
                headers=self._headers,
                timeout=(_CONNECT_S, _ANSWER_S),
                allow_redirects=False,
                stream=True,
            ) as answer:
                answer.raise_for_status()
                body = bytearray()
                for part in answer.iter_content(2**16):
                    body += part
                    if len(body) > _MOST_BYTES:
                        break
            return parse_json(body, self.url + path, _MOST_BYTES)
        except DamagedJson as error:
            raise Unreachable(str(error)) from requests.exceptions.InvalidJSONError(str(error))
        except (requests.RequestException, OSError) as error:
            raise Unreachable(str(error)) from error

    def _or_refuse(self, method: str, path: str) -> Any:
        try:
            return self._call(method, path)
        except Unreachable as error:
            cause = error.__cause__
            answer = cause.response if isinstance(cause, requests.RequestException) else None
            raise UserError(self._refusal(answer.status_code if answer is not None else None, cause)) from error

    def _refusal(self, status: int | None, cause: BaseException | None) -> str:
        if status == 401:
            return (
                f"{self.url}: asks for a token, and none was found. Put the cluster's token into ~/.ray/auth_token, or "
                "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
            )
        if status == 403:
            source = self._token.source if self._token else "nowhere"
            return (
                f"{self.url}: refuses the token of {source}. Expected the token that the cluster was started with "
                "(`ray get-auth-token` on its head shows it)."
            )
        no_http = "BadStatusLine" in str(cause)  # what answers there speaks another protocol
        if isinstance(cause, requests.ConnectionError | requests.Timeout) and not no_http:
            return (
                f"{self.url}: nothing answers ({_in_a_line(cause)}). Expected a running Ray cluster's job server; is "
                "the head up, the port 8265 open to this machine, and `ray[default]` installed there?"
            )
        why = "it does not speak HTTP; 6379 is where nodes join" if no_http else _in_a_line(cause)
        return f"{self.url}: is not Ray's job server ({why}). Expected http://HEAD:8265, the dashboard."


def _iso(ms: int | None) -> str | None:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms else None


def parse_jobs(reply: Any, url: str) -> list[Job]:
    """Those of a server's jobs that this command submitted.

    Raises:
        UserError: it is no list of jobs.
    """
    if not isinstance(reply, list):
        raise UserError(
            f"{url}: its answer is not a list of jobs. Expected the address of Ray's job server, http://HEAD:8265."
        )
    ours = [each for each in reply if isinstance(each, dict) and NAME_KEY in _metadata(each)]
    return [parse_job(each, url) for each in ours]


def parse_job(reply: Any, url: str) -> Job:
    """A job, as a server describes it.

    Raises:
        UserError: it is none.
    """
    try:
        if not isinstance(reply, dict):
            raise ValueError("expected an object")
        code, began, ended = reply.get("driver_exit_code"), reply.get("start_time"), reply.get("end_time")
        return Job(
            _id(reply.get("submission_id")),
            text(_metadata(reply).get(NAME_KEY, ""), 200),
            text(reply.get("status"), 50),
            text(reply.get("message") or "", 1_000_000),
            None if code is None else integer(code, -255, 255),
            integer(began or 0, 0, _LATEST_MS),
            None if ended is None else integer(ended, 0, _LATEST_MS),
        )
    except ValueError as error:
        raise UserError(
            f"{url}: its answer is not a job ({error}). Expected the address of Ray's job server, http://HEAD:8265."
        ) from None


def _metadata(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = reply.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _id(value: Any) -> str:
    """It goes into addresses."""
    job_id = text(value or "", 200)
    if not re.fullmatch(r"[A-Za-z0-9_.-]*", job_id):
        raise ValueError(f"{job_id[:60]!r} is not the id of a job")
    return job_id


def _in_a_line(error: BaseException | None) -> str:
    """The innermost reason, without a URL library's wrapping."""
    reason = " ".join(str(error).split())
    for mark in ("Failed to establish a new connection: ", "Connection to ", ": "):
        if mark in reason and isinstance(error, requests.ConnectionError):
            reason = reason.rpartition(mark)[2].rstrip(")'\" ")
            break
    return reason[:200]
