"""What a benchmark's plot shows."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.benchmarks.report import Result, _plot


def drawn(
    series: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, title: str = "A step"
) -> Figure:
    kept: list[Figure] = []
    monkeypatch.setattr(plt, "close", kept.append)
    _plot(Result("step", title, [], [], "time / plain", "hidden / tokens", series, {}), tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 1000
    return kept[0]


def test_no_line_leads_from_one_width_to_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = {"64 / 256": 2.0, "64 / 1024": 3.0, "256 / 256": 5.0, "256 / 1024": 4.0}
    axes = drawn({"hooks": line}, monkeypatch, tmp_path).axes[0]
    assert [list(each.get_xydata().ravel()) for each in axes.lines] == [[0, 2, 1, 3], [2, 5, 3, 4]]
    assert axes.lines[0].get_label() == "hooks"
    assert len({each.get_color() for each in axes.lines}) == 1


def test_one_line_leads_over_widths_of_one_size_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    axes = drawn({"hooks": {"64 / 512": 2.0, "128 / 512": 3.0}}, monkeypatch, tmp_path).axes[0]
    assert [list(each.get_xydata().ravel()) for each in axes.lines] == [[0, 2, 1, 3]]


def test_the_axis_bears_plain_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    axes = drawn({"plain": {"64 / 512": 1.0}, "einsum": {"64 / 512": 900.0}}, monkeypatch, tmp_path).axes[0]
    said = [tick.get_text() for tick in axes.get_xticklabels()]
    assert {"1", "20", "500", "1,000"} <= set(said)


def test_a_long_title_is_whole_and_over_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    title = "Scaling, hidden 256, 12 layers, sequences of 1024 tokens, 1 threads a worker, 2 cores, median of 7"
    lines = {name: {"8": 0.9, "16": 0.8} for name in ("none, no overlap", "hooks, full overlap")}
    figure = drawn(lines, monkeypatch, tmp_path, title)
    figure.draw_without_rendering()  # as large as it is, not as it was saved
    (said,) = [text for text in figure.findobj(Text) if text.get_text() == title]
    where = said.get_window_extent()
    assert where.x0 >= 0
    assert where.x1 <= figure.bbox.x1
    assert not where.overlaps(figure.legends[0].get_window_extent())


def test_both_axes_say_what_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    axes = drawn({"hooks": {"64 / 512": 2.0, "128 / 512": 3.0}}, monkeypatch, tmp_path).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("hidden / tokens", "time / plain")
    axes = drawn({"hooks": {"64 / 512": 2.0}}, monkeypatch, tmp_path).axes[0]
    assert axes.get_xlabel() == "time / plain; hidden / tokens: 64 / 512"
