"""The figures show what the files say."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from safetensors.numpy import save_file

from pipeline.colours import BAD, GOOD, INACTIVE, arm_colour
from pipeline.errors import UserError
from pipeline.reporting.plots import MOST_POINTS, activation_by_layer, thinned
from pipeline.tracking.prototypes import prototype_distribution
from tiny_onn.arms import ARM_FACTS


def _snapshot(path, with_good=True, layers=2, experts=4):
    tensors = {}
    generator = np.random.default_rng(0)
    for layer in range(layers):
        for projection in "qkvo":
            name = f"L{layer}.{projection}"
            tensors[f"{name}/prototypes"] = generator.normal(size=(experts, 3)).astype("float32")
            tensors[f"{name}/activation"] = np.array([0.0, 0.4, 0.4, 0.8], "float32")
            if with_good:
                tensors[f"{name}/good"] = np.array([0.0, 0.3, 0.1, 0.0], "float32")
    save_file(tensors, path)
    return tensors


def test_prototype_distribution_colours_every_expert_as_it_was_judged(tmp_path):
    path = tmp_path / "step-000120.safetensors"
    _snapshot(path)
    axes = prototype_distribution(path).axes[0]
    (dots,) = axes.collections
    colours = [to_hex(colour).upper() for colour in dots.get_facecolors()]
    assert colours == [INACTIVE, GOOD, BAD, BAD] * 8
    words = [text.get_text() for text in axes.texts]
    assert "L1.o   40 % active" in words  # (0 + 0.4 + 0.4 + 0.8) / 4
    assert any("step 120" in word for word in words)


def test_without_goodness_no_expert_is_called_good(tmp_path):
    path = tmp_path / "step-000000.safetensors"
    _snapshot(path, with_good=False)
    axes = prototype_distribution(path).axes[0]
    assert {to_hex(c).upper() for c in axes.collections[0].get_facecolors()} == {INACTIVE, BAD}
    assert "good" not in [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.filterwarnings("error")
def test_prototypes_that_have_run_away_are_drawn_as_any_others(tmp_path):
    """Their squares are beyond what a float can hold."""
    path, far = tmp_path / "step-000000.safetensors", tmp_path / "step-000001.safetensors"
    tensors = _snapshot(path, layers=1)
    save_file(
        {name: t.astype("float64") * 1e300 if name.endswith("prototypes") else t for name, t in tensors.items()}, far
    )
    near, away = (prototype_distribution(each).axes[0].collections[0].get_offsets() for each in (path, far))
    np.testing.assert_allclose(np.linalg.norm(away[:4], axis=1), np.linalg.norm(near[:4], axis=1), rtol=1e-6)


def test_a_panel_is_the_projection_onto_the_first_two_principal_components(tmp_path):
    path = tmp_path / "step-000000.safetensors"
    prototypes = _snapshot(path, layers=1)["L0.q/prototypes"].astype(float)
    dots = prototype_distribution(path).axes[0].collections[0].get_offsets()[:4]
    centred = prototypes - prototypes.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * sizes[:2]

    def distances(points):  # the same whatever the signs of the components
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    # float32 prototypes; the eigenvalues are squares, so half of the digits are left
    np.testing.assert_allclose(
        distances(np.asarray(dots)) / distances(np.asarray(dots)).max(),
        distances(expected) / distances(expected).max(),
        atol=1e-6,
    )


def test_a_damaged_snapshot_is_named(tmp_path):
    path = tmp_path / "step-000001.safetensors"
    path.write_bytes(b"\0" * 30)
    with pytest.raises(UserError, match="step-000001"):
        prototype_distribution(path)
    save_file({"other": np.zeros(1)}, path)
    with pytest.raises(UserError, match="no prototypes"):
        prototype_distribution(path)


def test_activation_is_the_mean_over_seeds_in_percent_and_nan_draws_nothing():
    series = {
        "per_token": {0: [([0, 10], [0.5, 0.1]), ([0, 10], [0.7, float("nan")])], 1: [([0, 10], [0.2, 0.2])]},
        "task_only": {},
    }
    figure = activation_by_layer(series)
    panel = figure.axes[0]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [60.0, 10.0])
    np.testing.assert_allclose(panel.lines[1].get_ydata(), [20.0, 20.0])
    assert "2 seeds" in panel.get_title(loc="left")
    assert "0 seeds" in figure.axes[1].get_title(loc="left")
    activation_by_layer({})


def test_arms_keep_their_colours_and_the_known_ones_differ():
    known = ["per_token", "aggregated", "metric_only", "task_only"]
    assert len({arm_colour(arm) for arm in known}) == 4
    assert arm_colour("mine.costs:relative") == arm_colour("mine.costs:relative")


def test_arms_that_are_compared_have_colours_of_their_own() -> None:
    study = ("experiments.study.hybrids:SUMMED_COST", "experiments.study.hybrids:NO_COST")
    arms = (*ARM_FACTS, *study)
    assert len({arm_colour(arm) for arm in arms}) == len(arms)
    assert arm_colour("my.costs:ANY") == arm_colour("my.costs:ANY")


def test_a_long_curve_is_drawn_by_a_few_hundred_points_that_keep_its_peaks_and_ends():
    steps = np.arange(1, 10_001)
    mean = np.sin(steps / 700)
    low, high = mean - 0.1, mean + 0.1
    high[5_000], low[7_777] = 9.0, -9.0
    few = thinned((steps, low, mean, high))
    assert {len(each) for each in few} == {len(few[0])}
    assert 250 <= len(few[0]) <= MOST_POINTS
    assert (np.diff(few[0]) > 0).all()
    for whole, part in zip((steps, low, mean, high), few, strict=True):
        assert (part[0], part[-1]) == (whole[0], whole[-1])
    assert (few[3].max(), few[1].min()) == (9.0, -9.0)
    assert np.abs(np.interp(few[0], steps, mean) - few[2]).max() < 1e-3
    starts = [1, *np.searchsorted(steps, few[0][1:-1])]  # by hand, the first two groups
    assert few[2][1] == pytest.approx(mean[1 : 2 * starts[1]].mean(), abs=1e-2)


@pytest.mark.parametrize(
    "points", [0, 1, 2, MOST_POINTS - 1, MOST_POINTS, MOST_POINTS + 1, MOST_POINTS + 7, 2 * MOST_POINTS]
)
def test_curves_that_are_short_stay_as_they_are(points):
    curve = tuple(np.arange(points) * factor for factor in (1, 2, 3, 4))
    few = thinned(curve)
    assert len(few[0]) <= MOST_POINTS
    if points <= MOST_POINTS:
        assert all(np.array_equal(a, b) for a, b in zip(few, curve, strict=True))
    else:
        assert few[0][-1] == points - 1
        total = np.add.reduce(curve[2])
        assert few[2].mean() == pytest.approx(total / points, rel=0.02)


def test_the_figure_of_ten_thousand_points_is_not_larger_than_that_of_a_few_hundred():
    from pipeline.reporting.figures import svg

    def size(points):
        curve = (list(range(points)), [0.5 + 0.3 * np.sin(step / 50) for step in range(points)])
        return len(svg(activation_by_layer({"per_token": {0: [curve]}})))

    assert size(10_000) < 1.2 * size(MOST_POINTS)
