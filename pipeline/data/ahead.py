"""Reads the next batch while a step is under way, so that neither a GPU nor a storage that answers late holds it up."""

import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """An iterator over `items`, in their order, each fetched by a thread while the one before it is in use.

    One item is held besides the one in use, and fetching goes no further. What fetching raises is raised in the place
    of the item. The thread ends with the iterator; whatever it may wait for itself, nobody waits for it.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._fetched: SimpleQueue[Item | BaseException] = SimpleQueue()
        parts = (items, self._wanted, self._fetched)  # not self, which is to be let go of when its user does
        threading.Thread(target=_fetch, args=parts, name="read-ahead", daemon=True).start()
        weakref.finalize(self, self._wanted.put, False)
        self._wanted.put(True)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        found = self._fetched.get()
        if isinstance(found, BaseException):
            self._fetched.put(found)  # for whoever asks once more
            raise found
        self._wanted.put(True)
        return found


def _fetch(items: Iterator[Item], wanted: SimpleQueue[bool], fetched: SimpleQueue[Item | BaseException]) -> None:
    while wanted.get():
        try:
            fetched.put(next(items))
        except BaseException as error:  # StopIteration among them: all of it is for the thread that asks
            fetched.put(error)
            return
