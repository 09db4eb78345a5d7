"""One colour for each arm, the same in figures and on the MLflow page; told apart by colour-blind readers too."""

import zlib

GOOD, BAD, INACTIVE = "#009E73", "#D55E00", "#B8B8B8"  # after Okabe and Ito

_ARMS = {
    "per_token": "#0072B2",
    "aggregated": "#E69F00",
    "metric_only": "#CC79A7",
    "none": "#7F7F7F",
    "task_only": "#7F7F7F",
    "relative": "#56B4E9",
    "fisher": "#117733",
    "top_k": "#E31A1C",
    "remoe": "#6B8E23",
    "switch": "#44AA99",
    "magnitude": "#332288",
    "magnitude_ste": "#F781BF",
    "dense": "#000000",
}
_OTHERS = (
    *("#882255", "#B5A300", "#44AA99", "#AA4499", "#D55E00", "#332288", "#A6761D", "#E31A1C", "#8DA0CB", "#1A1A1A"),
    *("#F781BF", "#6B8E23", "#5C7A89"),
)


def arm_colour(arm: str) -> str:
    """The colour of an arm, as #RRGGBB; always the same for the same name."""
    return _ARMS.get(arm) or _OTHERS[zlib.crc32(arm.encode()) % len(_OTHERS)]
