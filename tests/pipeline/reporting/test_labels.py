"""Names and numbers in the figures stand where there is room for them."""

import itertools
import re
from io import StringIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from pipeline.reporting.activation_figure import activation_map
from pipeline.reporting.artifacts import Artifacts
from pipeline.reporting.columns import HELD_OUT_LOSS
from pipeline.reporting.figures import learning_curves
from pipeline.reporting.figures_of_seeds import effects, speed_and_memory
from pipeline.reporting.files import print_report
from pipeline.reporting.frontier_figure import loss_over_density
from pipeline.reporting.labels import wrapped
from pipeline.reporting.plots import activation_by_layer
from pipeline.reporting.report import Report
from pipeline.reporting.results import Results, Row, TrialResult
from pipeline.reporting.statistics import paired_difference

LONG = "my_costs:A_VERY_LONG_NAME_FOR_A_COST_THAT_SOMEONE_MADE_UP_ONE_DAY"
STEPS = [5, 8]


def _results(layers: int = 3, arms: tuple[str, ...] = ("per_token", LONG)) -> Results:
    def trial(arm: str, seed: int) -> TrialResult:
        curves = {f"activation_rate/L{n}": (STEPS, [0.5, 0.4]) for n in range(layers)}
        curves |= {"train/task_loss": (STEPS, [2.9, 2.8]), "held_out/loss": ([8], [2.9560877 + 1e-8 * len(arm)])}
        metrics = {name: values[-1] for name, (_, values) in curves.items()}
        metrics |= {"speed/tokens_per_second": 6000.0, "speed/peak_memory_mib": 600.0}
        curves["speed/step_seconds"] = (STEPS, [0.1, 0.1])
        return TrialResult(f"{arm}{seed}", arm, seed, {}, {}, metrics, curves)

    rows = [Row(arm, (), {seed: trial(arm, seed) for seed in (0, 1)}) for arm in arms]
    return Results("names", rows, {"FINISHED": 2 * len(arms)}, 0, [])


def _boxes(figure, texts):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [text.get_window_extent(canvas.get_renderer()) for text in texts if text.get_text()]


def _titles(figure):
    return [axes._left_title for axes in figure.axes]


@given(st.text(alphabet="ab_.: ·", max_size=120), st.integers(2, 30))
def test_a_wrapped_name_is_whole_and_no_line_too_long(name: str, letters: int) -> None:
    lines = wrapped(name, letters).split("\n")
    assert max(map(len, lines)) <= letters
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", name)


def test_names_are_broken_where_their_words_end() -> None:
    assert wrapped("per_token · learning_rate 0.00123 · gain 0.5", 26) == (
        "per_token · learning_rate\n0.00123 · gain 0.5"
    )
    assert wrapped("none · learning_rate 0.0012345", 24) == "none · learning_rate\n0.0012345"
    assert wrapped("per_token", 26) == "per_token"


@pytest.mark.parametrize("figure_of", [activation_map, learning_curves, speed_and_memory])
def test_no_title_or_name_leaves_the_figure_or_lies_on_another(figure_of) -> None:
    figure = figure_of(_results())
    names = [text for legend in figure.legends for text in legend.get_texts()]
    boxes = _boxes(figure, _titles(figure) + names)
    for place, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.get_figwidth() * figure.dpi
        assert not any(box.overlaps(other) for other in boxes[:place])


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6, 12])
def test_the_numbers_beside_the_colours_do_not_touch(layers: int) -> None:
    figure = activation_map(_results(layers))
    assert figure is not None
    bar = figure.axes[-1]
    boxes = _boxes(figure, bar.get_yticklabels())
    assert len(boxes) >= 5
    ends = sorted((box.y0, box.y1) for box in boxes)
    assert all(above[0] >= below[1] for below, above in itertools.pairwise(ends))


def test_steps_are_whole_numbers_and_a_long_name_takes_the_place_of_no_title() -> None:
    figure = activation_by_layer({"per_token": {0: [(STEPS, [0.5, 0.4])]}, LONG: {0: [(STEPS, [0.5, 0.6])]}})
    _boxes(figure, [])
    for axes in figure.axes:
        assert all(float(step).is_integer() for step in axes.get_xticks())
        assert axes.get_ylim()[1] == pytest.approx(63.0)
    assert figure.get_suptitle().startswith("Activation rate by layer")
    assert [title.get_text().replace("\n", "") for title in _titles(figure)][1] == f"{LONG}  (1 seed)"


def test_differences_below_what_is_shown_are_drawn_as_none() -> None:
    results = _results()
    values = [HELD_OUT_LOSS.of_row(row) for row in results.rows]
    difference = paired_difference(values[1], values[0])
    assert difference is not None
    assert 0 < difference.mean < 1e-5
    figure = effects(results, {1: {HELD_OUT_LOSS.key: difference}}, [HELD_OUT_LOSS])
    assert figure is not None
    low, high = figure.axes[0].get_xlim()
    assert high - low == pytest.approx(4e-4)
    curves = learning_curves(results)
    assert curves is not None
    assert np.ptp(curves.axes[1].get_ylim()) > 0.01


def test_a_long_name_leaves_the_rows_their_titles() -> None:
    report = Report(_results(), (HELD_OUT_LOSS,), {}, {}, [], Artifacts({}, {}))
    console = Console(width=60, record=True, file=StringIO())
    print_report(report, console)
    text = console.export_text()
    assert "held-out" in text
    assert "2.9561" in text


@pytest.mark.parametrize("arms", [3, 12])
def test_every_dot_over_density_lies_within_its_panel_and_no_names_touch(arms: int) -> None:
    def trial(arm: str, seed: int, density: float) -> TrialResult:
        metrics = {"held_out/density": density, "held_out/loss": 2.0 - density + 0.01 * seed}
        return TrialResult(f"{arm}{seed}{density}", arm, seed, {"model.density": str(density)}, {}, metrics, {})

    names = ["top_k", "dense", *(f"a_rather_long_name_of_an_arm_{n}" for n in range(arms - 2))]
    rows = [
        Row(arm, (("model.density", str(density)),), {seed: trial(arm, seed, density) for seed in (0, 1)})
        for density in (0.02, 0.2, 1.0)
        for arm in names
    ]
    figure = loss_over_density(Results("x", rows, {"FINISHED": 6 * arms}, 0, ["model.density"]))
    assert figure is not None
    names_below = [text for legend in figure.legends for text in legend.get_texts()]
    boxes = _boxes(figure, names_below)
    assert len(boxes) == arms + 1
    for place, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.get_figwidth() * figure.dpi
        assert not any(box.overlaps(other) for other in boxes[:place])
    losses, excess = figure.axes
    for axes in (losses, excess):
        dots = np.concatenate([each.get_offsets() for each in axes.collections])
        assert len(dots) == 6 * arms
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert (dots[:, 0] > low).all()
        assert (dots[:, 0] < high).all()
        assert ((dots[:, 1] > bottom) & (dots[:, 1] < top)).all()
    assert losses.get_xscale() == "log"
