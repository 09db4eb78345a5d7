"""Does an observer keep its contract? Tried on a small sample, before a run starts, as learning costs are."""

import torch

from pipeline.data.contract import find_task
from pipeline.settings.cadence import logged_steps
from pipeline.settings.config import Experiment
from pipeline.training.build import build_dynamics, build_model
from pipeline.training.observer import Observer, ObserverFailed, observe
from pipeline.training.sample import sample_rows
from pipeline.training.step import train_step

_WIDEST = 256  # hidden, of the model that it is tried on


def observer_problem(observer: Observer, experiment: Experiment) -> str | None:
    """What is wrong with an observer, as a sentence without its subject; None where nothing is.

    It is called as a worker would call it, for the first step that is logged and for the last, after a step on two
    small rows; with the experiment's arm and number of layers, and its width up to 256.
    """
    size, training = experiment.model, experiment.training
    width = min(size.hidden, max(_WIDEST // (2 * size.heads), 1) * 2 * size.heads)
    tried = experiment.model_copy(
        update={
            "model": size.model_copy(update={"hidden": width}),
            "training": training.model_copy(update={"compile": "eager", "precision": "float32"}),
        }
    )
    batch = find_task(experiment.data.task).batch(sample_rows(experiment))
    with torch.random.fork_rng(devices=[]):
        model = build_model(tried)
        health = train_step(model, batch, build_dynamics(model, tried.training), observe=True).dynamics.health
        for step in sorted({logged_steps(training)[0], training.steps}):
            try:
                observe(observer, step, model, batch, health or {}, draw=True)
            except ObserverFailed as failed:
                return f"{failed}; it was tried as for step {step}"
    return None
