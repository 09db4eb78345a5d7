"""The curve of forgetting: what the figure draws is what the runs measured, and it is there for sequences alone."""

from pathlib import Path

import pytest

from pipeline import measures
from pipeline.reporting.artifacts import Artifacts
from pipeline.reporting.columns import columns_of
from pipeline.reporting.files import markdown, write_report
from pipeline.reporting.forgetting_figure import forgetting
from pipeline.reporting.page import html
from pipeline.reporting.report import Report
from pipeline.reporting.results import Results, Row, TrialResult

CURVES = {  # by seed: loss on earlier tasks, and its increase, at each evaluation
    0: ([1.0, 2.0, 4.0], [0.0, 0.5, 1.0]),
    1: ([3.0, 2.0, 6.0], [-0.5, 0.5, 2.0]),
}
STEPS = [10, 20, 30]


def trial(arm: str, seed: int, sequential: bool) -> TrialResult:
    curves = {measures.HELD_OUT_LOSS: (STEPS, [3.0, 2.5, 2.0])}
    metrics = {measures.HELD_OUT_LOSS: 2.0}
    if sequential:
        loss, increase = CURVES[seed]
        curves |= {measures.FORGETTING_LOSS: (STEPS, loss), measures.FORGETTING_INCREASE: (STEPS, increase)}
        metrics |= {measures.TASK_NUMBER: 6.0, measures.FORGETTING_LOSS: loss[-1], measures.FORGETTING_INCREASE: 1.0}
    return TrialResult(f"run-{arm}-{seed}", arm, seed, {}, {}, metrics, curves)


def results(order: str) -> Results:
    """per_token and top_k in the orders of a grid, or in one order."""
    orders = {"both": ["mixed", "sequential"]}.get(order, [order])
    rows = [
        Row(
            arm,
            (("data.order", each),) if order == "both" else (),
            {s: trial(arm, s, each == "sequential") for s in CURVES},
        )
        for each in orders
        for arm in ("per_token", "top_k")
    ]
    return Results("x", rows, {"FINISHED": 2 * len(rows)}, 0, ["data.order"] if order == "both" else [])


@pytest.mark.parametrize("order", ["sequential", "both"])
def test_a_panel_draws_the_mean_and_the_range_over_seeds(order: str) -> None:
    figure = forgetting(results(order))
    assert figure is not None
    loss, increase = figure.axes[:2]
    assert len(figure.axes) == 2  # rows of other orders have no panels
    for axes, means in ((loss, [2.0, 2.0, 5.0]), (increase, [-0.25, 0.5, 1.5])):
        drawn = [line for line in axes.lines if len(line.get_xdata()) == 3]
        assert len(drawn) == 2  # an arm each
        for line in drawn:
            assert list(line.get_xdata()) == STEPS
            assert list(line.get_ydata()) == pytest.approx(means)
    band = loss.collections[0].get_paths()[0].vertices
    at_10 = sorted({y for x, y in band if x == 10})
    assert at_10 == [1.0, 3.0]
    above = loss.child_axes[0]
    assert above.get_xlabel() == "finished tasks of 6"
    figure.canvas.draw()
    assert above.get_xlim() == pytest.approx([6 / 30 * end for end in loss.get_xlim()])
    titles = [axes.get_title(loc="left") for axes in (loss, increase)]
    assert titles == ["loss on earlier tasks (nats per label)", "the same, less the loss right after each task"]


def test_it_is_in_the_report_of_a_sequence_and_in_no_other(tmp_path: Path) -> None:
    for order, there in (("mixed", False), ("sequential", True)):
        read = results(order)
        report = Report(read, columns_of(read), {}, {}, [], Artifacts())
        folder = tmp_path / order
        files = write_report(report, folder)
        assert ("forgetting.png" in [path.name for path in files]) == there
        assert ((folder / "forgetting.png").exists() and (folder / "forgetting.png").stat().st_size > 10_000) == there
        assert ('<h2 id="forgetting">' in html(report)) == there
        assert (
            "![Loss on earlier tasks over steps](forgetting.png)" in markdown(report, [p.name for p in files])
        ) == there
    assert forgetting(results("mixed")) is None
