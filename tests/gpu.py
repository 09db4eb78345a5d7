"""Does the mathematics hold on a GPU, and what does it cost there? One command, which needs torch and jaxtyping alone.

    python -m tests.gpu                      checks, tables and a profile on the first GPU, within 8 minutes
    python -m tests.gpu --device cpu         the same at small sizes, on a machine without one
    python -m tests.gpu --output gpu.md      writes what it printed to a file as well

The checks: the gradients of both engines on the device, in float64, float32 and bfloat16, against float64 on the CPU,
for every kind of arm, and that reference against the slow twin; DistributedDataParallel with one rank (NCCL on a GPU,
gloo elsewhere). The tables: `bench step` and, at one size, `bench profile`. Exit code 1 if a check fails.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.benchmarks.kinds_of_work import KINDS, by_kind
from experiments.benchmarks.step_times import measure
from experiments.benchmarks.variants import Size, Step
from tests.tiny_onn.helpers import batch, loss_sum, slow_router_gradients, small_model
from tiny_onn.arm import arm as find_arm
from tiny_onn.compiling import compiler_problem
from tiny_onn.distributed import distribute
from tiny_onn.dynamics import LearningDynamics
from tiny_onn.layers import computation_parameters, router_parameters

Say = Callable[[str], None]
ARMS = {  # with the density of each: one of every kind of teacher, gate and regulation
    "per_token": None,
    "signed": None,
    "opening": 0.3,
    "balanced": 0.3,
    "top_k": 0.3,
    "remoe": 0.3,
    "switch": 0.3,
    "magnitude_ste": 0.3,
}
# How far a gradient may be from float64's, relative to its norm. Goodness divides by small numbers and so magnifies
# rounding; a token whose best expert changes with it moves the gradient of a small batch by a tenth.
TOLERANCE = {"float64": 1e-9, "float32": 1e-2, "bfloat16": 0.1}
SIZES = {"cuda": [(768, 1024), (768, 4096), (2048, 1024), (2048, 4096)], "cpu": [(64, 256), (128, 256)]}
VARIANTS = ("plain_eager", "plain_compiled", "fused", "fused_elementwise", "fused_observed", "hooks", "einsum")
PROFILED = ("plain_compiled", "fused", "hooks")
MINUTES = 8.0


def gradients(
    name: str, engine: str, device: torch.device, kind: str, wrap: bool = False, use_compiler: bool = False
) -> Tensor:
    """All gradients of one step of a small model, on the CPU in float64, one after another; bfloat16 by autocast."""
    arm, dtype = find_arm(name), torch.float64 if kind == "float64" else torch.float32
    model = small_model(arm, density=ARMS[name], gate_parameter="off").to(device, dtype)
    tokens, valid = (each.to(device) for each in batch(torch.Generator().manual_seed(4), 6, 24))
    dynamics = LearningDynamics(
        model,
        arm,
        torch.optim.SGD(computation_parameters(model), lr=1.0),
        torch.optim.SGD(router_parameters(model), lr=1.0),
        engine=engine,  # type: ignore[arg-type]
        clip_norm=1e9,
        use_compiler=use_compiler,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    runs = distribute(model, router_in_backward=dynamics.router_in_backward) if wrap else model
    count = int(valid[:, 1:].sum())
    with dynamics.watch(valid, labels=count) as opened:
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bfloat16"):
            total, _ = loss_sum(runs, tokens, valid)
        dynamics.compute_and_apply_gradients(total.to(dtype) / count, opened)
    steps = [(before[name] - p.detach()).flatten() for name, p in model.named_parameters()]
    return torch.cat(steps).double().cpu()


def slow_router_gradient() -> Tensor:
    """Of `per_token`, by the slow twin: in float64 on the CPU, token by token."""
    tokens, valid = batch(torch.Generator().manual_seed(4), 6, 24)
    model = small_model("per_token", gate_parameter="off")
    return torch.cat([each.flatten() for each in slow_router_gradients(model, tokens, valid, "goodness", "jsd")])


def router_part(gradient: Tensor) -> Tensor:
    """Of the gradients of `per_token`, those of P."""
    model = small_model("per_token", gate_parameter="off")
    parts = gradient.split([p.numel() for p in model.parameters()])
    names = [name for name, _ in model.named_parameters()]
    return torch.cat([part for name, part in zip(names, parts, strict=True) if name.endswith("proto_weight")])


def distance(gradient: Tensor, truth: Tensor) -> float:
    """Relative to the truth's norm; infinite where something is not finite."""
    return float((gradient - truth).norm() / truth.norm()) if bool(gradient.isfinite().all()) else float("inf")


def checks(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """(what, how far apart, how far it may be)."""
    cpu = torch.device("cpu")
    compiled = compiler_problem(device) is None
    for name in ARMS:
        truth = gradients(name, "hooks", cpu, "float64")
        if name == "per_token":
            yield (
                "per_token: the reference against the slow twin",
                distance(router_part(truth), slow_router_gradient()),
                1e-9,
            )
        for kind, tolerance in TOLERANCE.items():
            for engine in ("hooks", "fused"):
                yield f"{name}: {engine}, {kind}", distance(gradients(name, engine, device, kind), truth), tolerance
        if compiled:
            gradient = gradients(name, "fused", device, "float32", use_compiler=True)
            yield f"{name}: fused, float32, compiled", distance(gradient, truth), TOLERANCE["float32"]
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        try:
            for name in ("per_token", "balanced"):
                for engine in ("hooks", "fused"):
                    alone = gradients(name, engine, device, "float32")
                    gradient = gradients(name, engine, device, "float32", wrap=True)
                    yield f"{name}: {engine}, DDP over {backend} with one rank", distance(gradient, alone), 1e-5
        finally:
            dist.destroy_process_group()


class Told:
    """The progress of a measurement, a line each time a new one begins."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def begin(self, what: str, steps: int) -> None:
        """So many steps follow."""
        self._say(f"measuring {what}: {steps} steps")

    def step(self, doing: str) -> None:
        """The next of them begins."""


def step_tables(device: torch.device, repeats: int, say: Say, until: float) -> None:
    """The table of `bench step` at each size for which there is time."""
    for hidden, seq in SIZES[device.type]:
        if time.monotonic() > until:
            say(f"\nhidden {hidden}, {seq} tokens: left out, the time is up (--minutes)")
            continue
        size = Size(hidden, 6, seq, str(device), autocast=device.type == "cuda")
        result = measure(size, repeats, torch.get_num_threads(), VARIANTS, Told(say))
        say(f"\n| hidden {hidden}, {seq} tokens | ms | x | peak MiB |\n| - | -: | -: | -: |")
        for name, each in result["variants"].items():
            if "not_run" in each:
                say(f"| {name} | not run: {each['not_run']} | | |")
                continue
            peak = each["peak_bytes"]
            memory = f"{peak / 2**20:.0f}" if peak else each["memory_problem"]
            say(f"| {name} | {1e3 * each['seconds']:.2f} | {each['x_base']:.2f} | {memory} |")
        agreement = result["router_gradients_agree_to"]
        said = "" if agreement is None else f" The router's gradients agree to {agreement:.1e} of their norm."
        say(f"\nx: time over {result['base']}'s in the same run.{said}")


def profile(device: torch.device, say: Say) -> None:
    """Where a step's time goes, at the first size."""
    hidden, seq = SIZES[device.type][0]
    names = [name for name in PROFILED if name == "hooks" or compiler_problem(device) is None]
    cells = {}
    for name in names:
        step = Step(name, Size(hidden, 6, seq, str(device), autocast=device.type == "cuda"))
        for _ in range(3):
            step()
        cells[name] = by_kind(step, 5, device)
    say(f"\n| ms of a step, hidden {hidden}, {seq} tokens | {' | '.join(names)} |\n| - |{' -: |' * len(names)}")
    for kind in KINDS:
        say(f"| {kind} | {' | '.join(f'{1e3 * cells[name][0][kind]:.2f}' for name in names)} |")
    say(f"| whole step | {' | '.join(f'{1e3 * cells[name][1]:.2f}' for name in names)} |")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:N or cpu")
    parser.add_argument("--repeats", type=int, default=7, help="of every timed step (default: %(default)s)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="no new size begins after three quarters of them (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="a file that gets what is printed")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch sees no GPU here; on a machine without one: --device cpu, which runs all of it at small sizes"
        )
    began, lines, failed = time.monotonic(), [], 0

    def say(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    say(f"torch {torch.__version__}, {card}, Python {platform.python_version()}\n")
    for what, difference, allowed in checks(device):
        good = difference <= allowed
        failed += not good
        say(f"{'ok    ' if good else 'FAILED'} {what}: {difference:.1e} (at most {allowed:g})")
    step_tables(device, options.repeats, say, began + 45 * options.minutes)
    profile(device, say)
    say(f"\n{'all checks hold' if not failed else f'{failed} checks FAILED'}; {time.monotonic() - began:.0f} s")
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
