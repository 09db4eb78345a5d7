import json
from pathlib import Path

from click.testing import CliRunner

from experiments.benchmarks.cli import bench


def test_the_constants_are_those_of_what_there_is(tmp_path: Path) -> None:
    words = ["--trials", "5", "--rows", "4000", "--ranks", "4", "--rows-per-group", "64", "--json"]
    done = CliRunner().invoke(bench, ["limits", *words, "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["look"]["trials"] == 5
    assert result["look"]["seconds"] > 0
    assert result["plans"]["4"]["seconds"] > 0
    stored = result["sizes"]["64"]
    assert 250 < stored["tokens_a_row"] < 400  # of the tasks of at most 512 tokens
    assert 0.1 < stored["bytes_a_token"] < 4  # four columns, compressed
    assert stored["footer_bytes_a_group"] > 100
    assert 0.5 < stored["lengths_bytes_a_row"] < 12  # three columns of four bytes, compressed
