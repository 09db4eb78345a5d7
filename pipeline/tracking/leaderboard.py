"""The MLflow page, opened where it helps: arms as a leaderboard, curves, loss over density, prototypes by step."""

import base64
import json
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import measures
from pipeline.data.contract import BUILT_IN, find_task
from pipeline.mlflow_private import VIEW
from pipeline.tracking.describe import SEED, SWEEP, SWEEP_ID, params_of
from pipeline.tracking.images import FIGURE
from pipeline.tracking.store import plain

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_ARMS, _DENSITY, _PROTOTYPES = "arms", "density", "prototypes"  # the keys of the shared views
_MOST_VARIED = 4  # settings by which runs are grouped besides their arm; of a wide search only the first of them
_IMAGES = 10  # runs of which MLflow's page shows images
_MOST_SWEEPS = 20  # that have views of prototypes
_QUOTABLE = re.compile(r"[A-Za-z0-9._-]+")
_NOT_A_CELL = {"arm", "seed", "training.arm", "training.seed", "name", "description"}
_LOSSES = (
    measures.HELD_OUT_LOSS,
    measures.EVALUATION_LOSS,
    measures.TASK_LOSS,
)  # on a linear axis, which begins at 0, arms look all alike
_LAYER = re.compile(rf"{measures.ACTIVATION_RATE}/L(\d+)")


def share_leaderboard(client: "MlflowClient", experiment_id: str) -> None:
    """Stores three views with the experiment: runs grouped by arm and cell of the grid, with the columns that matter
    and their charts; every run's held-out loss over its density; and the prototype distributions of a sweep's arms side
    by side, of its lowest seed, in as many views as `prototype_pages` says.

    MLflow does not document this view state (tried with 3.17). Where a later version does not know it, the links still
    open the runs, only without the columns.
    """
    runs = client.search_runs([experiment_id], filter_string="tags.role = 'trial'", max_results=1000)
    layers = {int(m[1]) for run in runs for m in map(_LAYER.fullmatch, run.data.metrics) if m}
    sweeps = {(run.data.tags.get(SWEEP), run.data.tags.get(SWEEP_ID, "")) for run in runs}
    names = {name for name, _ in sweeps}
    apart = [*([SWEEP] if len(names) > 1 else []), *([SWEEP_ID] if len(sweeps) > len(names) else [])]
    recorded = {name for run in runs for name in run.data.metrics}
    arms = view_state(sorted(layers) or [0], apart, recorded, _varied(runs))
    views = {_ARMS: arms, _DENSITY: density_view(arms, recorded)}
    views |= {page.key: prototypes_view(arms, page) for page in prototype_pages(runs)}
    for key, view in views.items():
        state = {"name": key, "createdAt": 0, "updatedAt": 0, "state": _packed(view)}
        client.set_experiment_tag(experiment_id, f"{VIEW}{key}", json.dumps(state))


def links(address: str, experiment_id: str) -> dict[str, str]:
    """The addresses of the page's useful views, on the server at `address`."""
    page = f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return {
        "leaderboard by arm": f"{page}{_ARMS}",
        "curves by arm": f"{page}{_ARMS}&compareRunsMode=CHART",
        "held-out loss over active experts": f"{page}{_DENSITY}&compareRunsMode=CHART",
        "prototypes, step by step": f"{page}{_PROTOTYPES}&compareRunsMode=CHART",
    }


def prototype_links(client: "MlflowClient", address: str, experiment_id: str) -> dict[str, str]:
    """The addresses of the prototype views after the first, which `links` has: of other sweeps, and of further arms."""
    runs = client.search_runs([experiment_id], filter_string="tags.role = 'trial'", max_results=1000)
    page = f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return {each.title: f"{page}{each.key}&compareRunsMode=CHART" for each in prototype_pages(runs)[1:]}


@dataclass(frozen=True)
class PrototypePage:
    """One view of prototypes: its key and title, the runs that it shows, and the step that it opens at."""

    key: str
    title: str
    search: str
    step: int


def prototype_pages(runs: "Sequence[Run]") -> list[PrototypePage]:
    """The views that show all prototypes of each sweep's lowest seed, the newest sweep first.

    MLflow's chart of images shows ten runs and no more (seen with 3.17): a sweep of more arms and cells has several.

    Args:
        runs: trials, the newest first.
    """
    sweeps: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        sweeps.setdefault((run.data.tags.get(SWEEP, ""), run.data.tags.get(SWEEP_ID, "")), []).append(run)
    pages: list[PrototypePage] = []
    for (sweep, sweep_id), mine in list(sweeps.items())[:_MOST_SWEEPS]:
        seeds = [int(run.data.tags[SEED]) for run in mine if run.data.tags.get(SEED, "").isdecimal()]
        shown = [run for run in mine if run.data.tags.get(SEED) == str(min(seeds, default=0))]
        shown.sort(key=lambda run: run.info.start_time)
        groups = [shown[start : start + _IMAGES] for start in range(0, len(shown), _IMAGES)]
        for number, group in enumerate(groups, start=1):
            key = f"{_PROTOTYPES}-{len(pages)}" if pages else _PROTOTYPES
            title = f"prototypes of {plain(sweep)}" + (f", {number} of {len(groups)}" if len(groups) > 1 else "")
            if sum(name == sweep for name, _ in sweeps) > 1:
                title += f" ({plain(sweep_id) or 'without an id'})"
            search = f"tags.role = 'trial' and tags.{SWEEP} = '{sweep}' and tags.{SEED} = '{shown[0].data.tags[SEED]}'"
            search += f" and tags.{SWEEP_ID} = '{sweep_id}'" if sweep_id else ""
            if len(groups) > 1 or not _QUOTABLE.fullmatch(f"{sweep}{sweep_id}"):
                search = f"attributes.run_id IN ({', '.join(repr(run.info.run_id) for run in group)})"
            steps = max(int(params_of(run).get("training.steps", 0)) for run in group)
            pages.append(PrototypePage(key, title, search, steps))
    return pages


def report_links(client: "MlflowClient", address: str, experiment_id: str) -> dict[str, str]:
    """The addresses of the sweeps' reports, in their summary runs, or of a summary without one yet; the newest of each
    sweep. Sweeps with one name are listed with their ids."""
    runs = client.search_runs([experiment_id], "tags.role = 'summary'", order_by=["attributes.start_time ASC"])
    page = f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs"
    links: dict[tuple[str, str], dict[str, str]] = {}
    ids: dict[str, set[str]] = {}
    for run in runs:
        ids.setdefault(run.data.tags.get(SWEEP, "?"), set()).add(run.data.tags.get(SWEEP_ID, ""))
    for run in runs:
        there = any(file.path == "report.html" for file in client.list_artifacts(run.info.run_id))
        place = f"{run.info.run_id}/artifacts/report.html" if there else run.info.run_id
        sweep, known = run.data.tags.get(SWEEP, "?"), run.data.tags.get(SWEEP_ID, "")
        name = sweep if len(ids[sweep]) == 1 else f"{sweep} ({known or 'without an id'})"
        links[sweep, known] = {
            f"{'report' if there else 'summary'} of {name}": f"{page}/{place}?workflowType=machine_learning"
        }
    return {name: link for links_of in links.values() for name, link in links_of.items()}


def view_state(
    layers: list[int], apart: Sequence[str] = (), recorded: Collection[str] = (), cells: Sequence[str] = ()
) -> dict[str, Any]:
    """What the page shows, in the page's own terms; the tags `apart` keep the arms of several sweeps apart, and the
    settings `cells` the cells of a grid.

    `recorded` are the metrics of the runs: what older runs have under an older name is shown by that name, too, and
    evaluation tasks only where they were scored.
    """
    groups = [{"mode": "tag", "groupByData": tag} for tag in apart]
    groups += [{"mode": "param", "groupByData": name} for name in ("arm", *cells)]
    metrics = [each for name in leaderboard_metrics(layers, recorded) for each in _as_recorded(name, recorded)]
    columns = [f"metrics.`{name}`" for name in metrics]
    losses = _as_recorded(measures.HELD_OUT_LOSS, recorded)
    charts = [*losses, *_scored(measures.EVALUATION_LOSS, recorded), measures.TASK_LOSS]
    charts += [measures.by_layer(measures.ACTIVATION_RATE, layer) for layer in _places(layers)]
    charts += [measures.by_layer(measures.MUTUAL_INFORMATION, layer) for layer in _places(layers)]
    charts += observed(recorded)
    return {
        "searchFilter": "tags.role = 'trial'",
        "orderByKey": f"metrics.`{losses[0]}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {
            f"metrics.`{name}`": max(110, 18 + 7 * len(name)) for name in metrics
        },  # pixels, for the heads
        "groupBy": {"aggregateFunction": "average", "groupByKeys": groups},
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "compareRunSections": [{"uuid": "arms", "name": "Arms", "display": True, "isReordered": True}, *_closed()],
        "isAccordionReordered": True,
        "compareRunCharts": [_line_chart(name) for name in charts],
    }


def density_view(arms: dict[str, Any], recorded: Collection[str] = ()) -> dict[str, Any]:
    """The view of the arms made into one chart, in which every run is a dot: its held-out loss over its density.

    The page has no logarithmic axis for this, and no line through the baselines: for these see the report. Dots have
    the colour of their arm.
    """
    loss = _as_recorded(measures.HELD_OUT_LOSS, recorded)[0]
    chart = {
        "uuid": _DENSITY,
        "type": "SCATTER",
        "metricSectionId": _DENSITY,
        "xaxis": {"key": measures.DENSITY, "type": "METRIC"},
        "yaxis": {"key": loss, "type": "METRIC"},
        "runsCountToCompare": 1000,
        "deleted": False,
        "isGenerated": False,
    }
    section = {"uuid": _DENSITY, "name": "Loss over density", "display": True, "isReordered": True}
    return {
        **arms,
        "groupBy": None,
        "useGroupedValuesInCharts": False,
        "compareRunSections": [{**section, "columns": 1, "cardHeight": 640}],
        "compareRunCharts": [chart],
    }


def prototypes_view(arms: dict[str, Any], page: PrototypePage) -> dict[str, Any]:
    """The view of the arms made into one of a page's runs with nothing but their prototypes, at first of its step.

    The runs are not grouped: a group has no images.
    """
    image = {
        "uuid": FIGURE,
        "type": "IMAGE",
        "metricSectionId": "prototypes",
        "imageKeys": [FIGURE],
        "step": page.step,
        "showRunParams": False,
        "deleted": False,
        "isGenerated": False,
    }
    return {
        **arms,
        "searchFilter": page.search,
        "groupBy": None,
        "useGroupedValuesInCharts": False,
        "compareRunSections": [
            {
                "uuid": "prototypes",
                "name": "Prototypes",
                "display": True,
                "isReordered": True,
                "columns": 1,
                "cardHeight": 640,
            }
        ],
        "compareRunCharts": [image],
    }


def leaderboard_metrics(layers: list[int], recorded: Collection[str] = ()) -> list[str]:
    """The few metrics of the leaderboard, for a model with these layers and runs with these metrics."""
    names: list[str] = []
    for metric in measures.METRICS:
        if metric.leaderboard == "always":
            names.append(metric.name)
        elif metric.leaderboard == "recorded":
            names += _scored(metric.name, recorded)
        elif metric.leaderboard == "middle":
            names.append(measures.by_layer(metric.name, layers[len(layers) // 2]))
        elif metric.leaderboard == "places":
            names += [measures.by_layer(metric.name, layer) for layer in _places(layers)]
        if metric.name == measures.EVALUATION_TOKEN_ACCURACY:
            names += [name for name in _of_examples("evaluation") if name in recorded]
    return [*names, *_task_scores(recorded), *observed(recorded)]


def _task_scores(recorded: Collection[str]) -> list[str]:
    """Of the metrics that runs have recorded, the held-out scores of their own task."""
    known = {metric.name for metric in measures.METRICS} | {*_of_examples("held_out", every=True)}
    return sorted(name for name in recorded if name.startswith("held_out/") and name not in known)


def _of_examples(split: str, every: bool = False) -> list[str]:
    """What the built-in tasks measure of examples of a split, as far as it has a column here, or all of it."""
    examples = (each for name in BUILT_IN if (drawn := find_task(name).examples) for each in drawn.measured)
    return [f"{split}/{each.name}" for each in examples if every or each.leaderboard]


def observed(recorded: Collection[str]) -> list[str]:
    """Of the metrics that runs have recorded, those of their own observers."""
    return sorted(name for name in recorded if name.startswith(measures.OBSERVED))


def _varied(runs: "Sequence[Run]") -> list[str]:
    """The settings that differ between the trials of any one sweep: those of its grid, and what was sampled."""
    sweeps: dict[tuple[str, str], list[dict[str, str]]] = {}
    for run in runs:
        place = (run.data.tags.get(SWEEP, ""), run.data.tags.get(SWEEP_ID, ""))
        sweeps.setdefault(place, []).append(params_of(run))
    names = sorted({name for trials in sweeps.values() for params in trials for name in params} - _NOT_A_CELL)
    varied = [n for n in names if any(len({params.get(n) for params in trials}) > 1 for trials in sweeps.values())]
    return varied[:_MOST_VARIED]


def _scored(metric: str, recorded: Collection[str]) -> list[str]:
    return [metric] if metric in recorded else []


def _as_recorded(metric: str, recorded: Collection[str]) -> list[str]:
    """The names that the runs have a metric by, today's first; today's where none has it."""
    older = [old for old, name in measures.RENAMED.items() if name == metric and old in recorded]
    return older if older and metric not in recorded else [metric, *older]


def _closed() -> list[dict[str, Any]]:
    """The sections of per-module charts, folded: there are hundreds."""
    names = [f"{measure}.by_module" for measure in measures.HEALTH]
    return [{"uuid": name, "name": name, "display": False, "isReordered": True} for name in names]


def _places(layers: list[int]) -> list[int]:
    """First, middle and last, each once."""
    return list(dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1]]))


def _line_chart(metric: str) -> dict[str, Any]:
    return {
        "uuid": metric,
        "type": "LINE",
        "metricSectionId": "arms",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "deleted": False,
        "isGenerated": False,
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "scaleType": "log" if measures.current_name(metric) in _LOSSES else "linear",
        "xAxisScaleType": "linear",
        "lineSmoothness": 0,
        "ignoreOutliers": False,
        "useGlobalLineSmoothing": True,
        "useGlobalXaxisKey": True,
    }


def _packed(state: dict[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
