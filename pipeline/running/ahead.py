"""A call that is made in a thread of its own, ahead of the time when its outcome is needed."""

import threading
from collections.abc import Callable


class Ahead:
    """Makes a call in a thread at once; `wait` waits for it.

    The thread stays until `end`, also when the call has returned: Ray asks Linux to kill the processes that it starts
    when their parent dies (PR_SET_PDEATHSIG), and that is the thread that started them, not the process.
    """

    def __init__(self, call: Callable[[], object], name: str) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._over, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error
        self._over.set()
        self._end.wait()

    def wait(self) -> None:
        """Returns when the call has returned.

        Raises:
            BaseException: what the call has raised.
        """
        self._over.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Ends the thread; one whose call goes on still ends after that, and is not waited for."""
        self._end.set()
        if self._over.is_set():
            self._thread.join()
