"""Every number and figure of the documents is what the filed results give; one that differs is found."""

import csv
import io
import shutil
import statistics
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

from experiments import figures, filed
from experiments.figures import ROOT, WHOLE, Outdated, documents, images, regenerated, unmarked

HELD_OUT = "held-out loss"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_a_document_is_as_the_filed_results_give_it(path: Path) -> None:
    """If not: `make figures`."""
    text = path.read_text(encoding="utf-8")
    assert regenerated(text, path.name) == text


@pytest.mark.parametrize("name", WHOLE)
def test_no_number_of_these_documents_is_left_unmarked(name: str) -> None:
    assert unmarked((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.pinned
@pytest.mark.parametrize("place", images())
def test_a_figure_is_as_the_filed_results_give_it(place: str) -> None:
    drawn = io.BytesIO()
    images()[place]().savefig(drawn, format="png", dpi=110 if place.startswith("study/") else 150)
    drawn.seek(0)
    ours, theirs = (matplotlib.image.imread(each, format="png") for each in (drawn, filed.RESULTS / place))
    assert ours.shape == theirs.shape
    assert float(np.abs(ours - theirs).max()) < 0.02


def test_a_report_is_read_as_its_trials_give_it() -> None:
    with (filed.RESULTS / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "per_token"]
    excess = [float(row["excess"]) for row in rows]
    assert filed.report("per_token", "excess") == pytest.approx(statistics.fmean(excess), rel=1e-12)
    assert filed.report("per_token", "excess", "most") == max(excess)
    assert filed.report("per_token", "excess", "low") < filed.report("per_token", "excess")
    density = [100 * float(row["density"]) for row in rows]
    assert filed.report("per_token", "density") == pytest.approx(statistics.fmean(density), rel=1e-12)


def test_a_study_is_read_as_its_seeds_give_it() -> None:
    seeds = [filed.seed_of("arms", "per_token", seed, HELD_OUT) for seed in range(5)]
    assert seeds == [1.745, 1.758, 1.751, 1.763, 1.745]
    assert filed.study("arms", "per_token", HELD_OUT) == pytest.approx(statistics.fmean(seeds), abs=0.001)
    assert filed.study("arms", "per_token", HELD_OUT, "most") == 1.763
    assert filed.study("arms", "per_token", "active", layer=0) == pytest.approx((3.9 + 3.4 + 4.2 + 4.0 + 4.0) / 5)
    assert filed.study("depth", "aggregated · layers 4", "active", "most") == pytest.approx(80, abs=0.5)
    others = [filed.seed_of("arms", "task_only", seed, HELD_OUT) for seed in range(5)]
    mean = statistics.fmean(a - b for a, b in zip(others, seeds, strict=True))
    assert filed.difference("arms", "task_only", "per_token", HELD_OUT) == pytest.approx(mean, rel=1e-12)
    low, high = (filed.difference("arms", "task_only", "per_token", HELD_OUT, end) for end in ("low", "high"))
    assert low < mean < high


def test_a_benchmark_is_read_by_row_and_column() -> None:
    assert filed.bench("step", "hooks", "ms") == 135.2
    assert filed.bench("step", "hooks", "x2") == 1.59  # the second column of that heading
    assert filed.bench("step-4096-tokens", "256|einsum", "x") == 4.61
    with pytest.raises(KeyError, match="2 rows have einsum"):
        filed.bench("step-4096-tokens", "einsum", "x")


TEXT = """\
Of `per_token 0.5` it is 9.999 nats, +9.9 % and L2, in 3 of 1,024 steps.
<!-- numbers: report("per_token", "excess"); report("per_token", "density"); _; bench("step", "einsum", "ms") -->

| a | 7.77 <!-- numbers: bench("step", "hooks", "x") --> |

<!-- figures:study arms; selectivity -->
old
<!-- /figures -->
"""


def test_numbers_keep_their_digits_and_signs_and_tables_are_replaced() -> None:
    lines = regenerated(TEXT).splitlines()
    assert lines[0] == "Of `per_token 0.5` it is 0.032 nats, +4.1 % and L2, in 3 of 1,042 steps."
    assert lines[3] == '| a | 1.25 <!-- numbers: bench("step", "hooks", "x") --> |'
    assert lines[6] == "| arm | seeds | active by layer (%) | selectivity (nats) |"
    assert lines[8].startswith("| per_token | 5 | 4 3 4 4 4 4 | 1.24")
    assert "old" not in lines
    assert regenerated("\n".join(lines)) == "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.1 and 0.2\n<!-- numbers: _ -->\n", "2 numbers, 0.1, 0.2, but 1 expressions"),
        ('0.1\n<!-- numbers: report("absent", "excess") -->\n', "no row absent"),
        ("0.1\n<!-- numbers: open('x') -->\n", "expected a call of one of report"),
        ("<!-- figures:study absent -->\n<!-- /figures -->\n", "absent"),
        ("<!-- figures:absent -->\n<!-- /figures -->\n", "absent"),
    ],
)
def test_a_mark_that_cannot_be_followed_is_refused(text: str, said: str) -> None:
    with pytest.raises(Outdated, match=said):
        regenerated(text, "x.md")


def test_a_decimal_without_a_mark_is_found() -> None:
    assert unmarked("It is 0.03.\n\nIt is 0.04.\n<!-- numbers: _ -->\n\n`0.5` of 3\n") == ["It is 0.03."]


def test_the_command_says_what_would_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "experiments").mkdir()
    for name in ("README.md", "experiments/RESULTS.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    page = tmp_path / "docs" / "page.md"
    page.write_text('9.99\n<!-- numbers: bench("step", "hooks", "x") -->\n')
    done = CliRunner().invoke(figures.main, ["--check"])
    assert (done.exit_code, done.output) == (1, "would change: docs/page.md\n")
    assert page.read_text().startswith("9.99")
    monkeypatch.setattr(figures, "images", dict)
    assert CliRunner().invoke(figures.main, []).output == "changed: docs/page.md\n"
    assert page.read_text().startswith("1.25")
    assert CliRunner().invoke(figures.main, ["--check"]).exit_code == 0


def test_an_excess_over_the_baselines_of_another_sweep_as_well() -> None:
    """By hand, from the two results.csv: the lowest loss up to each density, linear in its logarithm between them."""
    lines = []
    for sweep in ("unlimited", "frontier"):
        with (filed.RESULTS / sweep / "results.csv").open(newline="", encoding="utf-8") as file:
            lines += [(sweep, line) for line in csv.DictReader(file)]
    baselines = ("top_k", "switch", "remoe", "magnitude", "magnitude_ste", "task_only", "dense")
    expected = []
    for seed in map(str, range(5)):
        here = [
            (float(each["density"]), float(each["held_out_loss"]), sweep, each["arm"])
            for sweep, each in lines
            if each["seed"] == seed
        ]
        curve = sorted((density, loss) for density, loss, _, arm in here if arm in baselines)
        lowest = np.minimum.accumulate([loss for _, loss in curve])
        kept = [place for place in range(len(curve)) if place == 0 or lowest[place] < lowest[place - 1]]
        ((density, loss),) = [each[:2] for each in here if each[2:] == ("unlimited", "signed")]
        there = np.interp(np.log(density), np.log([curve[place][0] for place in kept]), lowest[kept])
        expected.append(loss - there)
    assert filed.excess_over("unlimited", "signed", "seeds") == 5
    assert filed.excess_over("unlimited", "signed") == pytest.approx(np.mean(expected), abs=1e-12)
    assert (
        filed.excess_over("unlimited", "signed", "low")
        < np.mean(expected)
        < filed.excess_over("unlimited", "signed", "high")
    )
    with pytest.raises(KeyError, match="0 rows of unlimited have the arm benefit"):
        filed.excess_over("unlimited", "benefit")
