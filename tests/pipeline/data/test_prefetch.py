"""Reading ahead changes when things are read, and nothing else."""

import gc
import itertools
import subprocess
import sys
import threading

import pytest

from pipeline.data.prefetch import Prefetch


def test_the_items_come_in_their_order_and_end() -> None:
    stream = Prefetch(iter(range(5)))
    assert list(stream) == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(stream)


def test_the_next_item_is_fetched_while_one_is_in_use_and_no_further() -> None:
    fetched = [threading.Event() for _ in range(4)]

    def items():
        for place, event in enumerate(fetched):
            event.set()
            yield place

    stream = Prefetch(items())
    assert next(stream) == 0
    assert fetched[1].wait(10)  # without being asked for
    assert not fetched[2].wait(0.2)
    assert next(stream) == 1
    assert fetched[2].wait(10)


def test_an_error_comes_in_its_place_and_stays() -> None:
    def items():
        yield "good"
        raise OSError("shard 3 is damaged")

    stream = Prefetch(items())
    assert next(stream) == "good"
    for _ in range(2):
        with pytest.raises(OSError, match="shard 3 is damaged"):
            next(stream)


def test_a_thread_that_has_ended_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.prefetch._LOOK_S", 0.05)
    release = threading.Event()

    def dies(items, wanted, fetched):
        fetched.put(next(items))
        release.wait(10)

    monkeypatch.setattr("pipeline.data.prefetch._fetch", dies)
    stream = Prefetch(iter("ab"))
    assert next(stream) == "a"
    threading.Timer(0.2, release.set).start()
    with pytest.raises(RuntimeError, match="prefetches batches ended"):
        next(stream)


def test_the_thread_ends_with_its_iterator() -> None:
    before = set(threading.enumerate())
    stream = Prefetch(itertools.count())
    (thread,) = set(threading.enumerate()) - before
    assert next(stream) == 0
    del stream
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_process_ends_though_an_item_never_comes() -> None:
    words = "import time; from pipeline.data.prefetch import Prefetch\n"
    words += "s = Prefetch(time.sleep(600) for _ in range(3)); print(1)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"
