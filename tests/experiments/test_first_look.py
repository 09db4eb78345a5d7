import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.samples import write_config

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_first_look_runs_from_end_to_end(tmp_path: Path) -> None:
    """On small tasks instead of ARC: what it calls experiments/smoke.yaml is found in the folder that it runs in."""
    (tmp_path / "experiments").mkdir()
    settings = write_config(tmp_path).read_text().replace("layers: 1", "layers: 2")
    (tmp_path / "experiments" / "smoke.yaml").write_text(settings)
    ran = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "first_look.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 trials, 2 at once" in ran.stdout or "3 trials, 3 at once" in ran.stdout
    assert "first-look: 3 trials to run" in ran.stdout
    assert "middle layer, more active than per_token: task" in ran.stdout
    assert "first-look-wide: 1 trial to run" in ran.stdout
    assert "3 of 3 trials finished." in ran.stdout
    assert (tmp_path / "runs" / "first_look.png").stat().st_size > 1000
