"""Ray starts while the store is opened and the data are prepared; what is refused meanwhile leaves nothing of it."""

import io
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from rich.console import Console

import pipeline.run
from pipeline import api
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.records.sweep_record import RECORD
from pipeline.running.ahead import Ahead
from pipeline.running.cluster import EarlyStart, connect
from tests.pipeline.running.test_ray_process import of_ray
from tests.pipeline.samples import write_config

SLEEPS = [sys.executable, "-c", "import time; time.sleep(100)"]


def children() -> set[psutil.Process]:
    """What this process has started and still runs."""
    processes = psutil.Process().children(recursive=True)
    return {each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.parametrize("error", [UserError("the data cannot be used"), KeyboardInterrupt()])
def test_what_is_refused_while_ray_starts_leaves_no_process_of_it_and_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """On a real cluster, which has begun to start when the data are refused, or Ctrl-C comes."""
    others, environment, seen = children(), of_ray(), []

    def refuse(*_: Any) -> None:
        limit = time.monotonic() + 60
        while not seen and time.monotonic() < limit:
            seen.extend(children() - others)
            time.sleep(0.05)
        raise error

    monkeypatch.setattr("pipeline.data.preparing.prepare_and_report", refuse)
    with pytest.raises(type(error)):
        api.ablate(write_config(tmp_path), output=tmp_path / "out", console=Console(file=io.StringIO()))
    assert seen
    assert children() - others == set()
    assert not ray.is_initialized()
    assert not (tmp_path / "out" / "sweeps").exists()
    assert of_ray() == environment
    assert "start-ray" not in {thread.name for thread in threading.enumerate()}


def test_a_start_that_fails_is_refused_as_without_the_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is that of `connect`; the sweep is as if the command had not been given; what Ray began is ended."""
    begun: list[subprocess.Popen[bytes]] = []

    def broken(**_: Any) -> None:
        begun.append(subprocess.Popen(SLEEPS))
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ray, "init", broken)
    environment = of_ray()
    with pytest.raises(UserError) as alone, connect(None):
        pass
    with pytest.raises(UserError) as overlapped:
        api.ablate(write_config(tmp_path), output=tmp_path / "out", console=Console(file=io.StringIO()))
    assert str(overlapped.value) == str(alone.value)
    assert str(alone.value).startswith("Ray could not be started on this machine (PermissionError: ")
    assert len(begun) == 2
    for process in begun:
        process.wait(timeout=10)
    assert not (Output(tmp_path / "out").sweep("look") / RECORD).exists()
    assert of_ray() == environment


def test_a_start_that_fails_and_is_not_asked_for_is_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def broken(**_: Any) -> None:
        begun.append(subprocess.Popen(SLEEPS))
        raise RuntimeError("no")

    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(UserError, match="the data"), EarlyStart(console=Console(file=io.StringIO())):
        raise UserError("the data cannot be used")
    begun[0].wait(timeout=10)


def test_ctrl_c_while_an_early_start_is_awaited_ends_what_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second Ctrl-C: the first had the command wait until Ray had started, to stop it."""
    begun: list[subprocess.Popen[bytes]] = []
    over = threading.Event()

    def slow(**_: Any) -> None:
        begun.append(subprocess.Popen(SLEEPS))
        over.wait(60)

    def impatient(self: Ahead) -> None:
        while not begun:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(Ahead, "wait", impatient)
    environment, filters = of_ray(), warnings.filters[:]
    with pytest.raises(KeyboardInterrupt), EarlyStart(console=Console(file=io.StringIO())):
        pass
    begun[0].wait(timeout=10)
    assert of_ray() == environment
    assert warnings.filters == filters
    over.set()


def test_ray_starts_early_only_for_what_may_run_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def early(*_: Any) -> Any:
        started.append("Ray")
        raise UserError("far enough")

    def no_early(*_: Any) -> Any:
        raise UserError("not so far")

    monkeypatch.setattr(pipeline.run, "EarlyStart", early)
    monkeypatch.setattr("pipeline.data.preparing.prepare_and_report", no_early)
    config, out = write_config(tmp_path), tmp_path / "out"
    with pytest.raises(UserError, match="far enough"):
        api.ablate(config, output=out)
    with pytest.raises(UserError, match="a trial asks for 999 CPUs"):
        api.ablate(config, {"workers.cpus": 999}, output=out)
    sweep = Output(out).sweep("look")
    sweep.mkdir(parents=True)
    (sweep / RECORD).write_text("{}")
    with pytest.raises(UserError, match="not so far"):  # this sweep is there already, and is not to be resumed
        api.ablate(config, output=out, resume=False)
    with pytest.raises(UserError, match="far enough"):
        api.ablate(config, output=out, resume=True)
    assert len(started) == 2


def test_a_thread_that_made_a_call_ahead_stays_until_its_end() -> None:
    """Linux kills with the thread what it has started with PR_SET_PDEATHSIG, as Ray does."""
    started: list[subprocess.Popen[bytes]] = []
    dies = "import ctypes; ctypes.CDLL(None).prctl(1, 9)\nprint(1, flush=True)\nimport time; time.sleep(100)"
    ahead = Ahead(lambda: started.append(subprocess.Popen([sys.executable, "-c", dies], stdout=subprocess.PIPE)), "t")
    ahead.wait()
    assert started[0].stdout is not None
    assert started[0].stdout.readline() == b"1\n"
    time.sleep(0.2)
    assert started[0].poll() is None
    ahead.end()
    assert started[0].wait(timeout=10) == -9
    started[0].stdout.close()


def test_what_a_call_ahead_raises_is_raised_each_time_that_it_is_waited_for() -> None:
    ahead = Ahead(lambda: os.stat("/nowhere"), "t")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            ahead.wait()
    ahead.end()
