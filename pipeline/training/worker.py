"""What every Ray Train worker runs: one trial's training, from its newest checkpoint to its result."""

from collections.abc import Callable, Sequence

import torch

from pipeline.layout import TrialFolder
from pipeline.records.pruned import write_pruned
from pipeline.settings.config import Experiment
from pipeline.storage.storage import Place
from pipeline.training.agreement import is_to_end
from pipeline.training.evidence import disk_errors
from pipeline.training.measuring import MEASURES, PHASE_OF
from pipeline.training.stopping import TrainingStopped
from pipeline.training.trial import Entry, Measure, OpenTrial, batches, open_trial, take_step
from pipeline.training.trial_writer import open_writer

Record = Callable[[Entry], None]
"""Writes an entry, or passes it on; raises TrainingStopped where training is to stop."""


def run_training(
    experiment: Experiment,
    folder: TrialFolder,
    data: Place,
    device: torch.device,
    on_log: Callable[[int], None] = lambda step: None,
    check_ours: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Trains `experiment` in `folder` and returns its last metrics; every worker of the process group calls it.

    It goes on from the newest good checkpoint in the folder. Rank 0 alone writes: the spool, prototype snapshots,
    checkpoints, distributions, predictions, the model, and last of all the result. A trial that is to be pruned ends at
    the next logged step.

    Args:
        on_log: called with the step on every worker once an entry is written, before the workers agree on it; a
            TrainingStopped that it raises stops all of them.
        check_ours: called by rank 0 before it writes; raises TrainingStopped where another has taken the trial up.

    Raises:
        TrainingStopped: a loss or gradient is not finite, a captured call cannot be trusted, the workers' replicas are
            out of step, or the disk is full; on all workers in the same step.
    """
    trial = open_trial(experiment, folder, data, device)
    writer = open_writer(trial) if trial.rank == 0 else None
    records: list[Record] = [lambda entry: check_ours(), writer.write] if writer else []
    if writer:
        writer.begin()
    entry = train(
        trial,
        measures=MEASURES,
        records=[*records, lambda entry: on_log(entry.step)],
        prunes=lambda entry: writer is not None and not entry.last and folder.prune.exists(),
    )
    metrics = entry.metrics if entry else writer.logged if writer else {}
    if writer and entry and not entry.last:
        with disk_errors(folder, "writing that it is pruned", trial.digests):
            write_pruned(folder, entry.step)
    elif writer:
        check_ours()
        writer.result(metrics)
    return metrics


def train(
    trial: OpenTrial, *, measures: Sequence[Measure], records: Sequence[Record], prunes: Callable[[Entry], bool]
) -> Entry | None:
    """The training loop. Every worker runs it, with the same measures and with records of its own.

    Args:
        measures: fill the entry of a logged step, in this order.
        records: take the entry that is filled, in this order.
        prunes: whether this worker wants the trial to end with this entry.

    Returns:
        the last entry, which is not that of the last step where the trial is pruned; None if nothing was left to train.

    Raises:
        TrainingStopped: a step failed, or a record stopped training; the latter on all workers at the same entry.
    """
    entry: Entry | None = None
    trial.clock.enter("steps")
    for step, epoch, batch in batches(trial):
        logged = take_step(trial, step, epoch, batch)
        if logged is None:
            continue
        entry = logged
        with trial.clock.within("logging extra"):
            for measure in measures:
                with trial.clock.within(PHASE_OF.get(measure, trial.clock.phase)):
                    measure(trial, entry)
            ends = is_to_end(_stopped(records, entry), prunes(entry), trial.device)
        if ends:
            break
    trial.clock.enter("worker")
    return entry


def _stopped(records: Sequence[Record], entry: Entry) -> TrainingStopped | None:
    """Why training is to stop; it is raised once all workers know."""
    try:
        for record in records:
            record(entry)
    except TrainingStopped as error:
        return error
    return None
