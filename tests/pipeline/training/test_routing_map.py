"""The routing map against what each layer computes at each token, and its colours cell by cell."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from pipeline import api
from pipeline.colours import GRID_COLOURS
from pipeline.data.task import Pair, Task, grid_of
from pipeline.data.tokens import COLOURS, encode_task
from pipeline.errors import UserError
from pipeline.training.build import build_model
from pipeline.training.model_file import TrainedModel
from pipeline.training.routing_map import RoutingMap, map_routing, plot_map, read_map, save_map
from tests.pipeline.arc_samples import as_json, random_task
from tests.pipeline.samples import small_experiment
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
    mapped = map_routing(model, sequence, projection=projection)
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
    routing = map_routing(build_model(small_experiment(arm="dense")), encode_task(TASK, 0))
    assert (routing.experts == -1).all()


def test_every_cell_has_the_colour_of_its_expert() -> None:
    pairs = (Pair(grid_of(np.array([[1, 2]])), grid_of(np.array([[3], [4]]))),)
    sequence = encode_task(Task("by hand", pairs, pairs), 0)
    experts = np.full((1, len(sequence)), 90, dtype=np.int32)
    cells = np.flatnonzero((sequence.tokens < COLOURS) & (sequence.coordinates[0] > 0))
    experts[0, cells] = [7, 7, 7, 5, 7, 5, -1, 5]  # 7 most often, then 5; once none
    known = (np.asarray(each, np.int32) for each in (sequence.tokens, *sequence.coordinates))
    tokens, rows, columns = known
    figure = plot_map(RoutingMap("by hand", tokens, rows, columns, experts, step=4))
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


def test_a_map_is_written_and_read_and_anything_else_is_refused(tmp_path: Path) -> None:
    routing = map_routing(build_model(small_experiment()), encode_task(TASK, 0), step=8)
    path = tmp_path / "1" / "step-000008.safetensors"
    save_map(path, routing)
    again = read_map(path)
    assert (again.task_id, again.projection, again.step) == ("sample", "o", 8)
    for name in ("tokens", "rows", "columns", "experts"):
        assert np.array_equal(getattr(again, name), getattr(routing, name))
    whole = path.read_bytes()
    for damaged in (b"", whole[:-3], whole.replace(b"tokens", b"others"), whole.replace(b"I32", b"F32")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a readable routing map"):
            read_map(path)
    save_map(path, RoutingMap("x", routing.tokens, routing.rows[:-1], routing.columns, routing.experts))
    with pytest.raises(UserError, match="not a readable routing map"):
        read_map(path)


def test_a_notebook_draws_any_task_and_refuses_what_has_no_grid() -> None:
    experiment = small_experiment()
    model = TrainedModel(build_model(experiment), experiment, step=8)
    figure = api.routing_map(model, as_json(TASK), projection="v")
    assert len(figure.axes[0].images) == 1 + experiment.model.layers
    assert any(text.get_text() == "L1.v" for text in figure.axes[0].texts)
    with pytest.raises(UserError, match="projection: found 'x'; expected q, k, v or o"):
        api.routing_map(model, TASK, projection="x")
    with pytest.raises(UserError, match="no test pair 1; there are 1"):
        api.routing_map(model, TASK, 1)
    with pytest.raises(UserError, match="the model was trained on at most 128"):
        api.routing_map(model, random_task("large", 1, side=12))
