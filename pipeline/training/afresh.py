"""A process that has trained one trial and trains another: that one is trained as in a process of its own."""

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

_RESET_PEAK = "5"  # to /proc/self/clear_refs; see proc(5)


class Afresh:
    """Made before the first trial; `begin` is called between one and the next."""

    def __init__(self) -> None:
        self._random = torch.get_rng_state()

    def begin(self) -> None:
        """Forgets the trial before: what was compiled for it, its memory, and how much of it there was.

        What is compiled depends on what has been compiled before in the process: sizes that have been seen to change,
        and how often. So it is made anew, from torch's cache on the disk.
        """
        gc.collect()
        torch.compiler.reset()
        torch.set_rng_state(self._random)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError, AttributeError):  # another C library, or no Linux
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
