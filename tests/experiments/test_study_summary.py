"""The study's tables, from results made by hand."""

from click.testing import CliRunner

from experiments.study.summary import figure, main, table, table_of_seeds
from pipeline import measures
from pipeline.reporting.results import Results, Row, TrialResult


def _trial(arm: str, seed: int, loss: float, rates: list[float], good: bool = True) -> TrialResult:
    metrics = {measures.HELD_OUT_LOSS: loss}
    for layer, rate in enumerate(rates):
        metrics[measures.by_layer(measures.ACTIVATION_RATE, layer)] = rate
        metrics[measures.by_layer(measures.MUTUAL_INFORMATION, layer)] = layer + seed
        if good:
            metrics[measures.by_layer(measures.FRACTION_GOOD, layer)] = 0.1 * layer
    curves = {measures.by_layer(measures.ACTIVATION_RATE, layer): ([1], [rate]) for layer, rate in enumerate(rates)}
    return TrialResult(f"{arm}{seed}", arm, seed, {}, {}, metrics, curves)


def _results() -> Results:
    first = Row("per_token", (), {0: _trial("per_token", 0, 1.0, [0.02, 0.06]), 1: _trial("per_token", 1, 2.0, [0, 0])})
    second = Row("my.costs:MINE", (), {0: _trial("my.costs:MINE", 0, 3.25, [0.5, 1.0], good=False)})
    return Results("study-x", [first, second], {"FINISHED": 3}, 0, [])


def test_a_row_has_mean_and_spread_and_a_gap_where_nothing_was_measured() -> None:
    head, _, first, second = table(_results()).splitlines()
    assert [cell.strip() for cell in head.split("|")][1:6] == [
        "arm", "seeds", "active by layer (%)", "held-out loss (nats)", "judged good (%)",
    ]  # fmt: skip
    assert first.startswith("| per_token | 2 | 1 3 | 1.500 (1.000 to 2.000) | 5.0 (5.0 to 5.0) | 1.00 (0.50 to 1.50) |")
    assert second.startswith("| MINE | 1 | 50 100 | 3.250 (3.250 to 3.250) | – | 0.50 (0.50 to 0.50) | – |")


def test_every_seed_has_its_line() -> None:
    lines = table_of_seeds(_results()).splitlines()[2:]
    assert [line.split(" | ")[:4] for line in lines] == [
        ["| per_token", "0", "2.0 6.0", "1.000"],
        ["| per_token", "1", "0.0 0.0", "2.000"],
        ["| MINE", "0", "50.0 100.0", "3.250"],
    ]


def test_the_figure_shows_every_seed() -> None:
    by_layer, loss, _ = figure(_results()).axes
    assert sorted(y for dots in by_layer.collections for _, y in dots.get_offsets()) == [0, 0, 2, 6, 50, 100]
    assert {round(float(y), 2) for dots in loss.collections[::2] for _, y in dots.get_offsets()} == {1.0, 2.0, 3.25}


def test_without_a_store_it_says_what_to_do(tmp_path) -> None:
    done = CliRunner().invoke(main, ["--output", str(tmp_path)])
    assert done.exit_code == 1
    assert "holds no mlflow.db; run `make study` first" in done.output
