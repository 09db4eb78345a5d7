"""Output that may go away: a pipe whose reader has ended, a terminal that was closed, a disk that is full."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console


class LastingStream:
    """A stream that goes on as nothing when nobody reads it any more, and replaces what its encoding lacks.

    All but writing and flushing is the stream's own.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes as far as anybody reads it; returns the length of `text`."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self.write(text.encode(encoding, "replace").decode(encoding))
        except OSError:
            self._let_go()
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes, where there is still somebody."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        """Has the stream's descriptor lead nowhere, so that what is buffered in it fails no more."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Has standard input, output and error lead nowhere where they were closed, as by some service managers.

    Else the next file that is opened, such as a SQLite store, has the number 1, and whatever is printed goes into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def shows_a_screen(console: Console) -> bool:
    """Whether there is a screen to redraw: FORCE_COLOR makes rich take a file or a pipe for a terminal."""
    asked = getattr(console, "_force_terminal", None)  # by whoever made it
    return console.is_terminal and (bool(asked) or bool(getattr(console.file, "isatty", lambda: False)()))


@contextmanager
def lasting_output() -> Iterator[None]:
    """Standard output and error as LastingStreams, where they are the process's own: not a notebook's, nor a test's."""
    before = sys.stdout, sys.stderr
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = LastingStream(sys.stdout)
    if type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = LastingStream(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
