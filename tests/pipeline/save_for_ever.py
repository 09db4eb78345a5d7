"""A process that does nothing but save checkpoints, to be killed or refused the disk."""

import argparse
import resource
from pathlib import Path

import torch

from pipeline.training.build import build_dynamics, build_model
from pipeline.training.checkpoint import checkpoints, save_checkpoint
from tests.pipeline.samples import small_experiment
from tiny_onn.dynamics import LearningDynamics


def dynamics_at(step: int) -> LearningDynamics:
    """A small model and Adam's moments of which every number is `step`."""
    experiment = small_experiment()
    dynamics = build_dynamics(build_model(experiment), experiment.training)
    for optimizer in (dynamics.computation_optimizer, dynamics.router_optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    fill(dynamics, step)
    return dynamics


def fill(dynamics: LearningDynamics, step: int) -> None:
    """Has every number of the state be `step`."""
    for optimizer in (dynamics.computation_optimizer, dynamics.router_optimizer):
        for parameter, slots in optimizer.state.items():
            for tensor in (parameter.data, slots["exp_avg"], slots["exp_avg_sq"]):
                tensor.fill_(step)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("digest")
    parser.add_argument("--limit-after", type=int, help="no file may grow past 1 KB after this step")
    arguments = parser.parse_args()
    step = max((int(path.name[5:]) for path in checkpoints(arguments.folder)), default=0)
    dynamics = dynamics_at(step)
    while True:
        step += 1
        fill(dynamics, step)
        try:
            save_checkpoint(arguments.folder, step, dynamics, arguments.digest, keep=2)
        except OSError as error:
            print(f"OSError {error}", flush=True)
            raise SystemExit(3) from None
        print(step, flush=True)
        if step == arguments.limit_after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
