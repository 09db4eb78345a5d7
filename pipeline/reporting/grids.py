"""Examples that are grids of colours, as SVG."""

from html import escape

from pipeline.colours import GRID_COLOURS
from pipeline.reporting.artifacts import Drawn, Grid

_SIDE = 128  # of a grid on the page, in pixels, whatever its number of cells


def grid_svg(grid: Grid, label: str) -> str:
    """A grid of colours 0..9, its longer side of a fixed length; `label` is read out by screen readers."""
    height, width = len(grid), len(grid[0])
    cell = _SIDE / max(height, width)
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill="{GRID_COLOURS[colour]}"/>'
        for y, row in enumerate(grid)
        for x, colour in enumerate(row)
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" width="{width * cell:.0f}" '
        f'height="{height * cell:.0f}" class="grid"><g stroke="#666" stroke-width="0.04">{cells}</g></svg>'
    )


def verdict(drawn: Drawn) -> str:
    """How near a prediction is to its target, in words."""
    answer, target = drawn.prediction, drawn.target
    if answer is None:
        return "no grid"
    if answer == target:
        return "exact"
    shapes = tuple(f"{len(grid)}×{len(grid[0])}" for grid in (answer, target))
    if shapes[0] != shapes[1]:
        return f"{shapes[0]} instead of {shapes[1]}"
    cells = [a == b for ours, theirs in zip(answer, target, strict=True) for a, b in zip(ours, theirs, strict=True)]
    return f"{sum(cells)} of {len(cells)} cells right"
