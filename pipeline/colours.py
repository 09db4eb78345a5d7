"""One colour for each arm, the same in figures and on the MLflow page, also for colour-blind readers."""

import zlib

GOOD, BAD, INACTIVE = "#009E73", "#D55E00", "#B8B8B8"  # after Okabe and Ito

GRID_COLOURS = (  # of the cells 0..9, as ARC is shown everywhere
    *("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00"),
    *("#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"),
)

_ARMS = {
    "per_token": "#0072B2",
    "aggregated": "#E69F00",
    "metric_only": "#CC79A7",
    "task_only": "#7F7F7F",
    "none": "#7F7F7F",  # its name of before
    "relative": "#56B4E9",
    "fisher": "#117733",
    "opening": "#D55E00",
    "benefit": "#1F9E3A",
    "balanced": "#6A3D9A",
    "signed": "#AA4499",
    "subtractive": "#8C510A",
    "top_k": "#E31A1C",
    "remoe": "#6B8E23",
    "switch": "#44AA99",
    "magnitude": "#332288",
    "magnitude_ste": "#F781BF",
    "dense": "#000000",
    "metric_max": "#A6761D",
    "per_token_einsum": "#5C7A89",
    "per_token_vmap": "#B5A300",
    "per_token_function": "#882255",
}
_OTHERS = (
    *("#8DA0CB", "#1B7837", "#2166AC", "#B2182B", "#762A83", "#66A61E", "#E7298A", "#7570B3", "#1B9E77", "#D95F02"),
    *("#9E9AC8", "#4D4D4D", "#00CED1"),
)


def arm_colour(arm: str) -> str:
    """The colour of an arm, as #RRGGBB; always the same for the same name."""
    return _ARMS.get(arm) or _OTHERS[zlib.crc32(arm.encode()) % len(_OTHERS)]
