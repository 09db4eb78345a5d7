"""The routing map against what each layer computes at each token, and its colours cell by cell."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from pipeline import api
from pipeline.colours import GRID_COLOURS
from pipeline.data.model_use import Layout
from pipeline.data.task import Pair, Task, grid_of
from pipeline.data.tokens import COLOURS, encode_task, grid_layout
from pipeline.errors import UserError
from pipeline.tasks import RoutingMaps, Sequence, in_lines
from pipeline.tasks.arc import ARC
from pipeline.training.build import build_model
from pipeline.training.checkpoint import write_tensors
from pipeline.training.model_file import TrainedModel
from pipeline.training.routing_map import RoutingMap, map_routing, plot_map, read_map, save_map
from tests.pipeline.arc_samples import as_json, random_task
from tests.pipeline.samples import small_experiment
from tests.pipeline.tasks.own import TASK as OWN_TASK
from tests.pipeline.tasks.own import parity_row
from tests.pipeline.tasks.test_contract import parity
from tiny_onn.layers import sparse_layers

TASK = random_task("sample", 3)


@pytest.mark.parametrize("projection", ["q", "o"])
def test_the_expert_at_a_token_has_the_largest_weight_there(projection: str) -> None:
    model = build_model(small_experiment(arm="top_k"))
    sequence = encode_task(TASK, 0)
    inputs: dict[str, torch.Tensor] = {}
    layers = {name: layer for name, layer in sparse_layers(model).items() if name.endswith(f".{projection}")}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0].detach()}))
        for name, layer in layers.items()
    ]
    mapped = map_routing(model, sequence, ARC, projection=projection)
    for handle in handles:
        handle.remove()
    assert mapped.experts.shape == (2, len(sequence))
    for place, (name, layer) in enumerate(layers.items()):
        for token in range(len(sequence)):
            weights = layer.routing(inputs[name], learn=False).weights()[0, token].tolist()
            largest = max(weights)
            expected = weights.index(largest) if largest > min(weights) else -1
            assert mapped.experts[place, token] == expected
    assert not any(layer.call_point._forward_hooks for layer in sparse_layers(model).values())


def test_where_all_experts_speak_alike_none_dominates() -> None:
    routing = map_routing(build_model(small_experiment(arm="dense")), encode_task(TASK, 0), ARC)
    assert (routing.experts == -1).all()


def test_every_cell_has_the_colour_of_its_expert() -> None:
    pairs = (Pair(grid_of(np.array([[1, 2]])), grid_of(np.array([[3], [4]]))),)
    sequence = encode_task(Task("by hand", pairs, pairs), 0)
    experts = np.full((1, len(sequence)), 90, dtype=np.int32)
    cells = np.flatnonzero((sequence.tokens < COLOURS) & (sequence.coordinates[0] > 0))
    experts[0, cells] = [7, 7, 7, 5, 7, 5, -1, 5]  # 7 most often, then 5; once none
    figure = plot_map(RoutingMap("by hand", grid_layout(sequence.tokens, *sequence.coordinates), experts, ("L0.o",), 4))
    task, layer = (np.asarray(image.get_array()) for image in figure.axes[0].images)
    # four grids side by side, 1 x 2, 2 x 1, 1 x 2 and 2 x 1 cells, with two cells between them
    places = [(0, 0), (0, 1), (0, 4), (1, 4), (0, 7), (0, 8), (0, 11), (1, 11)]
    pixels = task.shape[0] // 2
    middle = [(pixels * row + pixels // 2, pixels * column + pixels // 2) for row, column in places]
    assert [tuple(task[at]) for at in middle] == [to_rgb(GRID_COLOURS[value]) for value in (1, 2, 3, 4) * 2]
    tab10 = colormaps["tab10"].colors  # type: ignore[attr-defined]
    first, second, none = tab10[0], tab10[1], (1.0, 1.0, 1.0)
    expected = [first, first, first, second, first, second, none, second]
    assert [tuple(layer[at]) for at in middle] == [pytest.approx(colour) for colour in expected]
    words = [text.get_text() for text in (*figure.texts, *figure.axes[0].texts)]
    assert "Routing map of task by hand, step 4" in words
    assert "   7   50 %" in words
    assert "   5   38 %" in words


def the_same(one: RoutingMap, other: RoutingMap) -> bool:
    arrays = [(each.experts, each.layout.panels, each.layout.rows, each.layout.columns) for each in (one, other)]
    facts = [
        (each.task_id, each.labels, each.step, each.layout.letters, each.layout.arrows, each.layout.title)
        for each in (one, other)
    ]
    return facts[0] == facts[1] and all(map(np.array_equal, *arrays))


def test_a_map_is_written_and_read_and_anything_else_is_refused(tmp_path: Path) -> None:
    drawn = map_routing(build_model(small_experiment()), encode_task(TASK, 0), ARC, step=8)
    assert drawn.labels == ("L0.o", "L1.o")
    path = tmp_path / "1" / "step-000008.safetensors"
    lettered = replace(drawn, layout=replace(drawn.layout, letters=("$x",) * len(drawn.layout.panels), colours=None))
    for each in (lettered, drawn):
        save_map(path, each)
        assert the_same(read_map(path), each)
    again = read_map(path)
    assert again.layout.colours is not None
    assert drawn.layout.colours is not None
    assert np.array_equal(again.layout.colours, drawn.layout.colours)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-3], whole.replace(b"panels", b"others"), whole.replace(b"I32", b"F32")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a readable routing map"):
            read_map(path)
    layout, n = drawn.layout, len(drawn.layout.panels)
    for wrong in (
        {"rows": layout.rows[:-1]},
        {"columns": np.full(n, 256)},
        {"panels": np.full(n, -1)},
        {"colours": np.full(n, 10)},
        {"letters": ("x",)},
        {"letters": ("12345",) * n},
    ):
        save_map(path, replace(drawn, layout=replace(layout, **wrong)))
        with pytest.raises(UserError, match="not a readable routing map"):
            read_map(path)
    for labels in (("L0.o",), (1, 2)):
        save_map(path, replace(drawn, labels=labels))
        with pytest.raises(UserError, match="2 layers with the labels"):
            read_map(path)


def test_a_map_of_an_earlier_version_is_the_same(tmp_path: Path) -> None:
    sequence = encode_task(TASK, 0)
    drawn = map_routing(build_model(small_experiment()), sequence, ARC, step=8)
    arrays = {"tokens": sequence.tokens, "experts": drawn.experts}
    arrays |= dict(zip(("rows", "columns"), sequence.coordinates, strict=True))
    tensors = {name: torch.from_numpy(array.astype(np.int32)) for name, array in arrays.items()}
    write_tensors(tmp_path / "old", tensors, {"task_id": "sample", "projection": "o", "step": "8"})
    assert the_same(read_map(tmp_path / "old"), drawn)


def test_the_cells_of_a_row_in_lines_have_its_letters_and_the_colours_of_their_experts() -> None:
    row = Sequence(np.arange(5), task_id="five")
    layout = in_lines(row, width=2, letters=tuple("ab$de"))
    experts = np.array([[3, 3, -1, 4, 3]])
    figure = plot_map(RoutingMap("five", layout, experts, ("L7.up",)))
    _, layer = (np.asarray(image.get_array()) for image in figure.axes[0].images)
    pixels = layer.shape[0] // 3
    seen = [tuple(layer[pixels * (n // 2) + pixels // 2, pixels * (n % 2) + pixels // 2]) for n in range(6)]
    first, second = colormaps["tab10"].colors[:2]  # type: ignore[attr-defined]
    white = (1.0, 1.0, 1.0)
    assert seen == [pytest.approx(colour) for colour in (first, first, white, second, first, white)]
    texts = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert {letter: texts[letter] for letter in "ab$de"} == {
        "a": (0.5, 0.5), "b": (1.5, 0.5), "$": (0.5, 1.5), "d": (1.5, 1.5), "e": (0.5, 2.5)
    }  # fmt: skip
    assert "L7.up" in texts
    long = in_lines(Sequence(np.arange(300)), width=1)
    assert long.problem(300) is None
    assert long.panels.tolist() == [0] * 256 + [-1] * 44


def test_of_a_model_of_ones_own_the_last_module_of_each_layer_is_drawn() -> None:
    settings = parity()
    model = build_model(settings)
    row = parity_row(1, 6)
    drawn = map_routing(model, row, OWN_TASK)
    assert drawn.labels == ("L0.rungs", "L1.rungs", "L2.entry")
    assert drawn.experts.shape == (3, 6)
    assert map_routing(model, row, OWN_TASK, projection="entry").labels == ("L2.entry",)
    with pytest.raises(UserError, match="projection: found 'o'; expected one of the model's: entry, rungs"):
        map_routing(model, row, OWN_TASK, projection="o")
    with pytest.raises(UserError, match=r"data\.task 'parity' draws no rows \(Task\.maps is None\)"):
        map_routing(model, row, replace(OWN_TASK, maps=None))
    with pytest.raises(UserError, match=r"the layout of row 'r01' .* has panels as int64"):
        map_routing(model, row, replace(OWN_TASK, maps=RoutingMaps(lambda row: Layout(*[np.zeros(1, int)] * 3))))
    trained = TrainedModel(model, settings)
    assert len(api.routing_map(trained, row).axes[0].images) == 4
    with pytest.raises(
        UserError, match=r"found a str; expected a pipeline\.tasks\.Sequence, because .* no RoutingMaps\.row_of"
    ):
        api.routing_map(trained, "x")


def test_a_notebook_draws_any_task_and_refuses_what_has_no_grid() -> None:
    experiment = small_experiment()
    model = TrainedModel(build_model(experiment), experiment, step=8)
    figure = api.routing_map(model, as_json(TASK), projection="v")
    assert len(figure.axes[0].images) == 1 + experiment.model.layers
    assert any(text.get_text() == "L1.v" for text in figure.axes[0].texts)
    with pytest.raises(UserError, match="projection: found 'x'; expected one of the model's: k, o, q, v"):
        api.routing_map(model, TASK, projection="x")
    with pytest.raises(UserError, match="no test pair 1; there are 1"):
        api.routing_map(model, TASK, 1)
    with pytest.raises(UserError, match="the model was trained on at most 128"):
        api.routing_map(model, random_task("large", 1, side=12))
