"""What is marked as best, and a table in each of its renderings."""

import io
import math

import pytest
from rich.console import Console

from pipeline.reporting.artifacts import Artifacts
from pipeline.reporting.columns import EXCESS, HELD_OUT_LOSS, columns_of
from pipeline.reporting.files import markdown, print_report
from pipeline.reporting.frames import arms_frame, results_frame
from pipeline.reporting.renderings import latex_table, markdown_table, terminal_table
from pipeline.reporting.report import report_of
from pipeline.reporting.results import Results, Row, TrialResult
from pipeline.reporting.tables import Cell, Table, differences, equal_density, is_best

NAN = math.nan


def row(arm: str, losses: dict[int, float], density: float = 0.05, cell: tuple = ()) -> Row:
    def trial(seed: int, loss: float) -> TrialResult:
        metrics = {"held_out/density": density, "held_out/loss": loss}
        return TrialResult(f"{arm}{cell}{seed}", arm, seed, dict(cell), {}, metrics, {})

    return Row(arm, cell, {seed: trial(seed, loss) for seed, loss in losses.items()})


def results(*rows: Row, about: dict[str, str] | None = None) -> Results:
    varying = [name for name, _ in rows[0].cell]
    return Results("x", list(rows), {"FINISHED": sum(len(r.trials) for r in rows)}, 0, varying, about or {})


@pytest.mark.parametrize(
    ("ours", "theirs", "density", "marked"),
    [
        ({0: 1.0, 1: 1.1}, {0: 1.2, 1: 1.3}, 0.05, True),
        ({0: 1.0, 1: 1.1}, {0: 1.2, 1: 1.3}, 0.054, True),
        ({0: 1.0, 1: 1.1}, {0: 1.2, 1: 1.3}, 0.06, False),  # more experts are active: no wonder
        ({0: 2.5598}, {0: 2.5601}, 0.05, False),  # one seed
        ({0: 1.0, 1: 1.4}, {0: 1.2, 1: 1.3}, 0.05, False),  # the seeds disagree
        ({0: 1.0, 1: 1.1}, {0: 1.2, 1: 1.3, 2: 1.0}, 0.05, False),  # the hardest seed failed
        ({0: 1.0, 1: 1.1}, {0: 1.00004, 1: 1.10004}, 0.05, False),  # as shown they are equal
        ({0: 1.0, 1: NAN}, {0: 1.2, 1: 1.3}, 0.05, False),
    ],
)
def test_what_is_marked_is_better_in_every_seed_at_equal_density(ours, theirs, density, marked) -> None:
    first, second = row("a", ours), row("b", theirs, density)
    assert is_best(results(first, second), first, HELD_OUT_LOSS) is marked
    assert not is_best(results(first, second), second, HELD_OUT_LOSS)


BASELINES = (row("top_k", {0: 2.0, 1: 3.0, 2: 2.5}), row("dense", {0: 1.0, 1: 2.0, 2: 1.5}, 1.0))


def test_the_excess_stands_beside_the_density_with_its_interval_and_the_primary_is_not_corrected() -> None:
    about = {"primary_metric": "excess", "primary_arm": "mine", "reference": "other"}
    losses = {0: 1.9, 1: 2.9, 2: 2.3}
    report = report_of(
        results(row("mine", losses), row("other", losses, 0.02), *BASELINES, about=about), Artifacts({}, {})
    )
    table = equal_density(report)
    assert table is not None
    assert table.head[-1] == "excess over the baselines at this density (nats)"
    cells = {each[0].text: each[-1] for each in table.rows}
    assert cells["mine"] == Cell("-0.1333", small=("[-0.2000, -0.1000]", "p 0.25, primary"))
    assert cells["other"].text == "–"
    assert cells["dense"] == Cell("0.0000", small=("baseline",))
    assert report.findings[0].startswith(
        "Primary comparison, named before the runs: excess of mine against the baselines at its density: -0.1333 "
        "[-0.2000, -0.1000], the mean and its 95 % interval, p = 0.25 by the sign-flip test over 3 seeds, without "
        "correction, at 5 % active."
    )
    assert "mine: -0.1333 [-0.2000, -0.1000] at 5 % active." in report.findings[1]
    assert report.findings[2] == (
        "Not compared at equal density, because no baselines are both sparser and denser: other (2 % active)."
    )
    others = {key: each for key, each in report.comparisons.items() if not each.primary}
    assert others
    assert all(each.adjusted >= each.p for each in others.values())
    assert "-0.1333 \\[-0.2000, -0.1000\\]; p 0.25, primary |" in markdown(report)
    assert [each[0].text for each in differences(report).rows] == ["mine", "top_k", "dense"]  # to the reference
    frame = results_frame(report.results)
    assert frame.loc[frame["arm"] == "mine", "excess"].tolist() == pytest.approx([-0.1, -0.1, -0.2])
    assert arms_frame(report.results, report.columns)["seeds"].tolist() == [3, 3, 3, 3]


def test_a_primary_comparison_of_losses_says_at_which_densities() -> None:
    about = {"primary_metric": "held_out/loss", "primary_arm": "mine"}
    rows = (row("mine", {0: 1.9, 1: 2.9}, 0.5), row("per_token", {0: 2.0, 1: 3.0}))
    (sentence, _) = report_of(results(*rows, about=about), Artifacts({}, {})).findings[0].split(". All")
    assert "held_out/loss of mine against per_token: -0.1000" in sentence
    assert sentence.endswith("but not at equal density: 50 % of its experts are active against 5 %")


def test_a_gap_between_baselines_and_seeds_without_one_are_reported() -> None:
    report = report_of(results(row("mine", {0: 1.5, 3: 1.5}, 0.3), *BASELINES), Artifacts({}, {}))
    text = report.findings[0]
    assert "(1 seed) at 30 % active, in 1 of 2 seeds, interpolated from baselines as far apart as 5 and 100 %." in text
    table = equal_density(report)
    assert table is not None
    assert "1 of 2 seeds" in table.rows[0][-1].small
    alone = report_of(results(row("mine", {0: 1.5})), Artifacts({}, {}))
    assert "cannot be compared at equal density" in alone.findings[0]
    assert equal_density(alone) is None
    assert EXCESS not in [column.key for column in columns_of(alone.results)]
    diverged = report_of(results(row("mine", {0: 1.5, 1: NAN}), *BASELINES), Artifacts({}, {}))
    assert "mine: no finite loss in a seed" in diverged.findings[0]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"primary_arm": "nosuch"}, "not made, because 0 rows of this report are so named."),
        (
            {"primary_arm": "mine", "primary_metric": "held_out/loss"},
            "held_out/loss of mine against per_token: not made",
        ),
        ({"primary_arm": "mine", "primary_cell.model.density": "0.2"}, "excess of mine, model.density = 0.2 against"),
    ],
)
def test_a_primary_comparison_that_cannot_be_made_says_why(about: dict[str, str], said: str) -> None:
    told = {"primary_metric": "excess", **about}
    assert said in report_of(results(row("mine", {0: 1.0}), about=told), Artifacts({}, {})).findings[0]


def test_a_grid_is_one_table_and_a_narrow_terminal_drops_columns_not_names() -> None:
    rows = [
        row(arm, {0: 1.0, 1: 1.1}, density, (("model.density", str(density)),))
        for density in (0.05, 0.2)
        for arm in ("per_token", "my_gates:A_LONG_NAME_OF_AN_ARM")
    ]
    screen = io.StringIO()
    print_report(report_of(results(*rows), Artifacts({}, {})), Console(file=screen, width=60))
    text = screen.getvalue()
    assert text.count("held-out") == 2  # one head of columns
    assert text.count("per_token") >= 2
    assert all(len(line) <= 60 for line in text.splitlines())
    table = Table(["arm", *(f"number {n}" for n in range(9))], [[Cell("a"), *(Cell("1.2345"),) * 9]], 1)
    shown, left = terminal_table(table, 40)
    assert len(shown.columns) + left == 10
    assert left > 0
    assert terminal_table(table, 200)[1] == 0


def test_no_name_breaks_a_table() -> None:
    table = Table(["a|b", "50 %"], [[Cell("x_1 & $y^2$ \\ <b> ~#{}"), Cell("–", True, ("[+1, –]",))]], 1)
    assert markdown_table(table) == (
        "| a\\|b | 50 % |\n| --- | --- |\n| x_1 &amp; $y^2$ \\\\ &lt;b&gt; ~#{} | **–** \\[+1, –\\] |"
    )
    text = latex_table(table, "A & B", "tab:x y")
    assert "\\caption{A \\& B}\n\\label{tab:x-y}\n\\begin{tabular}{lr}\n" in text
    assert "a\\textbar{}b & 50 \\% \\\\\n\\midrule\n" in text
    assert (
        "x\\_1 \\& \\$y\\textasciicircum{}2\\$ \\textbackslash{} \\textless{}b\\textgreater{} "
        "\\textasciitilde{}\\#\\{\\} & \\textbf{--} \\\\" in text
    )
