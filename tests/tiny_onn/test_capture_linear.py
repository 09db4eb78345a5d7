"""Per-token gradients of any linear layer, with the guarantees that capture() has for SparseProtoLinear."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests import oracles
from tiny_onn.capture import Captured, CaptureError, capture
from tiny_onn.layers import SparseProtoLinear
from tiny_onn.linear_layers import Where, weight_of

FEED_FORWARD = ("layers.0.linear1", "layers.0.linear2", "layers.1.linear1", "layers.1.linear2")


def encoder() -> nn.TransformerEncoder:
    """Two blocks in float64 without dropout, batch first."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True, dtype=torch.float64)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Chain(nn.Module):
    """Layers of two widths, with a hook for mischief in between."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(5, 5, dtype=torch.float64), nn.Linear(5, 4, dtype=torch.float64)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def inputs(*shape: int, width: int = 5) -> Tensor:
    return torch.randn(*shape, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def linear(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def assert_sums_are_autograds(model: nn.Module, captured: Captured, calls: int, rtol: float = 1e-11) -> None:
    """The tokens' gradients of all calls of a module, added up, are its weight's `.grad`."""
    caught = captured.calls()
    assert len(caught) == calls
    for name, layer in linear(model).items():
        mine = [each for each in caught if each.module_name == name]
        total = sum(each.weight_gradient().double() for each in mine)
        torch.testing.assert_close(total, layer.weight.grad.double(), rtol=rtol, atol=rtol)
        assert [each.call_index for each in mine] == list(range(len(mine)))


@pytest.mark.parametrize(
    "layers",
    [
        list(FEED_FORWARD),
        "layers.*.linear?",
        lambda name, module: isinstance(module, nn.Linear) and "linear" in name,
        ("layers.0.*1", "layers.?.linear2", "layers.1.linear1"),
    ],
)
def test_every_tokens_gradient_is_the_oracles_however_the_layers_are_selected(layers: Where) -> None:
    model, x = encoder(), inputs(2, 3, width=6)
    padding = torch.tensor([[False, False, False], [False, False, True]])

    def loss() -> Tensor:
        return model(x, src_key_padding_mask=padding)[~padding].square().sum()

    with capture(model, layers=layers) as captured:
        loss().backward()
        assert tuple(captured.layers) == FEED_FORWARD
        of_calls = [(call.module, call.gradients()) for call in captured.calls()]
    for layer, gradients in of_calls:
        truth = oracles.own_weight_gradients(layer, layer.weight, layer.bias, loss).flatten(0, 1)
        torch.testing.assert_close(gradients[:], truth, rtol=1e-11, atol=1e-13)
        assert torch.equal(torch.cat(list(gradients.chunks(4))), gradients[:])
        direction = torch.randn_like(layer.weight)
        scores = [float((each * direction).sum()) for each in truth]
        torch.testing.assert_close(
            gradients.dot(direction), torch.tensor(scores, dtype=torch.float64), rtol=1e-11, atol=1e-12
        )


def test_selected_by_type_what_the_attention_does_not_call_is_left_out_with_a_warning() -> None:
    model = encoder()
    with pytest.warns(UserWarning, match=r"left out layers\.0\.self_attn\.out_proj, layers\.1") as warned:
        opened = capture(model, layers=(nn.Linear,))
    assert len(warned) == 1
    with opened as captured:
        model(inputs(2, 3, width=6)).square().sum().backward()
        assert sorted(call.module_name for call in captured.calls()) == list(FEED_FORWARD)


def test_the_layers_may_be_of_several_kinds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), SparseProtoLinear(4, 4), nn.Linear(4, 3)).double()
    with capture(model, layers=(nn.Linear, SparseProtoLinear)) as captured:
        model(inputs(2, 3)).square().sum().backward()
        for call in captured.calls():
            torch.testing.assert_close(call.weight_gradient(), weight_of(call.module).grad, rtol=1e-11, atol=1e-13)
        assert [call.module_name for call in captured.calls()] == ["0", "1", "2"]


def test_the_input_may_be_passed_by_name() -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        model.second(input=model.first(input=inputs(2, 3))).square().sum().backward()
        assert_sums_are_autograds(model, captured, 2)


def test_a_layer_called_twice_and_several_forwards_before_one_backward() -> None:
    model = Chain()
    model.alias = model.first  # type: ignore[assignment]
    with capture(model, layers=(nn.Linear,)) as captured:
        losses = [model.second(model.alias(model.first(inputs(size, 3)))).square().sum() for size in (1, 4)]
        (losses[0] + 2 * losses[1]).backward()
        assert_sums_are_autograds(model, captured, 6)


def test_accumulation_with_a_mask_for_each_forward() -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        for size in (2, 3):
            valid = torch.arange(3).expand(size, 3) < 2
            captured.use_valid(valid)
            model(inputs(size, 3))[valid].square().sum().backward()
        assert_sums_are_autograds(model, captured, 4)
        assert [len(call.gradients()) for call in captured.calls()] == [4, 4, 6, 6]
        with pytest.raises(CaptureError, match=r"shape \(3, 3\), but 'first' was called with tokens of shape \(1, 3\)"):
            model(inputs(1, 3))


def test_two_backwards_through_one_call_add_up() -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        loss = model(inputs(2, 3)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert_sums_are_autograds(model, captured, 2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        x = inputs(2, 3).requires_grad_(True)
        twice = checkpoint(model.first, checkpoint(model.first, x, use_reentrant=reentrant), use_reentrant=reentrant)
        checkpoint(model.second, twice, use_reentrant=reentrant).square().sum().backward()
        assert_sums_are_autograds(model, captured, 3)


def test_bfloat16_autocast() -> None:
    model = Chain().float()
    with capture(model, layers=(nn.Linear,)) as captured:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(inputs(4, 3).float())
        out.float().square().sum().backward()
        # bfloat16 keeps 8 bits; the weight gradient is formed in it
        assert_sums_are_autograds(model, captured, 2, rtol=2e-2)
        assert {call.gradients().x.dtype for call in captured.calls()} == {torch.float32}


@pytest.mark.parametrize(
    "between", [nn.ReLU(inplace=True), lambda t: t.mul_(2.0), lambda t: t[..., :2].zero_() is t or t]
)
def test_an_output_modified_in_place_is_an_error_and_no_harm_to_clones(between: Callable[[Tensor], Tensor]) -> None:
    """Of inputs with several axes nn.Linear returns a view, whose hook is lost when it is modified."""
    model, x = Chain(between), inputs(2, 3)
    with capture(model, layers=(nn.Linear,)) as captured:
        loss = model(x).square().sum()
        loss.backward()
        with pytest.raises(
            CaptureError, match=r"output of call 0 of 'first' was modified in place.*ReLU\(inplace=False"
        ):
            captured.calls()
    with capture(model, layers=(nn.Linear,)) as captured:
        out = model(x[0]).square().sum()  # of two axes it is none
        with pytest.raises(CaptureError, match="output of call 0 of 'first' was modified in place"):
            out.backward()
    model.zero_grad()
    with capture(model, layers=(nn.Linear,), storage="clone") as captured:
        model(x).square().sum().backward()
        assert_sums_are_autograds(model, captured, 2)
        of_calls = [(call.module, call.gradients()[:]) for call in captured.calls()]
    for layer, gradients in of_calls:
        truth = oracles.own_weight_gradients(layer, layer.weight, layer.bias, lambda: model(x).square().sum())
        torch.testing.assert_close(gradients, truth.flatten(0, 1), rtol=1e-11, atol=1e-13)


def test_an_input_modified_in_place_is_an_error_and_no_harm_to_clones() -> None:
    model, x = Chain().requires_grad_(False), inputs(2, 3)  # autograd itself notices where weights learn
    for storage in ("reference", "clone"):
        given = x.clone()
        with capture(model, layers=("first",), storage=storage) as captured:
            loss = model(given).square().sum()
            given.zero_()
            loss.backward()
            if storage == "reference":
                with pytest.raises(CaptureError, match="x of call 0 of 'first' was modified in place"):
                    captured.calls()
            else:
                assert torch.equal(captured.calls()[0].x, x)


def test_a_frozen_layer_has_gradients_all_the_same() -> None:
    model, twin = Chain(), Chain().requires_grad_(False)
    runs = []
    for each in (model, twin):
        with capture(each, layers=(nn.Linear,)) as captured:
            each(inputs(2, 3)).square().sum().backward()
            runs.append([call.gradients()[:] for call in captured.calls()])
    for left, right in zip(*runs, strict=True):
        assert torch.equal(left, right)


def test_a_call_without_gradient_is_an_error_that_names_it() -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        model.second(inputs(2, 3))
        model(inputs(2, 3)).square().sum().backward()
        with pytest.raises(CaptureError, match="call 0 of 'second' got no gradient"):
            captured.calls()


def test_a_weight_that_is_used_without_a_call_is_an_error() -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        model.second(inputs(2, 3) @ model.first.weight.T).square().sum().backward()
        with pytest.raises(CaptureError, match="weight of 'first' got a gradient, but no call of it was seen"):
            captured.calls()


def test_a_layer_that_a_step_does_not_use_is_none() -> None:
    model = Chain()
    model(inputs(2, 3)).sum().backward()  # its gradient is from before
    with capture(model, layers=(nn.Linear,)) as captured:
        model.second(inputs(2, 3)).square().sum().backward()
        assert [call.module_name for call in captured.calls()] == ["second"]


class OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((), "expected types, names, or one function"),
        ("layers.0.linear", r"'layers\.0\.linear' selects no layer; did you mean 'layers\.0\.linear"),
        ("decoder.*", r"selects no layer; the model's linear layers are: .*4 Linear, such as 'layers\.0\.linear1'"),
        ((nn.Linear, nn.Conv2d), "Conv2d selects no layer"),
        ((SparseProtoLinear,), "SparseProtoLinear selects no layer"),
        (lambda name, module: False, "the function selects no layer"),
        (nn.LayerNorm, r"'layers\.0\.norm1' is a LayerNorm; expected an nn\.Linear"),
        ("*.out_proj", r"out_proj' is a NonDynamicallyQuantizableLinear inside of an nn\.MultiheadAttention"),
    ],
)
def test_a_selection_that_cannot_be_is_refused_at_once(layers: Where, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        capture(encoder(), layers=layers)


def test_a_layer_that_computes_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="'0' is a OwnForward with a forward of its own"):
        capture(nn.Sequential(OwnForward(5, 4)), layers=(nn.Linear,))
    with pytest.raises(ValueError, match="run the model once before"):
        capture(nn.Sequential(nn.LazyLinear(4)), layers=(nn.Linear,))
    with pytest.raises(ValueError, match="the model has no linear layer"):
        capture(nn.Sequential(nn.ReLU()), layers=(nn.Linear,))


def test_compiled_models_are_refused() -> None:
    compiled = Chain()
    compiled.first.compile()
    for model in (torch.compile(Chain()), nn.Sequential(torch.compile(nn.Linear(5, 4))), compiled):
        with pytest.raises(CaptureError, match="the model is compiled"):
            capture(model, layers=lambda name, module: type(module) is nn.Linear)


def test_hooks_are_removed_and_a_copy_is_not_watched() -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        twin = copy.deepcopy(model)
        twin(inputs(1, 3)).sum().backward()
        assert captured.calls() == []
        model(inputs(2, 3)).square().sum().backward()
        record = captured.calls()[0]
    assert record.grad_output is None
    assert captured.calls() == []
    with pytest.raises(KeyError), capture(model, layers=(nn.Linear,)):
        raise KeyError("half-way")
    for module in (model, model.first, model.second):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def ddp_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = Chain()
    wrapped = nn.parallel.DistributedDataParallel(model)
    rows = ((0, 1), (1, 5))[rank]
    for given in (model, wrapped):
        with capture(given, layers=(nn.Linear,)) as captured:
            wrapped(inputs(5, 3)[slice(*rows)]).square().sum().backward()
            norms = {name.removeprefix("module."): each for name, each in captured.norms("sequence").items()}
            mine = {call.module_name.removeprefix("module."): call.weight_gradient() for call in captured.calls()}
    torch.save({"sums": mine, "norms": norms, "grads": {n: each.weight.grad for n, each in linear(model).items()}},
               f"{folder}/{rank}.pt")  # fmt: skip
    dist.destroy_process_group()


def test_under_ddp_each_worker_has_the_gradients_of_its_own_tokens(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(ddp_worker, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        model(inputs(5, 3)).square().sum().backward()
        alone = captured.norms("sequence")
    for name, layer in linear(model).items():
        total = ranks[0]["sums"][name] + ranks[1]["sums"][name]
        torch.testing.assert_close(total, layer.weight.grad, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(total, ranks[0]["grads"][name], rtol=1e-11, atol=1e-13)  # 2 steps / 2 workers
        together = torch.cat([ranks[0]["norms"][name], ranks[1]["norms"][name]])
        torch.testing.assert_close(together, alone[name], rtol=1e-11, atol=1e-13)
