import json
from pathlib import Path

from click.testing import CliRunner

from experiments.benchmarks.bookkeeping import PARTS, made
from experiments.benchmarks.cli import bench
from pipeline.records.spool import read_spool
from pipeline.remote import pusher
from pipeline.training.distributions import STEPS_A_PIECE, pieces_in


def test_a_run_is_as_long_as_asked_and_the_driver_has_seen_all_of_it(tmp_path: Path) -> None:
    run = made(tmp_path, 500, 10)
    lines, _ = read_spool(run.worker.spool)
    assert [line.step for line in lines] == list(range(1, run.step + 1))
    assert run.step >= 500
    assert run.driver.spool.read_bytes() == run.worker.spool.read_bytes()
    steps = [
        each["step"] for piece in pieces_in(run.driver.distributions) for each in json.loads(piece.read_text())["steps"]
    ]
    assert steps == list(range(10, 501, 10))
    assert len(pieces_in(run.worker.distributions)) == -(-50 // STEPS_A_PIECE)


def test_every_part_is_measured_and_the_index_does_not_grow_with_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pusher, "PIECE_BYTES", 2**11)  # about eight lines
    monkeypatch.setattr("experiments.benchmarks.bookkeeping.PIECE_BYTES", 2**11)
    words = ["bookkeeping", "--steps", "300", "--steps", "3000", "--repeats", "3", "--json", "--output", str(tmp_path)]
    done = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    steps = json.loads(done.stdout.splitlines()[-1])["steps"]
    assert set(steps) == {"300", "3000"}
    for parts in steps.values():
        assert set(parts) == set(PARTS)
        assert all(value > 0 for value in parts.values())
    # 3,000 steps are about 380 pieces: by name they would take 35 KiB
    assert steps["3000"]["index bytes"] < 9_000
