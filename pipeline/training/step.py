"""One training step, as a function that needs no trainer."""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.batch import IGNORED, Batch
from tiny_onn.distributed import sum_over_workers
from tiny_onn.dynamics import DynamicsReport, LearningDynamics, NonFiniteStep
from tiny_onn.engine import Engine


@dataclass(frozen=True)
class StepReport:
    """A step's task loss (nats per labelled token, global mean) and token counts (global), on the device.

    `failure` is set where the step was not finite and changed nothing.
    """

    task_loss: Tensor
    labelled: Tensor
    valid: Tensor
    dynamics: DynamicsReport
    failure: NonFiniteStep | None = None


def summed_loss(logits: Float[Tensor, "b s v"], labels: Int[Tensor, "b s"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats, summed over the labelled tokens; 0 where there are none, with a gradient of 0."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def train_step(
    model: nn.Module,
    batch: Batch,
    dynamics: LearningDynamics,
    *,
    observe: bool = False,
    autocast: bool = False,
    skip_nonfinite: bool = False,
    micro_batches: int = 1,
) -> StepReport:
    """Forward, backward, meta-learning and one step of both optimizers, on this worker's shard of the batch.

    Every worker calls this equally often. A batch without any label teaches the router nothing and the model nothing,
    on all workers alike, and its loss is 0.

    Args:
        model: `dynamics.model`, in DDP where there are several workers.
        observe: also measure routing health.
        autocast: run the forward pass in bfloat16.
        skip_nonfinite: report a step that is not finite on any worker as a `failure`, instead of raising it.
        micro_batches: the number of parts, of whole rows, in which the shard goes through; at most its rows. Each
            part's activations are gone before the next begins. Workers may have different numbers of parts.

    Raises:
        NonFiniteStep: on all workers alike; nothing has been changed.
        CaptureError: a call cannot be trusted; nothing has been changed.
    """
    counts = sum_over_workers(torch.stack([(batch.labels != IGNORED).sum(), batch.valid.sum()]))
    labels = counts[0].clamp(min=1)
    failure = None
    with dynamics.watch(batch.valid, labels=labels, tokens=counts[1], observe=observe) as engine:
        try:
            share = _accumulated(model, batch, engine, labels, counts[1], micro_batches, autocast)
            report = dynamics.compute_and_apply_gradients(share, engine)
        except NonFiniteStep as error:
            if not skip_nonfinite:
                raise
            failure, report = error, error.report
    return StepReport(report.task_loss, counts[0], counts[1], report, failure)


def _accumulated(
    model: nn.Module, batch: Batch, engine: Engine, labels: Tensor, tokens: Tensor, micro_batches: int, autocast: bool
) -> Tensor:
    """The shard's part of the task loss; its graph is that of the last micro-batch, after the others' backward passes.

    `tokens`, the global number, is what the whole step adds up to: it goes with the first part, and 0 with the others.
    """
    parts = parts_of(batch, micro_batches)
    if len(parts) == 1:
        return batch_loss(model, batch, autocast=autocast) / labels
    done = labels.new_zeros(())
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        engine.use_valid(part.valid, tokens=0 if number else tokens)
        held = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with held:
            share = batch_loss(model, part, autocast=autocast) / labels
            if last:
                return share + done
            share.backward()
        done = done + share.detach()
    raise AssertionError


def parts_of(batch: Batch, number: int) -> list[Batch]:
    """The batch's rows, cut into `number` parts that differ by one row at most; a part for each row if there are fewer.

    The width stays, padding included: to know what each part needs would be to wait for the device.
    """
    rows = len(batch.valid)
    number = max(1, min(number, rows))
    cuts = [rows * each // number for each in range(number + 1)]
    return [batch.part(slice(start, stop)) for start, stop in pairwise(cuts)]


def batch_loss(model: nn.Module, batch: Batch, *, autocast: bool) -> Float[Tensor, ""]:
    """`summed_loss` of a batch, in float32 at least."""
    return summed_loss(batch_logits(model, batch, autocast=autocast), batch.labels)


def batch_logits(model: nn.Module, batch: Batch, *, autocast: bool) -> Float[Tensor, "b s v"]:
    """The logits of each next token, in float32 at least; with `autocast` computed in bfloat16."""
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=autocast):
        logits = model(*batch.inputs)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
