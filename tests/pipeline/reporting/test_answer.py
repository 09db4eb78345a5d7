"""The three sentences at the end of a sweep, against numbers worked by hand."""

import pytest

from pipeline.reporting.answer import answer
from pipeline.reporting.artifacts import Artifacts
from pipeline.reporting.report import report_of
from pipeline.reporting.results import Results, Row, TrialResult


def results(*arms: tuple[str, float, float], seeds: int = 3) -> Results:
    """Arms with (name, density, held-out loss), the same in all seeds."""
    rows = []
    for arm, density, loss in arms:
        metrics = {"held_out/density": density, "held_out/loss": loss}
        trials = {seed: TrialResult(f"{arm}{seed}", arm, seed, {}, {}, metrics, {}) for seed in range(seeds)}
        rows.append(Row(arm, (), trials))
    return Results("x", rows, {"FINISHED": len(arms) * seeds}, 0, [])


def sentences(read: Results) -> list[str]:
    return answer(report_of(read, Artifacts({}, {})))


def test_arms_are_listed_by_their_distance_to_the_baselines_best_first() -> None:
    lines = sentences(
        results(("per_token", 0.04, 1.75), ("opening", 0.04, 1.71), ("top_k", 0.04, 1.70), ("dense", 1.0, 1.4))
    )
    assert lines == [
        "At equal density the held-out loss lies above (+) or below (-) the best baseline's by, in nats: "
        "opening +0.010, per_token +0.050.",
        "per_token has 4 % of its experts active (held-out loss 1.750 nats), opening 4 % (1.710).",
        "With 3 seeds the sign-flip test cannot give a p below 0.25, so no difference here is significant.",
    ]


@pytest.mark.parametrize(
    ("arms", "seeds", "place", "said"),
    [
        ((("per_token", 0.04, 1.75),), 3, 0, "No baseline was run"),
        ((("per_token", 0.01, 1.75), ("dense", 1.0, 1.4)), 3, 0, "No arm could be compared"),
        ((("dense", 1.0, 1.4),), 3, 1, "dense has 100 % of its experts active (held-out loss 1.400 nats)."),
        ((("dense", float("nan"), 1.4),), 3, 1, "The density was not measured."),
        ((("dense", 1.0, 1.4),), 1, 2, "With one seed, chance cannot be ruled out"),
        ((("dense", 1.0, 1.4),), 6, 2, "With 6 seeds the sign-flip test cannot give a p below 0.031."),
    ],
)
def test_what_cannot_be_compared_is_named(arms: tuple, seeds: int, place: int, said: str) -> None:
    assert sentences(results(*arms, seeds=seeds))[place].startswith(said)


def test_without_a_trial_there_is_no_answer() -> None:
    assert sentences(Results("x", [], {"FAILED": 1}, 0, [])) == ["No trial has finished, so there is no answer yet."]
