"""What a command says before it starts: what will run, roughly how long it takes, and where the result will be."""

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.planning.forecast import SWEEP_START_S, TRIAL_START_S, at_once
from pipeline.planning.preflight import parameters_of
from pipeline.running.cluster import local_resources
from pipeline.running.live import duration
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial

# A step on two cores, from `tiny-onn bench step` by width at 512 tokens: 61 ms with 0.2 million parameters, 554 ms with
# 12.6 million. The rest is for logged steps, evaluations and checkpoints.
_SECONDS_A_TOKEN = 1.04e-4
_SECONDS_A_TOKEN_AND_PARAMETER = 7.8e-11
_WITH_THE_REST = 1.3
_FILLED = 0.7  # of batch_tokens, as in the ablation


def opening_words(
    experiment: Experiment, left: Sequence[Trial], ended: int, output: Path, address: str | None
) -> list[str]:
    """The lines; none where nothing is left to run. `ended` trials are done already."""
    if not left:
        return []
    lines = [f"What:     {_counted(left)}" + (f"; {ended} have ended before" if ended else "")]
    if experiment.study and experiment.study.question:
        lines.append(f"Question: {experiment.study.question}")
    lines.append(f"How long: {_how_long(experiment, left, address)}")
    sweep = Output(output).sweep(experiment.name)
    where = sweep / "report" / "report.html" if experiment.sweep else sweep / "trials" / left[0].key
    return [*lines, f"Result:   {where}"]


def rough_seconds(left: Sequence[Trial], together: int) -> float:
    """What the trials would take, `together` at a time, on idle cores like those that were measured; within a factor
    of two or so. `tiny-onn plan` times steps instead."""
    return SWEEP_START_S + sum(map(_of_trial, left)) / together


def _of_trial(trial: Trial) -> float:
    training = trial.experiment.training
    rate = _SECONDS_A_TOKEN + _SECONDS_A_TOKEN_AND_PARAMETER * parameters_of(trial.experiment)
    return TRIAL_START_S + _WITH_THE_REST * training.steps * _FILLED * training.batch_tokens * rate


def _how_long(experiment: Experiment, left: Sequence[Trial], address: str | None) -> str:
    shown = "the time left is shown while it runs"
    if address is not None or any(trial.experiment.workers.gpus for trial in left):
        return f"not known beforehand; {shown}"
    try:
        together = at_once(left, (local_resources(),), experiment.sweep.max_concurrent if experiment.sweep else None)
    except UserError:
        return f"not known beforehand; {shown}"
    most = "at most " if experiment.sweep and experiment.sweep.scheduler else ""
    seconds = rough_seconds(left, together)
    about = duration(seconds) if seconds < 60 else duration(60 * math.ceil(seconds / 60)).replace(" 00 s", "")
    return f"roughly {most}{about}, {together} at once, if little else runs on this machine; {shown}"


def _counted(left: Sequence[Trial]) -> str:
    arms = list(dict.fromkeys(trial.experiment.training.arm for trial in left))
    seeds = {trial.experiment.training.seed for trial in left}
    text = f"{len(left)} trial{'s' * (len(left) != 1)}"
    if len(left) > 1:
        others = len(left) / (len(arms) * len(seeds))
        text += f", {len(arms)} arm{'s' * (len(arms) > 1)} x {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        text += f" x {others:g} settings" if others > 1 else ""
    return f"{text} ({', '.join(arms[:8])}{', ...' if len(arms) > 8 else ''})"
