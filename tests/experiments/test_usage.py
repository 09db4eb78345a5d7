"""What `experiments.benchmarks.usage` counts of a command and the processes that it starts."""

import sys
from pathlib import Path

from experiments.benchmarks.usage import measure

ORPHAN = """
import time
held = bytearray(150_000_000)
while time.process_time() < 0.6:
    pass
time.sleep(1.5)
"""
BETWEEN = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "orphan.py"])
time.sleep(1)
"""
PARENT = """
import subprocess, sys, time
subprocess.run([sys.executable, "between.py"])
time.sleep(3)
sys.exit(3)
"""


def test_a_process_counts_also_when_its_parent_has_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("orphan", ORPHAN), ("between", BETWEEN), ("parent", PARENT)):
        Path(f"{name}.py").write_text(text)
    code, used = measure([sys.executable, "parent.py"])
    assert (code, used["processes"]) == (3, 3)
    assert 0.6 <= used["cpu_seconds"] < 5
    assert 150 < used["peak_mb"] < 400
    assert used["seconds"] > 4


def test_other_processes_do_not_count() -> None:
    code, used = measure([sys.executable, "-c", "import time; time.sleep(1)"])
    assert (code, used["processes"]) == (0, 1)
