"""Groups of gloo processes on this machine that do as they are told, and end with whoever started them."""

import multiprocessing
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS_TO_ANSWER = 600.0  # the first compilation of kernels is the slowest answer, and takes tens of seconds
SECONDS_TO_END = 5.0


class WorkerGroup:
    """`size` processes in one process group of their own, each with what `start(*arguments)` returns in it.

    Use it as a context; on leaving, whatever happened, the processes have ended.

    Args:
        start: importable; called in each process once the group stands.
        threads: of each process.
    """

    def __init__(self, size: int, start: Callable[..., object], arguments: Sequence[object], threads: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory(prefix="tiny-onn-workers-")
        self._connections: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        context = multiprocessing.get_context("spawn")
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_obey,
                args=(theirs, rank, size, Path(self._folder.name) / "store", start, tuple(arguments), threads),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "WorkerGroup":
        return self

    def call(self, method: str, *arguments: object) -> list[Any]:
        """What `method` of each process's object returns, by rank; all processes run it at once.

        Raises:
            RuntimeError: a worker failed, died or gave no answer; names the rank.
        """
        self.ask(method, *arguments)
        return self.answers(method)

    def ask(self, method: str, *arguments: object) -> None:
        """Starts `method` on all processes and does not wait, so that several groups can work at once."""
        for connection in self._connections:
            connection.send((method, arguments))

    def answers(self, method: str) -> list[Any]:
        """Waits for what was asked last. Returns and raises as `call` does."""
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + SECONDS_TO_ANSWER
        while len(answers) < self.size:
            waiting = [rank for rank in range(self.size) if rank not in answers]
            ready = wait([self._connections[rank] for rank in waiting], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RuntimeError(f"workers {waiting} of {self.size} gave no answer to {method!r}")
            for rank in waiting:
                if self._connections[rank] in ready:
                    answers[rank] = self._answer(rank, method)
        return [answers[rank] for rank in range(self.size)]

    def _answer(self, rank: int, method: str) -> object:
        try:
            failure, answer = self._connections[rank].recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"worker {rank} of {self.size} died during {method!r}") from None
        if failure:
            raise RuntimeError(f"worker {rank} of {self.size} failed in {method!r}:\n{failure}")
        return answer

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()  # at which a worker that waits ends of itself
        deadline = time.monotonic() + SECONDS_TO_END
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        self._folder.cleanup()


def _obey(
    connection: Connection,
    rank: int,
    size: int,
    store: Path,
    start: Callable[..., object],
    arguments: tuple[object, ...],
    threads: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the benchmark, which ends its workers
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS_TO_ANSWER)
    )
    worker = None
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            break
        try:
            worker = worker or start(*arguments)
            answer: tuple[str | None, object] = None, getattr(worker, method)(*given)
        except Exception:  # of the measured code; the parent raises it, with this traceback
            answer = traceback.format_exc(), None
        try:
            connection.send(answer)
        except BrokenPipeError:
            break
    dist.destroy_process_group()
