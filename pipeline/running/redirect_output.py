"""Keeps other people's chatter off the screen: it goes to a file."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pipeline.files import SECRET_MODE
from pipeline.terminal import LastingStream


@contextmanager
def redirect_output(path: Path, console: Console) -> Iterator[None]:
    """All that this process prints, libraries in C++ included, is appended to `path`; `console` keeps its place.

    A console that does not write to standard output or error (in a notebook, a test) leaves all as it is; so does a
    thread that is not the main one, beside which others may print.
    """
    screen = console.file
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        descriptor = screen.fileno()
    except (OSError, AttributeError):
        descriptor = -1
    if descriptor not in (1, 2):
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, SECRET_MODE)
    with os.fdopen(os.dup(descriptor), "w", encoding=getattr(screen, "encoding", "utf-8"), buffering=1) as own:
        console.file = LastingStream(own)  # type: ignore[assignment]
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
            os.close(log)
            console.file = screen
