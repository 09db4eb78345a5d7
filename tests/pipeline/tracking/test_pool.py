"""Several calls at a time: so many and no more, and nothing of it holds up the end of a process."""

import subprocess
import sys
import threading

import pytest

from pipeline.tracking.pool import CallPool


def test_so_many_at_a_time_and_no_more() -> None:
    pool, lock, under_way, most = CallPool(3, "pool"), threading.Lock(), [0], [0]
    meeting = threading.Barrier(3, timeout=10)  # passes three calls that are under way together, and no fewer

    def call() -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        meeting.wait()
        with lock:
            under_way[0] -= 1

    for _ in range(12):
        pool.submit(call)
    pool.wait()
    assert (under_way, most) == ([0], [3])


def test_alone_it_works_where_it_is_called() -> None:
    threads: list[threading.Thread] = []
    pool = CallPool(1, "pool")
    pool.submit(lambda: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("size", [1, 2])
def test_even_an_error_that_would_end_its_thread_silently_is_reported(size: int) -> None:
    pool = CallPool(size, "pool")
    pool.submit(lambda: sys.exit(3))
    with pytest.raises(SystemExit):
        pool.wait()


@pytest.mark.parametrize("size", [1, 2])
def test_an_error_is_reported_when_all_is_done(size: int) -> None:
    pool, done = CallPool(size, "pool"), []
    for number in range(4):
        pool.submit(lambda number=number: done.append(12 // number))
    with pytest.raises(ZeroDivisionError):
        pool.wait()
    assert sorted(done) == [4, 6, 12]
    pool.wait()  # it is told once


def test_a_machine_without_threads_does_one_call_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    pool, done = CallPool(2, "pool"), []
    for number in range(4):
        pool.submit(lambda number=number: done.append(number))
    pool.wait()
    assert done == [0, 1, 2, 3]


def test_a_stuck_call_holds_no_process() -> None:
    script = "import threading; from pipeline.tracking.pool import CallPool\n"
    script += "pool = CallPool(2, 'pool'); pool.submit(threading.Event().wait); print('given')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "given\n"
