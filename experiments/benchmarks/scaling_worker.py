"""What one worker of the scaling benchmark does: training steps of three variants, and bare all-reduces, timed.

    none     plain data-parallel training: no meta-learning, the task loss trains the router
    fused    Goodness by the single-pass engine
    hooks    Goodness by captured tensors; P's and G's gradients follow the backward pass in a message of their own

A worker's step is the pipeline's: the numbers of labels and tokens are added up first, then forward, backward, the
router's gradient, clipping and two AdamW.
"""

import os
import time
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tiny_onn.distributed import distribute, sum_over_workers
from tiny_onn.dynamics import LearningDynamics
from tiny_onn.layers import computation_parameters, router_parameters
from tiny_onn.learning_cost import learning_cost
from tiny_onn.model import GridTransformer

VARIANTS = ("none", "fused", "hooks")
VOCABULARY = 16
_BYTES = {"float": 4, "double": 8, "long int": 8}


@dataclass(frozen=True)
class Model:
    """Of a model and of the sequences that it is trained on."""

    hidden: int
    layers: int
    seq: int


@dataclass(frozen=True)
class Traffic:
    """The all-reduces of one step: bytes of those that leave during the backward pass, and of the others."""

    in_backward: tuple[int, ...]
    apart: tuple[int, ...]

    @property
    def collectives(self) -> int:
        """How many there are."""
        return len(self.in_backward) + len(self.apart)

    @property
    def bytes(self) -> int:
        """What a worker hands to them, all together."""
        return sum(self.in_backward) + sum(self.apart)


class Worker:
    """In each process of a group; every method is called on all of them at once. Times are this process's own."""

    def __init__(self, model: Model, use_compiler: bool) -> None:
        self._trainees = {variant: Trainee(variant, model, use_compiler) for variant in VARIANTS}

    def step(self, variant: str, sequences: int) -> tuple[float, float]:
        """Seconds of a step on so many sequences of this worker's, and of its backward pass."""
        dist.barrier()
        return self._trainees[variant].timed_step(sequences)

    def traffic(self, variant: str) -> Traffic | None:
        """What a step sends, by rank 0's profiler's record of what was asked of gloo; None of the other ranks."""
        trainee = self._trainees[variant]
        if dist.get_rank() != 0:
            trainee.step(1)
            return None
        os.environ["KINETO_LOG_LEVEL"] = "99"  # this process's profiler tells of its start and stop on stderr otherwise
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
            trainee.step(1)
        assert profiler.profiler is not None
        events = [each for each in profiler.profiler.kineto_results.events() if each.name().startswith("gloo:")]
        events.sort(key=lambda event: event.start_ns())
        return _split_traffic([_payload(event) for event in events], trainee.bytes_in_backward)

    def all_reduce(self, size: int) -> float:
        """Seconds of an all-reduce of `size` bytes of float32."""
        message = torch.zeros(size // 4)
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(message)
        return time.perf_counter() - started


class Trainee:
    """A model in one variant, in DDP where there are several workers."""

    def __init__(self, variant: str, model: Model, use_compiler: bool) -> None:
        torch.manual_seed(0)
        arm = "none" if variant == "none" else "per_token"
        bare = GridTransformer(
            vocabulary=VOCABULARY,
            coordinates=32,
            hidden=model.hidden,
            layers=model.layers,
            heads=max(1, model.hidden // 32),
        )
        self._dynamics = LearningDynamics(
            bare,
            learning_cost(arm),
            torch.optim.AdamW(computation_parameters(bare), lr=1e-3, fused=True),
            torch.optim.AdamW(router_parameters(bare), lr=1e-3, fused=True),
            engine="fused" if variant == "fused" else "hooks",
            use_compiler=use_compiler and variant != "none",
        )
        self._model = distribute(bare, router_in_backward=self._dynamics.router_in_backward)
        apart = set() if self._dynamics.router_in_backward else {id(p) for p in router_parameters(bare)}
        reduced = [p for p in bare.parameters() if id(p) not in apart]
        alone = dist.get_world_size() == 1
        self.bytes_in_backward = 0 if alone else sum(p.numel() * p.element_size() for p in reduced)
        self._seq = model.seq
        self._tokens: dict[int, Tensor] = {}
        self._ends: list[float] = []
        self._dynamics.computation_optimizer.register_step_pre_hook(lambda *_: self._ends.append(time.perf_counter()))

    def step(self, sequences: int) -> float:
        """One step; when its backward pass began."""
        tokens = self._tokens_of(sequences)
        counts = sum_over_workers(torch.tensor([tokens.numel(), tokens.numel()]))
        with self._dynamics.watch(labels=counts[0], tokens=counts[1]) as engine:
            logits = self._model(tokens, tokens, tokens)
            summed = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")
            backward_began = time.perf_counter()
            self._dynamics.compute_and_apply_gradients(summed / counts[0], engine)
        return backward_began

    def timed_step(self, sequences: int) -> tuple[float, float]:
        """Seconds of one step, and of what lies between its loss and the optimizers: its backward pass and clipping."""
        self._ends.clear()
        started = time.perf_counter()
        backward_began = self.step(sequences)
        ended = time.perf_counter()
        return ended - started, self._ends[0] - backward_began

    def _tokens_of(self, sequences: int) -> Tensor:
        if sequences not in self._tokens:
            generator = torch.Generator().manual_seed(dist.get_rank())
            self._tokens[sequences] = torch.randint(VOCABULARY, (sequences, self._seq), generator=generator)
        return self._tokens[sequences]


def _payload(event: Any) -> int:
    """Bytes of a collective's tensors; its other arguments have no shape. `event` is Kineto's own, as what torch 2.9
    makes of it knows no types."""
    return sum(_BYTES[kind] * prod(shape) for kind, shape in zip(event.dtypes(), event.shapes(), strict=True) if shape)


def _split_traffic(messages: list[int], in_backward: int) -> Traffic:
    """The first message holds the counts and the last the losses; DDP's lie between, and are as long as it says."""
    if not messages:
        return Traffic((), ())
    first, *between, last = messages
    if sum(between) != in_backward:
        raise AssertionError(f"a step sent {messages} bytes; expected {in_backward} of them between first and last")
    return Traffic(tuple(between), (first, last))
