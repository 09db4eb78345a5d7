"""Of many threads one asks whether a dead server is back, ever more rarely; the others wait for what it finds."""

import threading
import time

import pytest

from pipeline.tracking.outage import Outage
from tests.pipeline.mlflow_server import wait_for


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def entered(server: Outage) -> int:
    ticket = server.enter()
    assert ticket is not None
    return ticket


def test_calls_that_fail_together_make_one_pause(clock: list[float]) -> None:
    server = Outage()
    together = [entered(server) for _ in range(4)]
    for number, ticket in enumerate(together):
        server.leave(ticket, False, f"the {number}th has failed")
    assert server.problem == "the 0th has failed"
    assert server.enter() is None
    clock[0] = 1.0
    server.leave(entered(server), False, "still")  # so that the next pause is of 2 s
    clock[0] = 2.5
    assert server.enter() is None
    clock[0] = 3.0
    server.leave(entered(server), True)
    assert server.problem is None
    assert [server.enter() for _ in range(3)] == [2, 2, 2]


def test_a_call_that_fails_late_neither_lengthens_a_pause_nor_lets_a_second_go_ahead(clock: list[float]) -> None:
    server = Outage()
    early, late = entered(server), entered(server)
    server.leave(early, False, "away")
    clock[0] = 1.0
    ahead = entered(server)
    server.leave(late, False, "away, too")
    assert server.problem == "away"
    waiting = threading.Thread(target=lambda: tickets.append(server.enter()))
    tickets: list[int | None] = []
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    server.leave(ahead, False, "still")
    waiting.join(10)
    assert tickets == [None]


@pytest.mark.parametrize("answered", [True, None])
def test_one_goes_ahead_and_the_others_wait(answered: bool | None) -> None:
    """With None each goes ahead once, as none has found anything out; with True all go once the first is back."""
    server = Outage()
    server.leave(entered(server), False, "away")
    server.end_pause()
    lock, ahead, most, turns = threading.Lock(), [0], [0], []

    def call() -> None:
        ticket = entered(server)
        with lock:
            ahead[0] += server.problem is not None
            most[0] = max(most[0], ahead[0])
        time.sleep(0.02)
        with lock:
            ahead[0] = 0
            turns.append(ticket)
        server.leave(ticket, answered)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(turns) == 6
    assert most == [1]


def test_an_answer_that_is_late_but_good_ends_the_wait() -> None:
    server = Outage()
    early, late = entered(server), entered(server)
    server.leave(early, False, "away")
    server.end_pause()
    entered(server)  # is ahead, and does not come back
    answers: list[int | None] = []
    thread = threading.Thread(target=lambda: answers.append(server.enter()))
    thread.start()
    server.leave(late, True)
    wait_for(lambda: answers == [1], 10)
    thread.join()
