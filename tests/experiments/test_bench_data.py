import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from experiments.benchmarks.cli import bench
from experiments.benchmarks.data_reader import STAGES
from experiments.benchmarks.data_sets import write_repeated
from pipeline.data.arc import Corpus, load_corpus
from pipeline.data.shards import open_prepared, read_rows
from pipeline.settings.config import DataConfig
from tests.pipeline.arc_samples import random_task

TASKS = tuple(random_task(f"t{i:02d}", i, side=2 + i % 3) for i in range(10))
CONFIG = DataConfig(max_tokens=200, dihedral_views=2, rows_per_group=4, rows_per_shard=16)


def _written(folder: Path, times: int) -> list[tuple[str, bytes]]:
    long = replace(random_task("long", 99, side=20), train=random_task("", 98, side=20).train * 9)
    write_repeated(CONFIG, Corpus((*TASKS, long), TASKS, (), "0" * 64), times, folder, lambda done, total: None)
    prepared = open_prepared(folder, "arc")
    assert prepared.manifest.counts["evaluation"].rows == 0
    return [(s.task_id, s.tokens.tobytes()) for split in ("train", "held_out") for s in read_rows(prepared, split)]


def test_a_repeated_data_set_has_each_short_task_under_several_ids(tmp_path: Path) -> None:
    once, thrice = _written(tmp_path / "x1", 1), _written(tmp_path / "x3", 3)
    ids = {task_id for task_id, _ in thrice}
    assert ids == {f"{task.task_id}-{copy}" for task in TASKS for copy in range(3)}
    assert {task_id for task_id, _ in once} == {f"{task.task_id}-0" for task in TASKS}
    assert {tokens for _, tokens in thrice} >= {tokens for task_id, tokens in once if task_id in ids}


def _fewer_tasks(config: DataConfig) -> Corpus:
    corpus = load_corpus(config)
    return replace(corpus, train=corpus.train[::4])


def test_it_compares_loading_with_training_and_data_sets_with_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")  # so that nothing is compiled, which takes its time
    monkeypatch.setattr("experiments.benchmarks.data.load_corpus", _fewer_tasks)
    words = ["--hidden", "16", "--layers", "1", "--repeats", "1", "--threads", "1", "--json"]
    factors = ["--scale-factors", "1", "--scale-factors", "2"]
    done = CliRunner().invoke(bench, ["data", *words, *factors, "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    rates = [result[name]["tokens"] / result[name]["all_seconds"][0] for name in ("loader", "training")]
    assert result["loader"]["tokens_per_second"] == pytest.approx(rates[0])
    assert result["training"]["tokens_per_second"] == pytest.approx(rates[1])
    assert result["trainings_one_loader_feeds"] == pytest.approx(rates[0] / rates[1])
    assert 0 < result["training"]["tokens"] < result["loader"]["tokens"]
    assert (result["engine"], result["compile"]) == ("fused", "eager")
    once, twice = result["sizes"]
    assert (once["factor"], twice["factor"]) == (1, 2)
    assert twice["rows"] == pytest.approx(2 * once["rows"], rel=0.02)  # which tasks are held out changes a little
    assert once["tokens"] == result["loader"]["tokens"]
    for size in (once, twice):
        assert set(size["stages"]) == set(STAGES)
        assert size["peak_bytes"] == max(stage["peak_bytes"] for stage in size["stages"].values())
        # A window of 16 groups of 16 rows, some 300 tokens each, is read into memory at 4 bytes a token or more.
        assert size["stages"]["read"]["peak_bytes"] > 16 * 16 * 300 * 4
        assert 0 < size["open_seconds"] == size["stages"]["open"]["seconds"]
        assert size["disk_bytes"] > 50_000
    growth = (twice["peak_bytes"] - once["peak_bytes"]) / (twice["rows"] - once["rows"])
    assert result["bytes_a_row"] == pytest.approx(growth)
    assert "One loader could feed" in (tmp_path / "data.md").read_text()


def test_a_width_that_has_no_heads_is_refused() -> None:
    for command in ("data", "scaling"):
        done = CliRunner().invoke(bench, [command, "--hidden", "100"])
        assert done.exit_code == 2
        assert "100 cannot be cut into 3 heads of even width; 96 can" in " ".join(done.stderr.replace("│", "").split())
