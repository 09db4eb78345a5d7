"""The report's page: whole in itself, safe, and honest about what is missing."""

import base64
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from pipeline.colours import GRID_COLOURS, arm_colour
from pipeline.data.tokens import encode_task
from pipeline.layout import Output
from pipeline.reporting import figures
from pipeline.reporting.artifacts import Drawn, read_artifacts
from pipeline.reporting.columns import Column
from pipeline.reporting.comparisons import OVER_BASELINES, Primary, compare, note
from pipeline.reporting.grids import grid_svg, verdict
from pipeline.reporting.page import html
from pipeline.reporting.report import make_report
from pipeline.reporting.statistics import paired_difference
from pipeline.settings.config import StudyConfig
from pipeline.tasks.arc import ARC
from pipeline.tracking.tracker import Tracker
from pipeline.training.build import build_model
from pipeline.training.distributions import STEPS_A_PIECE, DistributionPieces, last_distributions, last_piece, pieces_in
from pipeline.training.routing_map import map_routing, save_map
from tests.pipeline.arc_samples import random_task
from tests.pipeline.samples import small_experiment
from tests.pipeline.sweep_samples import ARMS, EXTRA, experiment, trials, write_spool
from tiny_onn.routing_health import routing_health

EVIL = "<script>alert('x')</script> & \"more\""


def _leave_files(trial, folder):
    """What training leaves beside the spool: histograms, and predictions of which some are not well-formed."""
    if trial.experiment.training.arm != "task_only":
        weights = torch.rand(6, 4)
        DistributionPieces(folder.distributions).add(
            20, {layer: [routing_health(weights, weights, (weights,) * 3)] for layer in range(3)}
        )
    predictions = [
        {"task_id": EVIL, "pair": 0, "input": [[1, 2]], "target": [[3], [4]], "prediction": [[3], [5]], "exact": False},
        {"task_id": "none", "pair": 0, "input": [[1]], "target": [[1]], "prediction": None, "exact": False},
        {"task_id": "odd", "pair": 0, "input": [[1]], "target": [[1]], "prediction": [["<b>"]], "exact": False},
    ]
    folder.predictions.write_text(json.dumps(predictions))
    drawn = map_routing(build_model(small_experiment()), encode_task(random_task(EVIL, 1), 0), ARC, step=20)
    save_map(folder.routing_maps / "1" / "step-000020.safetensors", drawn)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return Output(tmp_path_factory.mktemp("page"))


def _report(output, sample, leave):
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    tracker.start_summary(output.sweep(sample.name), sample)
    for trial, folder in trials(output, sample):
        write_spool(trial, folder)
        if leave:
            _leave_files(trial, folder)
        delivery = tracker.start_trial(folder, trial, sample.name, EXTRA)
        tracker.end_trial(delivery, "FINISHED")
    tracker.end_summary("FINISHED", [])
    return make_report(output.tracking_uri, "tests", sample.name)


@pytest.fixture(scope="module")
def whole(output):
    return _report(output, experiment("whole").model_copy(update={"description": EVIL}), True)


@pytest.fixture(scope="module")
def text(whole):
    return html(whole)


def test_the_page_loads_nothing_and_escapes_every_name(text):
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;more&#34;" in text  # description and task
    assert text.count("&lt;script&gt;") == 2
    assert re.findall(r"""(?:src|href)=(?!"data:image/(?:svg|png)|"#).{20}""", text) == []
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_every_section_is_there_with_figures_that_can_be_read(text):
    anchors = re.findall(r'<h2 id="(\w+)">', text)
    assert anchors == [
        "findings", "density", "means", "differences", "curves", "activation", "distributions", "experts",
        "predictions", "routing", "speed", "environment", "seeds",
    ]  # fmt: skip
    assert re.findall(r'<a href="#(\w+)">', text) == anchors
    pictures = [base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", text)]
    assert len(pictures) == 7
    for picture in pictures:
        assert ET.fromstring(picture).tag.endswith("svg")
    for arm in ("per_token", "aggregated", "task_only"):
        assert f'background:{arm_colour(arm)}"></span>{arm}' in text
        assert arm_colour(arm).lower() in pictures[2]  # the learning curves
    assert "Left out" not in text
    maps = re.findall(r'alt="([^"]*)" src="data:image/png;base64,([\w+/=]+)"', text)
    assert [alt for alt, _ in maps] == [f"routing map 1: {arm}, seed 0" for arm in ARMS]
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in maps)


def test_grids_are_drawn_beside_their_targets(text):
    assert text.count("1 of 2 cells right") == 3  # each arm's
    assert text.count("no grid") == 3
    assert grid_svg([[3], [5]], "prediction of task_only") in text
    assert "odd" not in text  # a grid that is none is not drawn
    assert ET.fromstring(grid_svg([[0, 9]], "<x>")).attrib["aria-label"] == "<x>"
    assert grid_svg([[0, 9]], "x").count(GRID_COLOURS[9]) == 1
    wide = Drawn("t", 0, [[1]], [[1, 1]], [[1]])
    assert verdict(wide) == "1×1 instead of 1×2"
    assert verdict(Drawn("t", 0, [[1]], [[1]], [[1]])) == "exact"


def test_what_older_runs_lack_is_left_out_and_named(output):
    report = _report(output, experiment("older", arms=("per_token",), seeds=(0,)), False)
    text = html(report)
    (said,) = re.findall(r"Left out[^<]*", text)
    for title in (
        "Differences to per_token",
        "Learning cost and Goodness by layer",
        "Held-out predictions",
        "Routing maps",
    ):
        assert title in said
    assert "observer" not in said
    assert "Versions and machine were not recorded" in text
    assert "peak memory (MiB)" not in text
    assert "At most 1 seed per arm: too few to predict other seeds" in text


def test_a_study_says_what_it_asked_and_a_grid_has_a_panel_for_each_cell(output, monkeypatch):
    monkeypatch.setattr(figures, "MOST_CELLS", 2)
    told = {
        "question": "Is it <b>so</b>?",
        "control": "c",
        "intervention": "i",
        "primary_metric": "m",
        "expectation": "Yes.",
    }
    sample = experiment("study", arms=("per_token",), seeds=(0,), grid={"model.layers": (1, 2, 3)})
    text = html(_report(output, sample.model_copy(update={"study": StudyConfig(**told)}), False))
    assert "<b>question</b>: Is it &lt;b&gt;so&lt;/b&gt;?" in text
    assert "<b>expectation</b>: Yes." in text
    assert "figures show the first 2 of 3 cells of the grid" in text
    assert '<th class="text">layers</th>' in text


def test_damaged_files_are_no_reason_not_to_report(output):
    sample = experiment("damaged", arms=("per_token",), seeds=(0,))
    ((_, folder),) = trials(output, sample)
    folder.root.mkdir(parents=True)
    folder.distributions.mkdir()
    (folder.distributions / "step-000010.json").write_text('{"steps": [{"layers": 1}]}')
    folder.predictions.write_text("[1, {}")
    report = _report(output, sample, False)
    assert read_artifacts(output.tracking_uri, report.results).distributions == {}
    assert "Left out" in html(report)


def _health():
    weights = torch.tensor([[0.5, 1.0]])
    return routing_health(weights, weights, (weights, weights, weights))


def _steps(folder):
    return [[each["step"] for each in json.loads(piece.read_text())["steps"]] for piece in pieces_in(folder)]


def test_distributions_add_up_and_a_repeated_step_replaces_itself(tmp_path):
    health, pieces = _health(), DistributionPieces(tmp_path)
    for step in (10, 20, 10):
        pieces.add(step, {0: [health, health], 1: [health]})
    assert _steps(tmp_path) == [[10]]
    last = last_distributions((tmp_path / "step-000010.json").read_text())
    assert last.cost[0].counts.sum() == 4
    assert last.cost[1].counts.sum() == 2
    assert last.goodness[1].counts[-2] == 1  # the best expert, at mas(Goodness) of almost 1
    assert np.flatnonzero(last.goodness[1].counts)[0] == len(last.goodness[1].edges) - 3  # a half: 10^-0.3
    DistributionPieces(tmp_path / "none").add(10, {0: [routing_health(torch.tensor([[0.5, 1.0]]))]})
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="not a file of distributions"):
        last_distributions("[]")


def test_distributions_lie_in_pieces_that_change_no_more(tmp_path):
    health, pieces = _health(), DistributionPieces(tmp_path)
    seen = {}
    for step in range(1, 3 * STEPS_A_PIECE + 3):
        pieces.add(step, {0: [health]})
        for piece in pieces_in(tmp_path)[:-1]:
            assert seen.setdefault(piece.name, piece.read_bytes()) == piece.read_bytes()
    assert [step for piece in _steps(tmp_path) for step in piece] == list(range(1, 3 * STEPS_A_PIECE + 3))
    assert max(map(len, _steps(tmp_path))) == STEPS_A_PIECE
    last = last_piece([path.name for path in tmp_path.iterdir()] + ["step-9.json", "x"])
    assert last_distributions((tmp_path / last).read_text()).step == 3 * STEPS_A_PIECE + 2
    assert last_piece([]) is None


@pytest.mark.parametrize("step", [1, 2, STEPS_A_PIECE, STEPS_A_PIECE + 1, 2 * STEPS_A_PIECE + 1, 100])
def test_a_run_that_goes_on_from_an_earlier_step_has_each_step_once(tmp_path, step):
    health = _health()
    before = DistributionPieces(tmp_path)
    for each in range(1, 2 * STEPS_A_PIECE + 3):
        before.add(each, {0: [health]})
    pieces_in(tmp_path)[-1].write_bytes(b"half") if step == 100 else None  # damaged: its steps are lost, no others
    again = DistributionPieces(tmp_path)
    for each in (step, step + 1):
        again.add(each, {0: [health]})
    left = range(1, min(step, 2 * STEPS_A_PIECE + 1 if step == 100 else 99))
    assert [step for piece in _steps(tmp_path) for step in piece] == [*left, step, step + 1]


def test_the_one_file_of_before_there_were_pieces_is_still_shown(output):
    sample = experiment("older", arms=("per_token",), seeds=(0,))
    ((_, folder),) = trials(output, sample)
    DistributionPieces(folder.distributions).add(20, {0: [_health()]})
    (folder.distributions / "step-000020.json").rename(folder.one_file_of_distributions)
    folder.distributions.rmdir()
    report = _report(output, sample, False)
    (newest,) = read_artifacts(output.tracking_uri, report.results).distributions.values()
    assert newest.step == 20


LOSS = Column("loss", "loss", "nats", lambda _: 0.0)


def _note(differences):
    return note(differences, compare(differences, (LOSS,), None), "per_token")


def test_the_note_says_what_so_few_seeds_can_tell():
    few = {1: {"loss": paired_difference(dict.fromkeys(range(3), 1.0), {s: 0.5 - s / 100 for s in range(3)})}}
    text = _note(few)
    assert "1 exploratory comparison: 1 to per_token. The p-values" in text
    assert "With 3 seeds no p-value can be below 0.25" in text
    assert "6 seeds are needed for one of 1" in text
    two = {**few, 2: few[1]}
    assert "by chance" not in _note(two)  # of 3 seeds no p-value is below 0.25
    nine = range(9)
    clear = {"loss": paired_difference(dict.fromkeys(nine, 1.0), {s: 0.5 - s / 100 for s in nine})}
    many = {
        1: clear,
        2: clear,
        3: {"loss": paired_difference({s: (-1.0) ** s for s in nine}, dict.fromkeys(nine, 0.0))},
    }
    text = _note(many)
    assert "2 of 3 are below 0.05 after the correction." in text
    assert "without any real difference, 0.1 of them would be at or below 0.05 by chance" in text  # 3 x 12/256
    assert _note({}) == ""
    # The one that was named before the runs is none of them, and what is timed is not tested.
    timed = Column("seconds", "time", "s", lambda _: 0.0, tested=False)
    primary = Primary("loss of mine", (1, "loss"))
    three = {place: {**each, "seconds": clear["loss"]} for place, each in many.items()}
    compared = compare(three, (LOSS, timed), primary)
    assert {key for key, each in compared.items() if each.primary} == {(1, "loss")}
    assert set(compared) == {(1, "loss"), (2, "loss"), (3, "loss")}
    assert compared[1, "loss"].p == compared[2, "loss"].p < compared[2, "loss"].adjusted == 2 * compared[2, "loss"].p
    over = {1: {OVER_BASELINES: clear["loss"]}, 2: clear}
    assert "2 exploratory comparisons: 1 to per_token and 1 to the baselines at equal density" in _note(over)
