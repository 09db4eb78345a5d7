"""What fits a cluster, and what is refused before one is started."""

import os
import socket
import time
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.running.cluster import HeadWatch, Resources, connect, fit, local_resources
from pipeline.settings.config import WorkersConfig


@pytest.mark.parametrize(
    ("workers", "nodes", "wanted", "expected"),
    [
        (WorkersConfig(count=1, cpus=1.0), (Resources(2),), 12, 2),
        (WorkersConfig(count=2, cpus=0.5), (Resources(2),), 12, 2),
        (WorkersConfig(count=1, cpus=0.1), (Resources(1),), 12, 10),  # 1 / 0.1 is a hair under 10 in floating point
        (WorkersConfig(count=1, cpus=0.5), (Resources(2),), 3, 3),
        (WorkersConfig(count=3, cpus=2.0), (Resources(3), Resources(5)), 4, 1),  # one worker there, two here
        (WorkersConfig(count=1, cpus=1.0, gpus=0.5), (Resources(8, 1), Resources(1, 2)), 9, 3),
        (WorkersConfig(count=1, cpus=2.0), (Resources(8), Resources(1, 4)), 99, 4),  # none where the GPUs are
        (WorkersConfig(count=1, cpus=0.25, gpus=1.0), (Resources(8), Resources(1, 4)), 99, 4),
    ],
)
def test_as_many_trials_as_fit(
    workers: WorkersConfig, nodes: tuple[Resources, ...], wanted: int, expected: int
) -> None:
    assert fit(workers, nodes, wanted) == expected


@pytest.mark.parametrize(
    ("workers", "nodes", "said"),
    [
        (WorkersConfig(count=4, cpus=1.0), (Resources(2),), r"workers\.cpus: .*4 CPUs .*count=4.* there are 2; 2 of"),
        (WorkersConfig(count=1, gpus=1.0), (Resources(2),), r"workers\.gpus: .*1 GPUs .* there are 0;"),
        (WorkersConfig(count=1, cpus=3.0), (Resources(2), Resources(2)), r"3 CPUs.* there are 4 on 2 machines"),
    ],
)
def test_what_never_fits_is_refused_by_name(workers: WorkersConfig, nodes: tuple[Resources, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit(workers, nodes, 1)


def test_only_the_cores_that_this_process_may_use_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert local_resources().cpus == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]  # bound, but nobody listens
        began = time.monotonic()
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: nothing answers"), connect(f"127.0.0.1:{port}"):
            pass
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["head", ":6379", "head:x", ""])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="expected host:port"), connect(address):
        pass


def test_a_head_that_no_longer_answers_is_noticed_and_one_missed_knock_is_not() -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        where = f"127.0.0.1:{head.getsockname()[1]}"
        watch = HeadWatch(where, every_s=0.0)
        assert watch.check() is None
    assert watch.check() is None
    lost = watch.check()
    assert lost is not None
    assert f"{where}, does not answer any more" in str(lost)


@pytest.mark.parametrize(
    ("token", "mode", "said"),
    [
        ("", None, "If it asks for a token, put that into ~/.ray/auth_token"),
        ("x", None, "If it asks for a token, set RAY_AUTH_MODE=token; that of RAY_AUTH_TOKEN"),
        ("x", "token", "Is the token of RAY_AUTH"),
    ],
)
def test_a_cluster_that_cannot_be_joined_says_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, token: str, mode: str | None, said: str
) -> None:
    """The mode is left as it is: trials do not start where a token is used that the cluster does not ask for."""
    asked: list[str | None] = []

    def refuse(**_: Any) -> None:
        asked.append(os.environ.get("RAY_AUTH_MODE"))
        raise ConnectionError("no")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_AUTH_TOKEN": token, "HOME": "/nonexistent"})
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        os.environ.pop(name, None)
    if mode:
        os.environ["RAY_AUTH_MODE"] = mode
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"no Ray cluster could be joined \(no\)\. {said}"), connect(address):
            pass
    assert asked == [mode]
