"""Ctrl-C, SIGTERM and a closed terminal as a value to look at, so that a command ends in its own way."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Between entering and leaving, SIGINT, SIGTERM and SIGHUP only set `signal` (the first one counts).

    A SIGHUP that is ignored, as under nohup, stays so.

    Python delivers signals to the main thread alone: in any other thread this does nothing, and handlers are kept.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
            self._before = {
                number: handler
                for number, handler in handlers.items()
                if number != signal.SIGHUP or handler != signal.SIG_IGN
            }
            self.hold()
        return self

    def hold(self) -> None:
        """Takes the signals again, after something (ray.init) has put its own handlers there."""
        for number in self._before:
            signal.signal(number, self._on_signal)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
