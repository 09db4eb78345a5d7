"""Carries out several calls at a time."""

import threading
from collections.abc import Callable


class CallPool:
    """At most `size` calls at a time, each in a thread of its own; with a size of 1 in the thread that gives them.

    The threads are daemons: unlike one of concurrent.futures, a thread that is stuck in a call does not keep the
    command from ending. All methods are called from one thread.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._free = threading.Semaphore(size)
        self._errors: list[BaseException] = []  # appended to by all threads, which lists allow

    def submit(self, call: Callable[[], object]) -> None:
        """Starts `call`; returns as soon as a thread was free for it."""
        self._free.acquire()
        if self._size == 1:
            self._do(call)
            return
        try:
            threading.Thread(target=self._do, args=(call,), name=self._name, daemon=True).start()
        except RuntimeError:  # the machine has no thread to give
            self._do(call)

    def wait(self) -> None:
        """Returns when all calls have ended.

        Raises:
            BaseException: the first that a call raised; all others were carried out nevertheless.
        """
        for _ in range(self._size):
            self._free.acquire()
        self._free.release(self._size)
        errors, self._errors = self._errors, []
        if errors:
            raise errors[0]

    def _do(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._free.release()
