"""Reads the next batch while a step is under way, so that neither a GPU nor a storage that answers late holds it up."""

import threading
import weakref
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

_LOOK_S = 5.0  # how often whoever waits looks whether the thread is alive
Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """An iterator over `items`, in their order, each fetched by a thread while the one before it is in use.

    One item is held besides the one in use, and fetching goes no further. What fetching raises is raised in the place
    of the item. The thread ends with the iterator; whatever it may wait for itself, nobody waits for it. Should it end
    otherwise, whoever waits for an item gets a RuntimeError.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._fetched: SimpleQueue[Item | BaseException] = SimpleQueue()
        parts = (items, self._wanted, self._fetched)  # not self, which is to be let go of when its user does
        self._thread = threading.Thread(target=_fetch, args=parts, name="read-ahead", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._wanted.put, False)
        self._wanted.put(True)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item = self._next()
        if isinstance(item, BaseException):
            self._fetched.put(item)  # a later call raises it again
            raise item
        self._wanted.put(True)
        return item

    def _next(self) -> Item | BaseException:
        while True:
            alive = self._thread.is_alive()  # asked first: what it fetched last is there when it has ended
            try:
                return self._fetched.get(timeout=_LOOK_S if alive else 0.0)
            except Empty:
                if not alive:
                    raise RuntimeError("the thread that prefetches batches ended without an error") from None


def _fetch(items: Iterator[Item], wanted: SimpleQueue[bool], fetched: SimpleQueue[Item | BaseException]) -> None:
    while wanted.get():
        try:
            fetched.put(next(items))
        except BaseException as error:  # StopIteration among them: all of it is for the thread that asks
            fetched.put(error)
            return
