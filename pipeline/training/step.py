"""One training step, as a function that needs no trainer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.data.batch import IGNORED, Batch
from tiny_onn.distributed import sum_over_workers
from tiny_onn.dynamics import DynamicsReport, LearningDynamics, NonFiniteStep


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
) -> StepReport:
    """Forward, backward, meta-learning and one step of both optimizers, on this worker's shard of the batch.

    Every worker calls this equally often. A batch without any label teaches the router nothing and the model nothing,
    on all workers alike, and its loss is 0.

    Args:
        model: `dynamics.model`, in DDP where there are several workers.
        observe: also measure routing health.
        autocast: run the forward pass in bfloat16.
        skip_nonfinite: report a step that is not finite on any worker as a `failure`, instead of raising it.

    Raises:
        NonFiniteStep: on all workers alike; nothing has been changed.
        CaptureError: a call cannot be trusted; nothing has been changed.
    """
    counts = sum_over_workers(torch.stack([(batch.labels != IGNORED).sum(), batch.valid.sum()]))
    labels = counts[0].clamp(min=1)
    failure = None
    with dynamics.watch(batch.valid, labels=labels, tokens=counts[1], observe=observe) as engine:
        share = batch_loss(model, batch, autocast=autocast) / labels
        try:
            report = dynamics.compute_and_apply_gradients(share, engine)
        except NonFiniteStep as error:
            if not skip_nonfinite:
                raise
            failure, report = error, error.report
    return StepReport(report.task_loss, counts[0], counts[1], report, failure)


def batch_loss(model: nn.Module, batch: Batch, *, autocast: bool) -> Float[Tensor, ""]:
    """`summed_loss` of a batch, in float32 at least."""
    return summed_loss(batch_logits(model, batch, autocast=autocast), batch.labels)


def batch_logits(model: nn.Module, batch: Batch, *, autocast: bool) -> Float[Tensor, "b s v"]:
    """The logits of each next token, in float32 at least; with `autocast` computed in bfloat16."""
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=autocast):
        logits = model(batch.tokens, batch.rows, batch.columns)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
