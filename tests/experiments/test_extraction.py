import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console
from torch import Tensor

from experiments.benchmarks import extraction
from experiments.benchmarks.cli import bench
from experiments.benchmarks.extraction_methods import METHODS, Extraction, LayerSize
from experiments.benchmarks.report import Progress
from tests import oracles

PEERS = ("opacus_per_sample", "opacus_ghost", "backpack_grad", "backpack_l2")
OWN = tuple(name for name in METHODS if name not in PEERS)


def extractor(name: str, x: Tensor, g: Tensor) -> Callable[[], Tensor | None]:
    if package := METHODS[name].package:
        pytest.importorskip(package)
    return METHODS[name].prepare(x, g)


def progress() -> Progress:
    return Progress(Console(stderr=True))


def command(output: Path, *words: str) -> Result:
    tiny = ["--hidden", "12", "--seq", "20", "--repeats", "1", "--threads", "1", "--json", "--output", str(output)]
    return CliRunner(env={"COLUMNS": "200"}).invoke(bench, ["extraction", *tiny, *words], catch_exceptions=False)


@pytest.fixture
def memory_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for every method takes seconds; one test pays for it."""
    monkeypatch.setattr(extraction, "peak_bytes", lambda build, arguments, *_: build(*arguments).state_bytes)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].gives == "rows"])
def test_every_tokens_and_rows_cost_is_the_oracles(name: str) -> None:
    torch.manual_seed(1)
    x, g = torch.randn(7, 4), torch.randn(7, 4)
    extract = extractor(name, x, g)
    truth = oracles.token_costs(g.double(), x.double())
    for _ in range(3):  # nothing is left from one call to the next
        torch.testing.assert_close(extract(), truth.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].gives == "token"])
def test_the_smaller_question_is_answered_by_the_whole_gradients_norm(name: str) -> None:
    torch.manual_seed(1)
    x, g = torch.randn(7, 4), torch.randn(7, 4)
    extract = extractor(name, x, g)
    truth = oracles.token_costs(g.double(), x.double()).square().sum(-1).sqrt()
    for _ in range(3):
        torch.testing.assert_close(extract(), truth.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_by_hand(name: str) -> None:
    costs = extractor(name, torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[2.0, -1.0], [3.0, -4.0]]))()
    expected = {"rows": [[10.0, 5.0], [3.0, 4.0]], "token": [125**0.5, 5.0], "nothing": None}[METHODS[name].gives]
    if expected is None:
        assert costs is None
    else:
        torch.testing.assert_close(costs, torch.tensor(expected))


@pytest.mark.usefixtures("memory_in_this_process")
def test_it_prints_one_json_object_and_files_table_plot_and_numbers(tmp_path: Path) -> None:
    done = command(tmp_path, "--seq", "30")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["methods"]) == list(METHODS)
    for name in OWN:
        each = result["methods"][name]
        assert each["seconds"] > 0
        assert each["x_factored"] > 0
        assert each["peak_bytes"] == 4 * (2 * 12 * 20 + (144 if METHODS[name].through_backward else 0))
        assert ("seconds_above" in each) == (name == "factored_in_hook")
        assert each.get("differs_by", 0) <= extraction.TOLERANCE
    assert [(cell["hidden"], cell["seq"]) for cell in result["sizes"]] == [(12, 20), (12, 30)]
    assert result["sizes"][0]["methods"] == result["methods"]
    assert json.loads((tmp_path / "extraction.json").read_text()) == result
    assert "| 12/30 | factored_in_hook |" in (tmp_path / "extraction.md").read_text()
    assert (tmp_path / "extraction.png").stat().st_size > 1000


@pytest.mark.usefixtures("memory_in_this_process")
def test_a_library_that_is_missing_is_reported_and_the_rest_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ("opacus", "backpack"):
        monkeypatch.setitem(sys.modules, package, None)
    done = command(tmp_path)
    assert done.exit_code == 0
    methods = json.loads(done.stdout)["methods"]
    for name in PEERS:
        assert methods[name] == {"not_run": "not installed: pip install .[bench]"}
    assert all("seconds" in methods[name] for name in OWN)
    assert done.stderr.count("not installed: pip install .[bench]") == len(PEERS)  # in the table


def _nearly(costs: Tensor) -> Tensor:
    costs = costs.clone()
    costs[3, 2] *= 1.0001
    return costs


@pytest.mark.parametrize(
    "wrong", [_nearly, lambda costs: costs * torch.nan, lambda costs: costs[:1], lambda costs: costs.square().sum(-1)]
)
def test_a_wrong_method_is_noticed(
    wrong: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = METHODS["vmap"].prepare
    monkeypatch.setitem(METHODS, "vmap", replace(METHODS["vmap"], prepare=lambda x, g: lambda: wrong(right(x, g)())))
    with pytest.raises(AssertionError, match="vmap's costs differ from the factored ones"):
        command(tmp_path)


@pytest.mark.usefixtures("memory_in_this_process")
def test_what_does_not_fit_is_reported_with_its_size_and_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extraction, "free_bytes", lambda _: 2**33)
    size = LayerSize(1024, 4096)
    reason = extraction._why_not("einsum", size, torch.device("cpu"))
    assert reason == "does not fit: its gradients take 16.0 GiB, 8.0 GiB are free"
    for name in ("factored", "einsum_chunked", "vmap"):
        assert extraction._why_not(name, size, torch.device("cpu")) is None
    monkeypatch.setattr(extraction, "free_bytes", lambda _: 4 * 12 * 12 * 20)
    methods = json.loads(command(tmp_path).stdout)["methods"]
    assert "does not fit" in methods["einsum"]["not_run"]
    assert methods["factored"]["seconds"] > 0


def test_memory_is_that_of_the_gradients_that_are_built() -> None:
    size = LayerSize(128, 256)
    methods = extraction.measure(size, 1, 1, progress(), ("factored", "einsum"))
    whole = METHODS["einsum"].bytes_needed(size)
    assert whole == 4 * 256 * 128 * 128
    assert whole <= methods["einsum"]["peak_bytes"] < 1.3 * whole
    assert methods["factored"]["peak_bytes"] < whole / 10
    assert methods["einsum"]["peak_x_factored"] > 10


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_memory_is_no_more_than_what_is_checked_for(name: str) -> None:
    pytest.importorskip(str(METHODS[name].package))
    size = LayerSize(128, 256)
    peak = extraction.measure(size, 1, 1, progress(), (name,))[name]["peak_bytes"]
    assert peak < 1.1 * METHODS[name].bytes_needed(size) + 4 * Extraction(name, size).state_bytes


def test_time_above_the_pass_is_taken_round_by_round() -> None:
    seconds = {"factored": [1.0, 2.0, 0.5], "forward_backward": [2.0, 2.0, 5.0], "opacus_ghost": [3.0, 6.0, 6.0]}
    assert extraction._times("opacus_ghost", seconds) == {
        "x_factored": 3.0,  # of 3, 3, 12
        "seconds_above": 1.0,  # of 1, 4, 1
        "above_x_factored": 2.0,  # of 1, 2, 2
    }
    assert extraction._times("forward_backward", seconds) == {"x_factored": 2.0}


def test_opacus_is_compared_in_words_only_where_both_ran() -> None:
    methods = {
        "factored": {"seconds": 0.001, "peak_bytes": 2**20},
        "factored_in_hook": {"seconds": 0.004},
        "opacus_per_sample": {"seconds": 0.1, "x_factored": 100.0, "above_x_factored": 97.0, "peak_x_factored": 400.0},
    }
    (said,) = extraction.against_opacus(LayerSize(12, 20), methods)
    assert "97 times the time above the pass, 25.0 times the time pass and all, 400 times the memory" in said
    assert extraction.against_opacus(LayerSize(12, 20), methods | {"opacus_per_sample": {"not_run": "why"}}) == []
