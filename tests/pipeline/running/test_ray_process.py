"""What Ray reads and leaves behind: the process is after a cluster as it was before, whatever it was."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from pipeline.errors import UserError
from pipeline.running import ray_process as tested
from pipeline.running.cluster import connect
from pipeline.running.ray_process import DEFAULTS, NEEDED, hangup_held, ray_process, short_folder
from pipeline.tracking.mlflow_process import free_port
from tests.pipeline.ray_nodes import cluster_environment, start_node


def of_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "TUNE_"))}


def test_what_is_needed_wins_what_may_be_chosen_stays_and_all_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NEEDED:
        monkeypatch.setenv(name, "user's")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    before = of_ray()
    with ray_process(own_cluster=True):
        assert {name: os.environ[name] for name in NEEDED} == NEEDED
        assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
        assert (
            os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == DEFAULTS["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]
        )
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
        os.environ["RAY_LEFT_BEHIND"] = "1"
    assert of_ray() == before
    with ray_process(own_cluster=False):  # a cluster's own authentication is its own
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == "/nowhere"
    assert of_ray() == before


def test_the_hook_for_uv_run_is_off_where_ray_was_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants, worker

    monkeypatch.setattr(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)
    monkeypatch.setattr("ray._private.runtime_env.uv_runtime_env_hook._get_uv_run_cmdline", lambda: ["uv", "run", "x"])
    monkeypatch.setattr("ray._private.runtime_env.uv_runtime_env_hook.hook", lambda env: {"py_executable": "uv run"})
    assert worker._maybe_modify_runtime_env({}, False) == {"py_executable": "uv run"}
    with ray_process(own_cluster=True):
        assert worker._maybe_modify_runtime_env({}, False) == {}
    assert ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV


def test_a_long_or_closed_tmpdir_gets_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert short_folder() is None
    for place in (long, tmp_path / "nowhere"):
        monkeypatch.setenv("TMPDIR", str(place))
        assert short_folder() == "/tmp/ray"
    monkeypatch.setattr(tested, "_SHORT", (str(tmp_path / "gone"),))
    with pytest.raises(UserError, match=r"TMPDIR=.*nowhere: cannot be used for Ray's sockets"):
        short_folder()


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup."),
        PermissionError(13, "Permission denied", "/root/.ray"),
        OSError("AF_UNIX path length cannot exceed 107 bytes"),
        RuntimeError("can't start new thread\nand more of it"),
    ],
)
def test_whatever_keeps_ray_from_starting_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", broken)
    before = of_ray()
    with pytest.raises(UserError) as refused, connect(None):
        pass
    assert str(refused.value).startswith(f"Ray could not be started on this machine ({type(error).__name__}: ")
    assert str(error).splitlines()[0] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert of_ray() == before


def test_what_ray_had_started_when_it_failed_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def broken(**_: Any) -> None:
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True))
        raise PermissionError(13, "Permission denied")

    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        monkeypatch.setattr(ray, "init", broken)
        with pytest.raises(UserError, match="could not be started"), connect(None):
            pass
        begun[0].wait(timeout=10)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_cluster_that_the_process_has_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: closed.append("closed"))
    with pytest.raises(UserError, match=r"already connected to a Ray cluster.*ray\.shutdown\(\) first"), connect(None):
        pass
    assert closed == []


def test_a_hangup_is_held_back_in_what_is_started_meanwhile() -> None:
    shows = [
        sys.executable,
        "-c",
        "import signal; print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    ]
    with hangup_held():
        held = subprocess.run(shows, capture_output=True, text=True, check=True).stdout
    free = subprocess.run(shows, capture_output=True, text=True, check=True).stdout
    assert (held.strip(), free.strip()) == ("True", "False")
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@contextmanager
def head(folder: Path, port: int, **environment: str) -> Iterator[str]:
    """A cluster of one node on loopback."""
    options = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    options += ["--include-dashboard=false", f"--temp-dir={folder}/ray"]
    token = folder / "token"
    token.write_text("0" * 64)
    settings = {**cluster_environment(token, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0"), **environment}
    if environment.get("RAY_AUTH_MODE") == "disabled":
        del settings["RAY_AUTH_TOKEN_PATH"]
    node = start_node(options, settings, folder / "head.log")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        node.stop()


def asked_for_two(address: str | None) -> int:
    """What an actor of the cluster answers; one that asks for a token in vain never would."""
    import time

    deadline = time.monotonic() + 60
    while True:
        try:
            with connect(address, console=Console(file=io.StringIO())):
                task = ray.remote(num_cpus=0)(lambda: 2).remote()
                return int(ray.get(task, timeout=60))
        except UserError:  # the head is not up yet
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@pytest.mark.slow
def test_clusters_of_all_kinds_follow_one_another_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: one of our own, one without authentication, one with a token, in every order of two."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as one,
        tempfile.TemporaryDirectory(dir="/tmp") as two,
        head(Path(one), free_port("127.0.0.1", None), RAY_AUTH_MODE="disabled") as without,
        head(Path(two), free_port("127.0.0.1", None)) as closed,
    ):
        for kind in ("own", "open", "own", "closed", "open", "closed", "own"):
            with monkeypatch.context() as patch:
                if kind != "own":
                    patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # these clusters are on loopback
                if kind == "closed":
                    patch.setenv("RAY_AUTH_MODE", "token")
                    patch.setenv("RAY_AUTH_TOKEN_PATH", f"{two}/token")
                before = of_ray()
                assert asked_for_two({"own": None, "open": without, "closed": closed}[kind]) == 2, kind
                assert of_ray() == before
                if kind == "own":
                    assert not ray_constants_changed()


def ray_constants_changed() -> bool:
    """Whether Ray's idea of this machine's address is another than in a process that has begun nothing."""
    from ray._private import ray_constants

    return not ray_constants.ENABLE_RAY_CLUSTER
