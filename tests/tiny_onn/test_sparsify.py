"""sparsify(): the same weights, the same function while all experts are open, and a model that trains."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny_onn.helpers import all_gradients, new_dynamics
from tests.tiny_onn.test_capture_linear import FEED_FORWARD, encoder, inputs
from tests.tiny_onn.test_capture_peers import BLOCKS, gpt2, gpt2_loss, tokens
from tiny_onn.arm import arm as find_arm
from tiny_onn.arm import configure
from tiny_onn.capture import capture
from tiny_onn.dynamics import DynamicsReport
from tiny_onn.layers import SparseProtoLinear, router_parameters, sparse_layers
from tiny_onn.linear_layers import Where
from tiny_onn.sparsify import sparsify

OPEN = find_arm("task_only", {"gate": "open"})


class Mixed(nn.Module):
    """With a layer at two places, one without bias, and an embedding's weight for a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(7, 6)
        self.inner = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6, bias=False)])
        self.again = self.inner[0]
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in (*self.inner, self.again):
            x = torch.tanh(layer(x))
        return self.head(x)


def route(model: nn.Module) -> None:
    """Has mas for a gate again, as the layers have of themselves."""
    for layer in sparse_layers(model).values():
        layer.gate = None


def ids() -> Tensor:
    return torch.randint(7, (3, 4), generator=torch.Generator().manual_seed(4))


def test_with_all_experts_open_the_model_computes_what_it_did() -> None:
    model = Mixed()
    before, parameters, weight = model(ids()), set(model.parameters()), model.inner[0].weight
    replaced = sparsify(model)
    assert list(replaced) == ["inner.0", "inner.1", "head"]
    assert all(type(each) is nn.Linear for each in replaced.values())
    assert list(sparse_layers(model)) == list(replaced)
    assert model.again is model.inner[0]
    assert model.inner[0].mu_weight is weight
    assert model.head.mu_weight is model.embed.weight
    new = set(model.parameters()) - parameters
    assert new == {*router_parameters(model), model.inner[1].mu_bias, model.head.mu_bias}
    assert not model.inner[1].mu_bias.requires_grad
    configure(model, OPEN)
    torch.testing.assert_close(model(ids()), before, rtol=1e-12, atol=1e-14)
    route(model)
    assert not torch.allclose(model(ids()), before)


@pytest.mark.parametrize("where", [None, "layers.*.linear?", (nn.Linear,), lambda name, _: name in FEED_FORWARD])
def test_a_torch_encoder_computes_what_it_did_in_training_and_in_evaluation(where: Where | None) -> None:
    """Whose fused path takes the layers' weights: in evaluation mode it would go past the routing."""
    model = nn.TransformerEncoder(encoder().layers[0], 2)  # with nested tensors, as by default
    x, padding = inputs(2, 3, width=6), torch.tensor([[False, False, False], [False, False, True]])
    wanted = model.train()(x, src_key_padding_mask=padding)
    if where is None or isinstance(where, tuple):
        with pytest.warns(UserWarning, match=r"where: left out layers\.0\.self_attn\.out_proj"):
            replaced = sparsify(model, where)
    else:
        replaced = sparsify(model, where)
    assert tuple(replaced) == FEED_FORWARD
    configure(model, OPEN)
    torch.testing.assert_close(model(x, src_key_padding_mask=padding), wanted, rtol=1e-11, atol=1e-13)
    route(model)
    routed = model(x, src_key_padding_mask=padding)
    assert not torch.allclose(routed, wanted)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x, src_key_padding_mask=padding), routed, rtol=1e-11, atol=1e-13)


def test_gpt2_with_its_conv1d_computes_what_it_did() -> None:
    model = gpt2()
    wanted = model(input_ids=tokens()).logits
    weights = {name: layer.weight.detach().clone() for name, layer in model.named_modules() if name in BLOCKS}
    assert tuple(sparsify(model)) == (*BLOCKS, "lm_head")
    for name, weight in weights.items():
        assert torch.equal(model.get_submodule(name).mu_weight, weight.T)
    assert model.lm_head.mu_weight is model.transformer.wte.weight
    configure(model, OPEN)
    torch.testing.assert_close(model(input_ids=tokens()).logits, wanted, rtol=1e-11, atol=1e-13)


def gradients(model: nn.Module, arm: str, engine: str) -> dict[str, Tensor]:
    dynamics = new_dynamics(model, arm, engine=engine)

    def step() -> DynamicsReport:
        with dynamics.watch(torch.ones(3, 5, dtype=torch.bool), labels=12) as opened:
            return dynamics.compute_and_apply_gradients(gpt2_loss(model) / 12, opened)

    return all_gradients(dynamics, step)


@pytest.mark.parametrize("arm", ["per_token", "top_k"])
def test_a_sparse_gpt2_trains_with_either_engine_alike(arm: str) -> None:
    model = gpt2()
    sparsify(model, ["transformer.h.*.mlp.*", "lm_head"], density=0.3)
    assert len(sparse_layers(model)) == 5
    by_engine = [gradients(copy.deepcopy(model), arm, engine) for engine in ("hooks", "fused")]
    assert by_engine[0].keys() == by_engine[1].keys()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained - by_engine[0].keys() == set()
    assert "lm_head.mu_bias" not in by_engine[0]
    for name, gradient in by_engine[0].items():
        torch.testing.assert_close(by_engine[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_capture_sees_the_new_layers() -> None:
    model = Mixed()
    sparsify(model, "inner.*")
    with capture(model) as captured:
        model(ids()).square().sum().backward()
        assert [call.module_name for call in captured.calls()] == ["inner.0", "inner.1", "inner.0"]


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].register_forward_hook(lambda *_: None)
    return model


def tied_conv1d() -> nn.Module:
    model = gpt2()
    model.transformer.h[1].mlp.c_fc.weight = model.transformer.h[0].mlp.c_fc.weight
    return model


@pytest.mark.parametrize(
    ("model", "where", "said"),
    [
        (lambda: nn.Sequential(nn.ReLU()), None, "where: Linear selects no layer; the model has no linear layer"),
        (lambda: nn.Sequential(nn.Linear(3, 2)), "nosuch", "where: 'nosuch' selects no layer"),
        (lambda: nn.Sequential(SparseProtoLinear(3, 2)), (SparseProtoLinear,), "'0' is a SparseProtoLinear already"),
        (lambda: nn.Sequential(nn.Linear(3, 2).bfloat16()), None, r"'0' has parameters in torch\.bfloat16"),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))),
            None,
            "weight that is computed",
        ),
        (hooked, None, "'0' has hooks, which would be lost"),
        (tied_conv1d, None, "is a Conv1D whose weight another module uses"),
        (lambda: nn.Linear(3, 2), None, "'' is the model itself"),
    ],
)
def test_what_cannot_be_replaced_is_refused_and_nothing_is_changed(model: Any, where: Where | None, said: str) -> None:
    given = model()
    kinds = [type(each) for each in given.modules()]
    with pytest.raises(ValueError, match=said):
        sparsify(given, where)
    assert [type(each) for each in given.modules()] == kinds
