"""A trial's process needs no torch, and what it holds of the cluster can be given back when it dies."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

import pipeline.running.cluster
from pipeline.running.cluster import Resources, connect

ROOT = Path(__file__).parents[3]
_IN_A_TRIALS_PROCESS = (
    "pipeline.running.tuner",
    "pipeline.running.trainer",
    "pipeline.ray_private",
    "pipeline.training.rendezvous",
    "pipeline.training.stopping",
    "ray.tune",
)


def test_a_trials_process_imports_no_torch() -> None:
    """125 MB less for every trial that runs."""
    imports = "".join(f"import {name}\n" for name in _IN_A_TRIALS_PROCESS)
    check = "import sys\nprint(*[name for name in ('torch', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", imports + check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_command_checks_a_run_without_what_only_workers_need(tmp_path: Path) -> None:
    """Ray starts after the checks; torch's compiler and Ray Train would delay it by a second or two."""
    check = f"""
import sys
from pathlib import Path
import pipeline.cli, pipeline.run
from pipeline.planning.opening import opening_words
from pipeline.planning.preflight import check_metrics, check_start
from pipeline.settings.experiment_file import read_experiment
from pipeline.settings.trials import trials_of
experiment = read_experiment(Path({str(ROOT / "experiments" / "ablation.yaml")!r}))
trials, output = trials_of(experiment, "t"), Path({str(tmp_path)!r})
check_metrics(experiment)
check_start(trials, output, None)
assert len(opening_words(experiment, trials, 0, output, None)) == 4
print(*[name for name in ("torch", "torch._dynamo", "ray", "mlflow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torch"]


def test_a_trial_starts_no_process_but_its_workers_and_they_import_no_trainer(tmp_path: Path) -> None:
    """Ray Data's coordinator, and all of Ray Train's trainers in each worker, would each take a second or so."""

    class Driver:
        def drive(self, folder: Path) -> None:
            from ray.train.v2.api.config import RunConfig, ScalingConfig

            from pipeline.running.trainer import new_trainer
            from pipeline.training.rendezvous import ProcessGroup

            def train(given: dict[str, Path]) -> None:
                import os
                import sys

                seen = {"device": os.environ["ACCELERATE_TORCH_DEVICE"], "trainers": "ray.train.torch" in sys.modules}
                (given["folder"] / "found").write_text(json.dumps(seen))

            new_trainer(
                train,
                train_loop_config={"folder": folder},
                held=folder / "held",
                backend_config=ProcessGroup(backend="gloo", timeout_s=60, placement=str(folder / "placement")),
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
                run_config=RunConfig(name="t", storage_path=str(folder / "ray")),
            ).fit()

    with connect(None):
        import ray

        driver = ray.remote(num_cpus=0)(Driver).remote()
        ray.get(driver.drive.remote(tmp_path))
        running = []
        for each in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended meanwhile
                running.append(" ".join(each.cmdline()))
    assert any("ray::" in line for line in running), running
    assert [line for line in running if "Coordinator" in line] == []
    if not torch.cuda.is_available():
        assert json.loads((tmp_path / "found").read_text()) == {"device": "cpu", "trainers": False}


@pytest.mark.slow
def test_what_a_dead_process_held_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One CPU, reserved by an actor that dies: whoever comes next waits for ever, unless it is given back."""
    monkeypatch.setattr(pipeline.running.cluster, "local_resources", lambda: Resources(1))
    with connect(None):
        import ray
        from ray.util.placement_group import placement_group

        from pipeline.running.trainer import give_back

        class Holder:
            def reserve(self) -> str:
                group = placement_group([{"CPU": 1.0}])
                assert group.wait(30)
                return group.id.hex()

        held = tmp_path / "held"
        give_back(held)  # nothing was ever held
        holder = ray.remote(num_cpus=0)(Holder).remote()
        held.write_text(ray.get(holder.reserve.remote()))
        ray.kill(holder)
        next_one = placement_group([{"CPU": 1.0}])
        assert not next_one.wait(5)
        give_back(held)
        assert next_one.wait(30)
        assert not held.exists()
        give_back(held)
        held.write_text(next_one.id.hex())
        give_back(held)
        held.write_text(next_one.id.hex())
        give_back(held)  # of a group that is gone
