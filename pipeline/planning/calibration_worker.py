"""`python -m pipeline.planning.calibration_worker`: a few steps of one kind of trial, timed in a process of its own.

Reads {"experiment": ..., "data": path} from standard input; writes JSON lines: {"did": what} after each part, and in
the end what `Measured` holds.
"""

import json
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.settings.config import Experiment

WARM_UP, TIMED, OBSERVED = 2, 8, 2  # steps
_EVALUATED = 16  # held-out rows, of which the time for all is told
PARTS = 3 + WARM_UP + TIMED + OBSERVED


@dataclass(frozen=True)
class Measured:
    """What one worker of a trial takes. Seconds; bytes of this process at its largest, or of the GPU's memory.

    Of a GPU, what torch has taken of it, given out or held back, without what the driver itself needs there.
    """

    parameters: int
    prepare_seconds: float  # opening the data, building the model
    compile_seconds: float  # by which the first steps are slower than the later ones
    seconds_per_token: float  # of a step, padding included
    observe_seconds: float  # by which a logged step is slower
    evaluate_seconds: float  # all held-out rows once
    decode_seconds: float  # training.decode_tasks decoded, of the held-out and of the evaluation tasks
    checkpoint_seconds: float
    core_share: float  # of the time that it asked for, the part that it got: less than 1 on a busy machine
    built_bytes: int  # when the model is there, and nothing has run
    peak_bytes: int
    evaluation_seconds: float = 0.0  # all evaluation rows once
    forgetting_seconds: float = 0.0  # the sample of earlier tasks once, where training goes task after task
    gpu_bytes: int = 0  # that one GPU has in all; 0 without


def measure(experiment: Experiment, data: Path, tell: Callable[[str], None]) -> Measured:
    """Trains one worker's share of `experiment` for a few steps, by itself; what it has learnt is thrown away."""
    import ray.train.torch  # noqa: F401 - a worker has it in its memory
    import torch

    from pipeline.data.sequential import SequentialLoader, open_loader
    from pipeline.data.shards import open_prepared, read_rows
    from pipeline.training.build import build_dynamics, build_model, set_learning_rates
    from pipeline.training.checkpoint import save_checkpoint
    from pipeline.training.evaluate import evaluate
    from pipeline.training.forgetting import Forgetting
    from pipeline.training.step import train_step
    from tiny_onn.torch_private import compile_in_this_process

    compile_in_this_process()
    workers, training = experiment.workers, experiment.training
    autocast = training.precision == "bfloat16"
    device = torch.device("cuda" if workers.gpus else "cpu")
    if not workers.gpus:
        torch.set_num_threads(max(1, math.floor(workers.cpus)))

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    began = now()
    prepared = open_prepared(data, task=experiment.data.task)
    held_out = read_rows(prepared, "held_out")
    evaluation = read_rows(prepared, "evaluation") if training.score_evaluation != "never" else []
    loader = open_loader(experiment, prepared, 0, workers.count)
    earlier = Forgetting(loader, autocast).rows if isinstance(loader, SequentialLoader) else []
    model = build_model(experiment, device)
    dynamics = build_dynamics(model, training)
    built, built_bytes = now() - began, _bytes(device)
    tell("built")
    stream = loader.stream()
    seconds: dict[str, list[float]] = {"warm-up": [], "step": [], "logged step": []}
    busy: list[float] = []  # seconds of CPU of each timed step
    tokens: dict[str, list[int]] = {name: [] for name in seconds}
    for step, kind in enumerate(["warm-up"] * WARM_UP + ["step"] * TIMED + ["logged step"] * OBSERVED):
        _, batch = next(stream)
        batch = batch.to(device)
        set_learning_rates(dynamics, training, step)
        began, cpu_began = now(), time.process_time()
        observe = kind == "logged step" or step == 0
        parts = training.micro_batches
        train_step(model, batch, dynamics, observe=observe, autocast=autocast, skip_nonfinite=True, micro_batches=parts)
        seconds[kind].append(now() - began)
        if kind == "step":
            busy.append(time.process_time() - cpu_began)
        tokens[kind].append(batch.tokens.numel())
        tell(kind)
    got = sum(busy) / (sum(seconds["step"]) * torch.get_num_threads())
    per_token = sum(seconds["step"]) / sum(tokens["step"])
    late = {kind: [s - per_token * n for s, n in zip(seconds[kind], tokens[kind], strict=True)] for kind in seconds}
    some = held_out[:: max(1, len(held_out) // _EVALUATED)]
    batch_tokens = training.batch_tokens // workers.count
    task = loader.task
    evaluate(model, some[:2], batch_tokens, 0, 1, autocast=autocast, task=task)  # warms up
    began = now()
    evaluate(model, some, batch_tokens, 0, 1, autocast=autocast, task=task)
    evaluating = (now() - began) * sum(map(len, held_out)) / sum(map(len, some)) / workers.count
    tell("evaluated")
    decoding = 0.0
    if task.examples is not None:
        chosen = [task.examples.choose(part, training.decode_tasks) for part in (held_out, evaluation)]
        shares, at_once = [part[:: workers.count] for part in chosen], task.examples.at_once(experiment)
        began = now()
        # One batch. An untrained model seldom stops by itself: this is the most it may take.
        task.examples.draw(model, shares[0][:at_once], experiment, lambda: None)
        decoding = (now() - began) * sum(math.ceil(len(part) / at_once) for part in shares)
    with tempfile.TemporaryDirectory() as folder:
        began = now()
        save_checkpoint(Path(folder), 1, dynamics, experiment.digest(), 1)
        saving = now() - began
    tell("decoded")
    return Measured(
        parameters=sum(p.numel() for p in model.parameters()),
        prepare_seconds=built,
        compile_seconds=max(0.0, sum(late["warm-up"])),
        seconds_per_token=per_token,
        observe_seconds=max(0.0, statistics.fmean(late["logged step"])),
        evaluate_seconds=evaluating,
        evaluation_seconds=evaluating * sum(map(len, evaluation)) / sum(map(len, held_out)),
        forgetting_seconds=evaluating * sum(map(len, earlier)) / sum(map(len, held_out)),
        decode_seconds=decoding,
        checkpoint_seconds=saving,
        core_share=1.0 if workers.gpus else min(1.0, got),
        built_bytes=built_bytes,
        peak_bytes=_bytes(device),
        gpu_bytes=torch.cuda.get_device_properties(device).total_memory if workers.gpus else 0,
    )


def _bytes(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Of the process."""
    job = json.load(sys.stdin)
    experiment = Experiment.model_validate_json(json.dumps(job["experiment"]))
    lines, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no measurement

    def write(value: dict[str, Any]) -> None:
        lines.write(json.dumps(value) + "\n")
        lines.flush()

    write(asdict(measure(experiment, Path(job["data"]), lambda what: write({"did": what}))))


if __name__ == "__main__":
    main()
