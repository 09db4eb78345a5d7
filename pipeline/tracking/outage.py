"""How long a server that does not answer, or a run that it refuses, is left alone."""

import threading
import time
from dataclasses import dataclass

_LONGEST_PAUSE_S = 60.0


@dataclass
class Pause:
    """1, 2, 4, ... at most 60 s, as it grows. For one thread."""

    seconds: float = 0.0
    until: float = 0.0

    def grow(self) -> None:
        """Begins a pause twice as long as the last one."""
        self.seconds = min(_LONGEST_PAUSE_S, max(1.0, 2 * self.seconds))
        self.until = time.monotonic() + self.seconds

    @property
    def lasts(self) -> bool:
        """Whether it is not over yet."""
        return time.monotonic() < self.until


class Outage:
    """Whether a server answers, as far as those know who call it; for many threads.

    A call goes between `enter` and `leave`. After a failure there are none until a pause is over. Then one goes ahead,
    and the others wait for what it comes to, so that a dead server is asked by one alone. All calls that were under way
    when a pause began make it no longer.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards all that follows
        self._problem: str | None = None
        self._pause = Pause()
        self._pauses = 0  # that there have been
        self._one_is_ahead = False

    @property
    def problem(self) -> str | None:
        """Why nothing goes out; None while all is well."""
        with self._changed:
            return self._problem

    def enter(self) -> int | None:
        """None while no call may be made; else what is to be handed to `leave` after it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._one_is_ahead)
            if self._pause.lasts:
                return None
            self._one_is_ahead = self._problem is not None
            return self._pauses

    def leave(self, entered: int, answered: bool | None, problem: str = "") -> None:
        """After a call: whether the server answered, None where nothing was asked; and what the problem was if not."""
        with self._changed:
            if answered:
                self._problem, self._pause = None, Pause()
            elif answered is not None and entered == self._pauses:
                self._problem = problem
                self._pause.grow()
                self._pauses += 1
            elif entered != self._pauses:
                return  # of before the pause: another is ahead, or may be
            self._one_is_ahead = False
            self._changed.notify_all()

    def end_pause(self) -> None:
        """The next call may be made now."""
        with self._changed:
            self._pause.until = 0.0
