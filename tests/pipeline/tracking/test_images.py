"""A run's images: each kind by its own key, each step once, and what is damaged is told and left out."""

import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pipeline.data.tokens import encode_task
from pipeline.errors import UserError
from pipeline.layout import Output, TrialFolder
from pipeline.records.delivery import delivery_state, read_delivery
from pipeline.remote.index import is_allowed
from pipeline.reporting.page import html
from pipeline.reporting.report import make_report
from pipeline.tasks.arc import ARC
from pipeline.tracking.images import last_images, open_figure, run_images
from pipeline.tracking.shipping import has_all, lacks
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from pipeline.training.build import build_model
from pipeline.training.routing_map import map_routing, save_map
from tests.pipeline.arc_samples import random_task
from tests.pipeline.samples import small_experiment
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_snapshot, write_spool

STATE = {"creation_key": 32 * "0", "run_id": 32 * "0", "offset": 0, "ended": None}


def write_images(folder: TrialFolder, *steps: int) -> None:
    for step in steps:
        write_snapshot(folder, step)
        drawn = map_routing(build_model(small_experiment()), encode_task(random_task("sample", 1), 0), ARC, step=step)
        save_map(folder.routing_maps / "1" / f"step-{step:06d}.safetensors", drawn)
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, step])
        place = folder.figures / "a.line" / f"step-{step:06d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(place)


def keys_of(folder: TrialFolder) -> list[tuple[str, int]]:
    return [(each.key, each.step) for each in run_images(folder)]


def test_images_are_found_by_kind_and_step_and_may_go_to_a_storage(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    write_images(folder, 1_000_000, 10)
    (folder.figures / "a.line" / "step-000010.txt").write_text("no image")
    (folder.routing_maps / "x").mkdir()
    kinds = ("prototype_distribution", "routing_map_1", "a.line")
    assert keys_of(folder) == [(kind, step) for kind in kinds for step in (10, 1_000_000)]
    assert {key: each.step for key, each in last_images(folder).items()} == dict.fromkeys(kinds, 1_000_000)
    names = [each.name for each in run_images(folder)]
    for each, name in zip(run_images(folder), names, strict=True):
        assert is_allowed(each.path.relative_to(folder.root).as_posix()), name
    delivery_state({**STATE, "figures": names})


@pytest.mark.parametrize("name", ["../x/step-000001.png", "figures/../step-000001.png", "figures/.x/step-000001.png"])
def test_a_name_that_leads_elsewhere_is_none(name: str) -> None:
    assert not is_allowed(name)
    with pytest.raises(ValueError, match="is not the file name of an image"):
        delivery_state({**STATE, "figures": [name]})


def test_what_is_no_png_is_refused(tmp_path: Path) -> None:
    write_images(TrialFolder(tmp_path), 1)
    path = tmp_path / "figures" / "a.line" / "step-000001.png"
    whole = path.read_bytes()
    for data in (b"", b"<svg/>", whole[:100], b"GIF89a" + whole):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not a readable figure"):
            open_figure(path)


def test_a_run_gets_each_step_of_each_kind_once_and_the_report_shows_the_last(tmp_path: Path) -> None:
    output, sample = Output(tmp_path), experiment("images", arms=("per_token",), seeds=(0,))
    ((trial, folder),) = trials(output, sample)
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    write_spool(trial, folder)
    write_images(folder, 10, 20)
    damaged = folder.routing_maps / "2" / "step-000020.safetensors"
    damaged.parent.mkdir()
    damaged.write_bytes(b"damaged")
    delivery = tracker.start_trial(folder, trial, "images", EXTRA)
    run_id = delivery.run_id
    tracker.end_trial(delivery, "FINISHED")
    assert not tracker.close("FINISHED")
    client = open_store(output.tracking_uri)

    def sent() -> list[tuple[str, int]]:
        paths = [file.path.replace("%", "+") for file in client.list_artifacts(run_id, "images")]
        parts = [path.removeprefix("images/").split("+") for path in paths if path.endswith(".png")]
        return sorted((part[0], int(part[2])) for part in parts)

    kinds = ("a.line", "prototype_distribution", "routing_map_1")
    assert sent() == [(kind, step) for kind in kinds for step in (10, 20)]
    assert "routing map" in client.get_run(run_id).data.tags["unreadable_snapshot"]
    state = read_delivery(folder.delivery)
    assert state is not None
    assert has_all(folder, state, "FINISHED")
    assert set(state.figures) == {each.name for each in run_images(folder)}
    shutil.rmtree(damaged.parent)
    assert not lacks(client, run_id, folder)
    write_images(folder, 30)
    assert not has_all(folder, state, "FINISHED")
    assert lacks(client, run_id, folder)
    report = make_report(output.tracking_uri, "tests", "images")
    assert sorted(report.filed.figures[run_id]) == ["a.line", "routing_map_1"]
    page = html(report)
    assert page.count("data:image/png;base64,") == 2
    assert "routing map 1: per_token, seed 0" in page
    assert "a.line: per_token, seed 0" in page
