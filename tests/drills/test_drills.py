"""Every drill as a test, for `make test-slow`."""

from pathlib import Path

import pytest

from tests.drills.flat import median_slope
from tests.drills.registry import DRILLS, Skipped, rehearse, run_drill
from tests.drills.scene import Scene


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drills")


@pytest.fixture(scope="module")
def reference(place: Path) -> Scene:
    return rehearse(place)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRILLS)
def test_drill(name: str, place: Path, reference: Scene) -> None:
    try:
        run_drill(name, place, reference)
    except Skipped as reason:
        pytest.skip(str(reason))


def test_a_slope_is_found_under_jumps() -> None:
    """One jump in the middle, as of a cache that fills, is no leak; a byte a step is."""
    steps = range(0, 1000, 10)
    assert median_slope([(s, 100.0 + (50.0 if s > 900 else 0.0)) for s in steps]) == 0
    assert median_slope([(s, 100.0 + s + (50.0 if s > 900 else 0.0)) for s in steps]) == pytest.approx(1, abs=0.2)
