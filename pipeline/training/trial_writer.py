"""What rank 0 alone writes of a trial."""

import json
import logging
import math
import shutil
import time
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, BinaryIO

import torch

from pipeline import measures
from pipeline.errors import UserError
from pipeline.files import flush, write_whole, write_whole_with
from pipeline.records.spool import Spool, spool_lines
from pipeline.settings.cadence import is_saved, is_snapshot
from pipeline.training.build import compiling
from pipeline.training.checkpoint import best_step, checkpoints, read_checkpoint, save_checkpoint, write_tensors
from pipeline.training.distributions import DistributionPieces
from pipeline.training.evidence import disk_errors
from pipeline.training.kept import held_out_losses, model_of
from pipeline.training.machine import environment
from pipeline.training.model_file import save_model
from pipeline.training.places import places_of
from pipeline.training.routing_map import map_routing, save_map
from pipeline.training.trial import Entry, OpenTrial
from tiny_onn.layers import sparse_layers
from tiny_onn.routing_health import Health

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialWriter:
    """Writes a trial's entries and its result; see `open_writer`.

    `logged` is what was logged at the step that the trial goes on from, and `losses` the held-out losses by step, those
    of earlier attempts too. Every method raises TrainingStopped where the disk refuses.
    """

    trial: OpenTrial
    spool: Spool
    logged: dict[str, float]
    losses: dict[int, float]

    def begin(self) -> None:
        """At the start of a trial: the prototypes as they were initialised."""
        if self.trial.first == 0 and self.trial.training.prototype_snapshots:
            with disk_errors(self.trial.folder, "writing the first prototypes", self.trial.digests):
                self._prototypes(0, None)

    def write(self, entry: Entry) -> None:
        """Writes a logged step, and what is due with it; the checkpoint last, for it says that the rest is there."""
        trial, training, health = self.trial, self.trial.training, entry.report.dynamics.health
        with disk_errors(trial.folder, f"writing what step {entry.step} came to", trial.digests):
            if entry.examples:
                write_whole(trial.folder.predictions, json.dumps(entry.examples))
            for name, drawn in entry.figures.items():
                place = trial.folder.figures / name / f"step-{entry.step:06d}.png"
                write_whole_with(place, partial(_write, drawn))
            self.spool.write(entry.step, entry.metrics)
            if entry.evaluated:
                self._distributions(entry.step, health)
                self.losses[entry.step] = entry.metrics.get(measures.HELD_OUT_LOSS, math.nan)
                self._routing_maps(entry.step)
            if is_snapshot(training, entry.step):
                self._prototypes(entry.step, health)
            if is_saved(training, entry.step):
                self.spool.flush()  # or, after a loss of power, a run could go on from past its own metrics
                place, keep = trial.folder.checkpoints, training.keep_checkpoints
                beside = trial.forgetting.state() if trial.forgetting else {}
                with trial.clock.within("checkpoints"):
                    save_checkpoint(place, entry.step, trial.dynamics, trial.digest, keep, self.losses, beside)

    def result(self, metrics: dict[str, float]) -> None:
        """The models, and the result, which is written last: with it, the trial is finished."""
        trial = self.trial
        with disk_errors(trial.folder, "writing the result", trial.digests):
            with trial.clock.within("checkpoints"):
                problem = self._models()
            result = {
                "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
                "steps": trial.training.steps,
                "seconds": time.monotonic() - trial.started,
                "parameters": sum(p.numel() for p in trial.model.parameters()),
                "engine": trial.dynamics.engine,
                "compiled": compiling(trial.training, trial.device, trial.model),
                "skipped_steps": trial.skipped.steps,
                "environment": environment(trial.device),
                "checkpoint_problems": [*trial.problems, *problem],
                "phases": self._phases(),
            }
            write_whole(trial.folder.result, json.dumps(result, indent=1))

    def _phases(self) -> dict[str, Any]:
        """Where this process's time has gone until now, as its clock records it."""
        clock = self.trial.clock
        clock.enter(clock.phase)
        clock.move("steps", {**self.trial.step_times.parts(), "data": self.trial.window.waited_in_all})
        return clock.record()

    def _models(self) -> list[str]:
        """Writes the model as it is, and at its best where that was earlier; what is wrong with that checkpoint."""
        trial, last = self.trial, self.trial.training.steps
        kept = {int(path.name.removeprefix("step-")): path for path in checkpoints(trial.folder.checkpoints)}
        best, problem = best_step(kept, self.losses), list[str]()
        shutil.rmtree(trial.folder.best_model, ignore_errors=True)
        save = partial(save_model, model=trial.model, experiment=trial.experiment)
        if best is not None and best != last:
            try:
                weights = model_of(read_checkpoint(kept[best], trial.digests)[1])
                loss = self.losses[best]
                save(trial.folder.best_model, step=best, held_out_loss=loss, is_best=True, weights=weights)
            except UserError as error:
                problem.append(str(error))
        save(trial.folder.model, step=last, held_out_loss=self.losses.get(last), is_best=best == last)
        return problem

    def _prototypes(self, step: int, health: dict[str, Health] | None) -> None:
        """A snapshot of all prototypes and of how each expert was judged."""
        tensors, layers = {}, sparse_layers(self.trial.model)
        places = places_of(layers)
        for name, layer in layers.items():
            title = "L{}.{}".format(*places[name])
            tensors[f"{title}/prototypes"] = layer.proto_weight.detach().float().cpu().contiguous()
            if health:
                seen = health[name]
                tensors[f"{title}/activation"] = (seen.active / seen.scalars[0]).float().cpu()
                if self.trial.dynamics.cost is not None:
                    tensors[f"{title}/good"] = (seen.good / seen.scalars[3]).float().cpu()
            else:  # nothing has been routed yet: all experts stand as they were initialised
                tensors[f"{title}/activation"] = torch.zeros(layer.out_features)
        folder = self.trial.folder.prototypes
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".step-{step:06d}"
        write_tensors(aside, tensors)
        flush(aside)
        aside.rename(folder / f"step-{step:06d}.safetensors")

    def _routing_maps(self, step: int) -> None:
        """The routing of the first row of the first held-out items, as the task draws it."""
        trial = self.trial
        if trial.task.maps is None:
            return
        rows = {row.task_id: row for row in reversed(trial.held_out)}  # of each item the first row
        wanted = list(dict.fromkeys(row.task_id for row in trial.held_out))[: trial.training.routing_maps]
        for number, task_id in enumerate(wanted, 1):
            place = trial.folder.routing_maps / str(number) / f"step-{step:06d}.safetensors"
            try:
                save_map(place, map_routing(trial.model, rows[task_id], trial.task, step=step))
            except UserError as error:  # a model of somebody else's may route something else than the tokens
                _log.warning("Step %d: no routing map of %s is written. %s", step, task_id, error)

    @cached_property
    def _pieces(self) -> DistributionPieces:
        return DistributionPieces(self.trial.folder.distributions)

    def _distributions(self, step: int, health: dict[str, Health] | None) -> None:
        """Adds the step's histograms of learning cost and Goodness, by layer."""
        layers: dict[int, list[Health]] = {}
        places = places_of(health or {})
        for name, seen in (health or {}).items():
            layers.setdefault(places[name][0], []).append(seen)
        self._pieces.add(step, layers)


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def open_writer(trial: OpenTrial) -> TrialWriter:
    """The writer of a trial, with what earlier attempts have logged; the count of skipped steps goes on from there."""
    spool = Spool(trial.folder.spool)
    logged = next((line.metrics for line in spool_lines(trial.folder.spool) if line.step == trial.first), {})
    losses = held_out_losses(trial.folder)
    trial.skipped.steps = int(logged.get(measures.SKIPPED_STEPS, 0))
    return TrialWriter(trial, spool, logged, losses)
