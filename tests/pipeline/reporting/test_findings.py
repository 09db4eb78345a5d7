"""What is said of numbers that are missing, or 0, or few."""

import math

import pytest

from pipeline.reporting.comparisons import reference_of
from pipeline.reporting.figures import left_out
from pipeline.reporting.findings import MOST_ROWS, density, findings, limits, selectivity
from pipeline.reporting.report import headline
from pipeline.reporting.results import Results, Row, TrialResult

NAN = math.nan


def trial(arm: str, seed: int, rates: list[float], nats: list[float], loss: float = 1.0) -> TrialResult:
    metrics = {"held_out/loss": loss}
    for layer, (rate, told) in enumerate(zip(rates, nats, strict=True)):
        metrics |= {f"activation_rate/L{layer}": rate, f"mutual_information/L{layer}": told}
        metrics |= {f"effective_experts/L{layer}": 8.0}
    curves = {f"activation_rate/L{layer}": ([1], [rate]) for layer, rate in enumerate(rates)}
    params = {"model.layers": str(len(rates)), "training.steps": "1"}
    return TrialResult(f"{arm}{seed}", arm, seed, params, {}, metrics, curves)


def row(arm: str, rates: list[float], nats: list[float], seeds: int = 2) -> Row:
    return Row(arm, (), {seed: trial(arm, seed, rates, nats, 1.0 + seed) for seed in range(seeds)})


def results(*rows: Row, older: int = 0) -> Results:
    return Results("x", list(rows), {"FINISHED": sum(len(r.trials) for r in rows)}, older, [])


def test_an_arm_is_called_dense_only_where_every_layer_was_seen_to_be() -> None:
    dead, unmeasured, dense = row("dead", [0.0, 0.5], [NAN, 1.0]), row("unmeasured", [], []), row("dense", [0.5], [1.0])
    lost = row("lost", [NAN, 0.5], [1.0, 1.0])
    said = " ".join(findings(results(dead, unmeasured, dense, lost), "per_token"))
    assert "No layer of dense has less than 10 %" in said
    assert selectivity(dead) == "Information about the token was not measured in L0 of dead (less than 10 % active)."
    half = selectivity(row("half", [0.0, 0.05], [NAN, 1.0]))
    assert half.startswith("In the 1 sparse layer of half")
    assert half.endswith("experts. Information about the token was not measured in L0 of half (less than 10 % active).")


def test_layers_that_cannot_be_compared_are_not_among_all() -> None:
    arm, control = row("aggregated", [0.5, 0.5, 0.5], [1.0] * 3), row("per_token", [0.1, 0.0, 0.1], [1.0] * 3)
    assert density(arm, control) == (
        "aggregated is denser than per_token in L0, L2, by a factor of 5.0, without L1, where a rate was not measured "
        "or is 0; all 2 seeds agree on that."
    )
    assert "denser than per_token in all 2 layers" in density(
        row("aggregated", [0.5] * 2, [1.0] * 2), row("per_token", [0.1] * 2, [1.0] * 2)
    )


def test_an_interval_is_judged_by_the_pairs_it_comes_from() -> None:
    control, few, one = (row(arm, [0.5], [1.0], seeds) for arm, seeds in (("per_token", 5), ("few", 2), ("one", 1)))
    assert "With 2 seeds, an interval only shows the spread" in " ".join(findings(results(control, few), "per_token"))
    assert "an interval is" not in " ".join(findings(results(control, one), "per_token"))


def test_one_is_not_called_many() -> None:
    assert "1 layer, 1 training step and" in limits(results(row("per_token", [0.5], [1.0])))
    assert "2 layers" in limits(results(row("per_token", [0.5] * 2, [1.0] * 2)))
    assert headline(results(older=1)).endswith("; 1 older run of the same trials is left out.")
    assert headline(results(older=2)).endswith("; 2 older runs of the same trials are left out.")


def test_the_number_of_cells_shown_is_no_larger_than_that_of_cells() -> None:
    rows = [Row(f"arm{place}", (("a", "1"),)) for place in range(30)]
    assert "the first 1 of 1 cell of the grid" in left_out(results(*rows))


def test_a_factor_that_is_the_same_as_shown_is_shown_once() -> None:
    arm, control = row("aggregated", [0.5, 0.5001], [1.0] * 2), row("per_token", [0.1, 0.1], [1.0] * 2)
    assert "by a factor of 5.0; all 2 seeds" in density(arm, control)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (0.05, 0.054, "nats per token, at equal density (5 % and 5.4 % active)"),
        (0.5, 0.05, "nats per token, but not at equal density: 50 % of its experts are active against 5 %"),
        (NAN, 0.05, "nats per token, at densities that were not measured"),
    ],
)
def test_no_losses_are_compared_without_a_word_on_their_densities(ours: float, theirs: float, said: str) -> None:
    arms = [row("aggregated", [ours], [1.0]), row("per_token", [theirs], [1.0])]
    (sentence,) = [each for each in findings(results(*arms), "per_token")[0].split(". ") if "loss of" in each]
    assert said in sentence
    wide = [Row(f"arm{n}", (("model.density", str(n)),), arms[0].trials) for n in range(MOST_ROWS + 1)]
    assert findings(results(*wide), "per_token") == [limits(results(*wide))]  # the tables say it shorter


def test_which_arm_is_the_reference_is_the_studys_word() -> None:
    rows = [row(arm, [0.5], [1.0]) for arm in ("per_token", "task_only")]
    assert reference_of(results(*rows)) == "per_token"
    for name in ("reference", "control"):  # the second as studies were once written
        told = Results("x", rows, {}, 0, [], about={name: "task_only"})
        assert reference_of(told) == "task_only"
        text = " ".join(findings(told, reference_of(told)))
        assert "per_token is as active as task_only in its only layer L0" in text
        assert "held-out loss of per_token differs by less" in text


def test_trials_with_other_numbers_of_workers_saw_other_batches() -> None:
    one, two = row("per_token", [0.5], [1.0]), row("aggregated", [0.5], [1.0])
    for each, count in ((one, "1"), (two, "2")):
        for seen in each.trials.values():
            seen.params["workers.count"] = count
    assert "The trials differ in workers.count (1 or 2), and therefore in their batches" in limits(results(one, two))
    assert "workers.count" not in limits(results(one))
