"""Who may submit, what is refused before anything is sent, and how a job is followed, with a small server."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.running.token import Token, find_token
from pipeline.submission.jobs import Job, JobServer, job_server_url
from pipeline.submission.submit import exit_code, follow

ROOT = Path(__file__).parents[3]
SECRET = "0123456789abcdef"


class Answers(BaseHTTPRequestHandler):
    """A job server that knows what `server.jobs` and `server.logs` say, behind a token."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        given = self.headers.get("Authorization")
        if given != f"Bearer {SECRET}":
            self.send_response(401 if given is None else 403)
            self.end_headers()
            return
        if self.path.endswith("/logs"):
            logs: list[str] = self.server.logs  # type: ignore[attr-defined]
            body: Any = {"logs": logs.pop(0) if len(logs) > 1 else logs[0]}
        else:
            jobs: list[dict[str, Any]] = self.server.jobs  # type: ignore[attr-defined]
            body = jobs if self.path == "/api/jobs/" else jobs[-1]
            if len(self.server.logs) == 1 and isinstance(body, dict):  # type: ignore[attr-defined]
                body = {**body, **self.server.end}  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as made:
        made.asked, made.jobs, made.logs, made.end = [], [], [""], {}  # type: ignore[attr-defined]
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def address(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def told(name: str, status: str, code: int | None = None, began: int = 1) -> dict[str, Any]:
    """A job as Ray's server tells of it."""
    return {
        "submission_id": f"{name}-1a2b",
        "metadata": {"tiny_onn_name": name},
        "status": status,
        "message": "Job entrypoint command failed",
        "driver_exit_code": code,
        "start_time": began,
        "end_time": None,
    }


def run(*words: str, token: str | None = SECRET) -> Any:
    environment = {"RAY_AUTH_TOKEN": token, "RAY_AUTH_TOKEN_PATH": None, "HOME": "/nonexistent"}
    return CliRunner().invoke(main, list(words), env=environment)


def submit(server: Any, *words: str, token: str | None = SECRET) -> Any:
    config = ROOT / "experiments" / "smoke.yaml"
    return run("submit", str(config), "--address", address(server), "--tree", str(ROOT), *words, token=token)


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "asks for a token, and none was found"), ("wrong", "refuses the token of RAY_AUTH_TOKEN")],
)
def test_a_missing_or_wrong_token_is_refused(server: Any, token: str | None, said: str) -> None:
    outcome = submit(server, token=token)
    assert outcome.exit_code == 2
    assert said in outcome.output
    assert "wrong" not in outcome.output.replace("wrong settings", "")
    assert server.asked == ["/api/jobs/"]


def test_where_nothing_answers(server: Any) -> None:
    server.shutdown()
    server.server_close()
    outcome = submit(server)
    assert outcome.exit_code == 2
    assert "nothing answers ([Errno 111] Connection refused)" in " ".join(outcome.output.split())


@pytest.mark.parametrize("text", ["head", "ray://head:10001", "http://head", "ftp://head:1", ":8265", "http://:8265"])
def test_an_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected http://HEAD:8265"):
        job_server_url(text)


def test_addresses_are_completed() -> None:
    assert job_server_url("head:8265") == "http://head:8265"
    assert job_server_url("https://head:443/") == "https://head:443"


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("at home\n")
    (tmp_path / "named").write_text("named")
    home = {"HOME": str(tmp_path)}
    named = {**home, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}
    assert find_token({**named, "RAY_AUTH_TOKEN": "told"}) == Token("told", "RAY_AUTH_TOKEN")
    assert find_token(named) == Token("named", str(tmp_path / "named"))
    assert find_token(home) == Token("at home", str(tmp_path / ".ray" / "auth_token"))
    assert find_token({"HOME": "/nonexistent"}) is None
    assert "at home" not in repr(find_token(home))
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "training.stepz=3"), "did you mean 'training.steps'"),
        (("--name", "../x"), "name"),
        (("--output", "runs"), "--output runs: is relative"),
        (("--set", "data.dataset=folder", "--set", "data.folder=no/such"), "data.folder"),
        (("--constraints", "/nonexistent"), "/nonexistent: cannot be read"),
    ],
)
def test_what_is_wrong_is_refused_before_the_server_is_asked(server: Any, words: tuple[str, ...], said: str) -> None:
    outcome = submit(server, *words)
    assert outcome.exit_code == 2, outcome.output
    assert said in " ".join(outcome.output.split())
    assert server.asked == []


def test_a_name_that_runs_or_has_run_is_refused(server: Any) -> None:
    server.jobs = [told("other", "RUNNING"), told("smoke", "FAILED", 1)]
    outcome = submit(server, "--set", "training.seed=3")
    assert outcome.exit_code == 2
    again = f"smoke.yaml --address {address(server)} --set training.seed=3 --tree {ROOT} --resume"
    assert again in outcome.output
    server.jobs = [told("smoke", "RUNNING", began=2), told("smoke", "FAILED", 1)]
    outcome = submit(server, "--resume")
    assert outcome.exit_code == 2
    assert "a job of this name runs" in outcome.output
    assert set(server.asked) == {"/api/jobs/"}


def test_the_newest_job_of_a_name_is_the_one_that_counts(server: Any) -> None:
    server.jobs = [told("smoke", "SUCCEEDED", 0, began=5), told("smoke", "FAILED", 1, began=3)]
    outcome = run("jobs", "status", "smoke", "--address", address(server))
    assert outcome.exit_code == 0
    assert outcome.output.splitlines()[-1].startswith("smoke  SUCCEEDED")
    outcome = run("jobs", "status", "smoky", "--address", address(server))
    assert outcome.exit_code == 2
    assert "no job 'smoky'" in outcome.output
    assert "there are: smoke" in outcome.output


def test_a_job_that_was_refused_leaves_its_name_free(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(JobServer, "submit", lambda self, job_id, entrypoint, *_: sent.append(entrypoint))
    server.jobs = [told("smoke", "FAILED", 2)]
    outcome = submit(server, "--detach", "--allow-offline-tracking")
    assert outcome.exit_code == 0, outcome.output
    assert len(sent) == 1
    assert sent[0].endswith("--experiment tiny-onn --allow-offline-tracking")
    server.jobs = [told("smoke", "FAILED", 1), told("smoke", "FAILED", 2, began=2)]
    outcome = submit(server, "--detach")
    assert outcome.exit_code == 2
    assert "a job of this name has run" in outcome.output


def test_jobs_for_a_script(server: Any) -> None:
    server.jobs = [told("smoke", "FAILED", 1, began=1_764_064_800_000), told("other", "RUNNING", began=1)]
    outcome = run("jobs", "list", "--address", address(server), "--json")
    assert [each["name"] for each in json.loads(outcome.output)] == ["other", "smoke"]
    outcome = run("jobs", "status", "smoke", "--address", address(server), "--json")
    assert outcome.exit_code == 1
    assert json.loads(outcome.stdout) == [
        {
            "id": "smoke-1a2b",
            "name": "smoke",
            "status": "FAILED",
            "message": "Job entrypoint command failed",
            "exit_code": 1,
            "began": "2025-11-25T10:00:00+00:00",
            "ended": None,
        }
    ]


def test_the_address_that_nodes_join_differs_from_one_where_nothing_answers() -> None:
    def answer(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(1000)
            client.sendall(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00\x00\x04\x00\n")  # as a server of gRPC begins

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        outcome = run("jobs", "list", "--address", f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert outcome.exit_code == 2
    assert "is not Ray's job server (it does not speak HTTP; 6379 is where nodes join)" in outcome.output
    assert outcome.output.strip().isprintable()


def test_following_prints_each_line_once_and_ends_with_the_jobs_exit_code(server: Any) -> None:
    server.jobs, server.end = [told("smoke", "RUNNING")], {"status": "FAILED", "driver_exit_code": 7}
    server.logs = ["one\n", "one\ntwo", "one\ntwo\nthree\n"]
    printed: list[str] = []
    job = JobServer(address(server), Token(SECRET, "test")).newest("smoke")
    assert follow(job, JobServer(address(server), Token(SECRET, "test")), printed.append, printed.append) == 7
    assert "".join(printed) == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 143)]
)
def test_exit_codes(status: str, code: int | None, expected: int) -> None:
    said: list[str] = []
    assert exit_code(Job("x", "smoke", status, "the node died", code, 0, 0), said.append) == expected
    assert bool(said) == (code is None)


@pytest.mark.parametrize(
    ("option", "uri", "belongs"),
    [
        ("--storage", "s3://AKIA123:hidden@bucket/runs", "AWS_SECRET_ACCESS_KEY"),
        ("--storage", "s3://bucket/runs?secret_key=hidden", "TINY_ONN_STORAGE"),
        ("--tracking-uri", "http://me:hidden@mlflow:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("--tracking-uri", "https://hidden@mlflow", "MLFLOW_TRACKING_PASSWORD"),
        ("--tracking-uri", "postgresql://u:hidden@h/mlflow", "TINY_ONN_TRACKING_URI"),
        ("--tracking-uri", "https://mlflow/?access_token=hidden", "TINY_ONN_TRACKING_URI"),
        ("--set", "description=https://me:hidden@h/x", "environment that the head is started with"),
    ],
)
def test_an_address_with_a_secret_is_refused_before_anything_is_sent(
    server: Any, tmp_path: Path, option: str, uri: str, belongs: str
) -> None:
    """Ray would write it to its head's log, which all users of the head can read, and show it in its list of jobs."""
    ran = submit(server, option, uri)
    assert ran.exit_code == 2
    assert belongs in ran.output
    assert "hidden" not in ran.output
    assert server.asked == []


def test_a_user_or_password_in_the_clusters_own_address_is_refused() -> None:
    for address in ("http://me:hidden@h:8265", "me@h:8265", "hidden@h:8265"):
        with pytest.raises(UserError, match="has a user or a password in it"):
            job_server_url(address)
    with pytest.raises(UserError) as refused:
        job_server_url("http://me:hidden@h:8265")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "answer",
    [{}, [{"metadata": {"tiny_onn_name": 3}}], [told("x", "RUNNING", began=-1)], [told("x", "RUNNING", code=10**9)],
     [{**told("x", "RUNNING"), "submission_id": "../../logs"}], [{**told("x", "x"), "start_time": 10**18}], "x", None],
)  # fmt: skip
def test_an_answer_that_no_job_server_gives_is_refused_in_our_own_words(server: Any, answer: Any) -> None:
    server.jobs = answer
    ran = run("jobs", "list", "--address", address(server))
    assert ran.exit_code == 2, ran.output
    assert "Expected" in ran.output
