"""A trial's process needs no torch, and what it holds of the cluster can be given back when it dies."""

import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.running.cluster
from pipeline.running.cluster import Resources, connect

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
