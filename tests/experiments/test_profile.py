import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch.autograd import DeviceType

from experiments.benchmarks.cli import bench
from experiments.benchmarks.kinds_of_work import KINDS, by_kind, kind_of, seconds_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("ampere_sgemm_128x64_tn", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("CompiledFunctionBackward", "compiled between them"),
        ("triton_poi_fused_add_0", "compiled between them"),
        ("triton_per_fused_linalg_vector_norm_mul_0", "compiled between them"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_clone_1", "compiled between them"),
        ("aten::_fused_adamw_", "optimisers and clipping"),
        ("Optimizer.step#AdamW.step", "optimisers and clipping"),
        ("aten::mul", "all else"),
    ],
)
def test_an_operator_is_of_its_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_all_time_is_accounted_for() -> None:
    a = torch.rand(600, 600)

    def step() -> None:
        a @ a
        time.sleep(0.02)  # what no operator tells of

    seconds, whole = by_kind(step, 2, torch.device("cpu"))
    assert seconds["matrix products"] > 0
    assert seconds["all else"] > 0.019
    assert sum(seconds.values()) == pytest.approx(whole, rel=0.05)  # the profiler's own bookkeeping


def test_a_kernel_on_a_gpu_counts_once() -> None:
    def seen(key: str, kind: DeviceType, on_cpu: float, on_device: float) -> SimpleNamespace:
        return SimpleNamespace(key=key, device_type=kind, self_cpu_time_total=on_cpu, self_device_time_total=on_device)

    operators = [
        seen("aten::mm", DeviceType.CPU, 20.0, 3e6),
        seen("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", DeviceType.CUDA, 0.0, 3e6),
        seen("aten::_fused_adamw_", DeviceType.CPU, 10.0, 1e6),
        seen("multi_tensor_apply_kernel", DeviceType.CUDA, 0.0, 1e6),
        seen("Optimizer.step#AdamW.step", DeviceType.CUDA, 0.0, 1e6),  # a range on the device's time line, no work
        seen("cudaLaunchKernel", DeviceType.CPU, 40.0, 0.0),
    ]
    took = {kind: seconds for kind, seconds in seconds_of(operators, on_gpu=True).items() if seconds}
    assert took == {"matrix products": 3.0, "optimisers and clipping": 1.0}


def test_it_tells_of_every_variant_what_it_adds(tmp_path: Path) -> None:
    words = ["profile", "--hidden", "16", "--layers", "1", "--seq", "24", "--repeats", "1", "--threads", "1", "--json"]
    words += ["--variant", "plain_eager", "--variant", "two_pass", "--output", str(tmp_path)]
    done = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    seconds = json.loads(done.stdout)["sizes"][0]["seconds"]
    assert list(seconds) == ["plain_eager", "two_pass"]
    assert set(seconds["two_pass"]) == {*KINDS, "whole step"}
    assert seconds["two_pass"]["whole step"] > 0
    assert "(+" in (tmp_path / "profile.md").read_text()
    assert CliRunner().invoke(bench, ["profile", "--variant", "plane"]).exit_code == 2
