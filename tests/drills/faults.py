"""Faults planted in the way of the real train function, inside the worker processes."""

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

import pipeline.training.step
import pipeline.training.trial
import pipeline.training.worker
from pipeline.running.entry import train_fn_per_worker
from pipeline.running.trial_spec import TrialSpec

Moment = Literal["entry", "step", "forward", "report"]
Deed = Literal["kill", "stop", "hold", "sleep", "nan", "nan_gradient", "drift", "forget", "hoard", "measure"]
EVERY = 0


@dataclass(frozen=True)
class Fault:
    """What is done, when, by which rank (None: by all), in which step (from 1), and how often at most.

    Moments: entry (of the train function), step (before it), forward (between forward and backward pass), report
    (after the workers have agreed on a log entry). `value` is the seconds of a sleep, the bytes of a hoard, the steps
    between two measurements.
    """

    do: Deed
    at: Moment = "step"
    rank: int | None = None
    step: int = EVERY
    times: int = 1
    value: float = 0.0


def plant(output: Path, *faults: Fault) -> None:
    """Has every trial under `output` meet these faults, and no others, from now on."""
    (output / "faults").mkdir(parents=True, exist_ok=True)
    (output / "faults" / "planted.json").write_text(json.dumps([asdict(fault) for fault in faults]))


def train_with_faults(spec: TrialSpec) -> None:
    """`train_fn_per_worker`, with the planted faults in its way."""
    way = Way(spec.folder.root.parents[3] / "faults")
    way.lie_in_wait()
    way.meet("entry")
    train_fn_per_worker(spec)


@dataclass
class Way:
    """How far a worker is on its way. `folder` holds the planted faults, and the marks of those that were met."""

    folder: Path
    step: int = 0
    model: Any = None
    shape: tuple[int, ...] = ()
    poisoned: bool = False
    poisoned_gradient: bool = False
    hoard: list[Tensor] = field(default_factory=list)

    def lie_in_wait(self) -> None:
        """Changes this process's train function, for good, so that it meets the faults."""
        build, set_rates, forward, agree = (
            pipeline.training.trial.build_model,
            pipeline.training.trial.set_learning_rates,
            pipeline.training.step.batch_loss,
            pipeline.training.worker.is_to_end,
        )

        def build_and_watch(*arguments: Any) -> Any:
            self.model = build(*arguments)
            self.model.blocks[-1].attention.o.register_forward_hook(self._poison)
            return self.model

        def meet_and_set_rates(dynamics: Any, training: Any, step: int) -> Any:
            self.step, self.poisoned, self.poisoned_gradient = step + 1, False, False
            self.meet("step")
            return set_rates(dynamics, training, step)

        def forward_and_meet(*arguments: Any, **options: Any) -> Tensor:
            loss = forward(*arguments, **options)
            self.meet("forward")
            return loss

        def agree_and_meet(*arguments: Any) -> bool:
            ends = agree(*arguments)
            self.meet("report")
            return ends

        pipeline.training.trial.build_model = build_and_watch
        pipeline.training.trial.set_learning_rates = meet_and_set_rates
        pipeline.training.step.batch_loss = forward_and_meet
        pipeline.training.worker.is_to_end = agree_and_meet

    def meet(self, moment: Moment) -> None:
        for number, fault in enumerate(self._planted()):
            here = fault.at == moment and fault.rank in (None, dist.get_rank()) and fault.step in (EVERY, self.step)
            if here and self._marks(number, fault):
                self._do(fault)

    def _poison(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        self.shape = output.shape
        if self.poisoned_gradient and output.requires_grad:
            output.register_hook(lambda gradient: gradient * torch.inf)
        return output * torch.nan if self.poisoned else None

    def _planted(self) -> list[Fault]:
        return [Fault(**each) for each in json.loads((self.folder / "planted.json").read_text())]

    def _marks(self, number: int, fault: Fault) -> bool:
        """Whether the fault has not happened often enough, on this rank."""
        for time_ in range(fault.times):
            with contextlib.suppress(FileExistsError):
                (self.folder / f"met-{number}-rank-{dist.get_rank()}-{time_}").open("x").close()
                return True
        return fault.times == EVERY

    def _do(self, fault: Fault) -> None:
        rank = dist.get_rank()
        match fault.do:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hold":
                (self.folder / f"held-{rank}").write_text(str(os.getpid()))
                while not (self.folder / "let-go").exists():
                    time.sleep(0.05)
            case "sleep":
                time.sleep(fault.value)
            case "nan":
                self.poisoned = True
            case "nan_gradient":
                self.poisoned_gradient = True
            case "drift":
                self.model.blocks[0].attention.q.mu_weight.data[0, 0] += 1e-3
            case "forget":  # a call whose output nobody uses
                layer = self.model.blocks[0].attention.q
                layer(torch.zeros(self.shape, dtype=layer.mu_weight.dtype))
            case "hoard":
                (self.folder / f"hoarding-{rank}").write_text(str(os.getpid()))
                for _ in range(600):
                    if len(self.hoard) * 2**28 < fault.value:
                        self.hoard.append(torch.ones(2**26))
                    time.sleep(0.1)
            case "measure":
                if self.step % int(fault.value) == 0:
                    with (self.folder / f"memory-{rank}.jsonl").open("a") as file:
                        file.write(json.dumps({"step": self.step, **memory()}) + "\n")


def memory() -> dict[str, int]:
    """What this process holds, once Python's garbage is collected.

    bytes: in memory, files that it reads left out. used: what it has had of malloc and not given back; the rest of
    what malloc holds is waiting to be used again. blocks: Python's small objects, which malloc knows nothing of.
    """
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    told = mallinfo()
    held = int(status["RssAnon"].split()[0]) * 1024
    return {"bytes": held, "used": told.uordblks + told.hblkhd, "blocks": sys.getallocatedblocks()}


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]
