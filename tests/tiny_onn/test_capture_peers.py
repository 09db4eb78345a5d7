"""capture() against Opacus and BackPACK, on a torch encoder and on a Hugging Face GPT-2: equal in float64.

Both give gradients of samples, sequences here, which are sums of our tokens' gradients. Both know neither a torch
encoder's attention nor GPT-2's Conv1D: the attention is frozen for Opacus, and BackPACK sees one layer at a time, with
nn.Linear in the place of Conv1D.
"""

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.tiny_onn.test_capture_linear import FEED_FORWARD, encoder, inputs
from tiny_onn.capture import CaptureError, capture
from tiny_onn.linear_layers import is_transposed, select_linear, weight_of

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}  # float64; sums in another order


def transformers() -> Any:
    """The package, also where torchvision, of which it needs nothing here, was built for another torch."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:  # a wheel for CUDA beside a torch for the CPU
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    return pytest.importorskip("transformers", reason="the extra `examples` is not installed")


def gpt2(**options: Any) -> nn.Module:
    """Two blocks without dropout, built from a config: nothing is downloaded."""
    hugging_face = transformers()
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 13, "n_positions": 6}
    config = hugging_face.GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **options)
    return hugging_face.GPT2LMHeadModel(config).double().train()


def tokens() -> Tensor:
    return torch.randint(13, (3, 5), generator=torch.Generator().manual_seed(1))


def gpt2_loss(model: nn.Module) -> Tensor:
    """Summed over the tokens, so that a sequence's gradient does not depend on the others."""
    logits = model(input_ids=tokens()).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens()[:, 1:].flatten(), reduction="sum")


def encoder_loss(model: nn.Module) -> Tensor:
    return model(inputs(3, 4, width=6)).square().sum()


def by_sequence(model: nn.Module, names: tuple[str, ...], loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """Ours: [b, o, i] by layer, as sums over each sequence's tokens, from the factors; norms checked beside it."""
    sums = {}
    with capture(model, layers=names) as captured:
        loss(model).backward()
        norms = captured.norms("sequence")
        for call in captured.calls():
            rows = call.x.shape[0]
            gradients = call.gradients()[:]
            sums[call.module_name] = gradients.reshape(rows, -1, *gradients.shape[1:]).sum(dim=1)
            expected = sums[call.module_name].flatten(1).norm(dim=1)
            torch.testing.assert_close(norms[call.module_name], expected, **TOLERANCE)
    assert tuple(sums) == names
    return sums


def opacus(model: nn.Module, names: tuple[str, ...], loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    grad_sample = pytest.importorskip("opacus.grad_sample", reason="the extra `bench` is not installed")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of hooks and of modules that are new to it
        wrapped = grad_sample.GradSampleModule(model, strict=False, loss_reduction="sum")
        loss(wrapped).backward()
    by_name = {}
    for name in names:
        layer = model.get_submodule(name)
        gradients = layer.weight.grad_sample
        by_name[name] = gradients.mT if is_transposed(layer) else gradients
    return by_name


def backpack(model: nn.Module, names: tuple[str, ...], loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    package = pytest.importorskip("backpack", reason="the extra `bench` is not installed")
    extensions = pytest.importorskip("backpack.extensions")
    for name in names:
        *owner, attribute = name.split(".")
        layer = model.get_submodule(name)
        weight = weight_of(layer).detach().clone()
        twin = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, dtype=weight.dtype)
        twin.weight.data = weight
        if layer.bias is not None:
            twin.bias.data = layer.bias.detach().clone()
        setattr(model.get_submodule(".".join(owner)), attribute, package.extend(twin))
    with package.backpack(extensions.BatchGrad()):
        loss(model).backward()
    return {name: model.get_submodule(name).weight.grad_batch for name in names}


BLOCKS = tuple(
    f"transformer.h.{n}.{part}" for n in (0, 1) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)


@pytest.mark.parametrize("peer", [opacus, backpack])
def test_a_torch_encoder(peer: Callable[..., dict[str, Tensor]]) -> None:
    expected = peer(encoder(), FEED_FORWARD, encoder_loss)
    for name, gradients in by_sequence(encoder(), FEED_FORWARD, encoder_loss).items():
        torch.testing.assert_close(gradients, expected[name], **TOLERANCE)


@pytest.mark.parametrize("peer", [opacus, backpack])
def test_gpt2_with_its_conv1d(peer: Callable[..., dict[str, Tensor]]) -> None:
    names = (*BLOCKS, "lm_head")
    expected = peer(gpt2(tie_word_embeddings=False), names, gpt2_loss)
    for name, gradients in by_sequence(gpt2(tie_word_embeddings=False), names, gpt2_loss).items():
        torch.testing.assert_close(gradients, expected[name], **TOLERANCE)


def test_every_token_of_gpt2_and_its_weight_gradients() -> None:
    """Of the tied head only the head's share is seen; every block's is the whole `.grad`, in Conv1D's layout."""
    conv1d = transformers().pytorch_utils.Conv1D
    model = gpt2()
    with capture(model, layers=(conv1d, nn.Linear)) as captured:
        gpt2_loss(model).backward()
        calls = captured.calls()
        by_name = {call.module_name: call.gradients() for call in calls}
        for call in calls:
            if call.module_name != "lm_head":
                torch.testing.assert_close(call.weight_gradient(), call.module.weight.grad, **TOLERANCE)
    assert set(by_name) == {*BLOCKS, "lm_head"}
    for name, gradients in by_name.items():
        layer = model.get_submodule(name)
        bias = torch.zeros(()) if layer.bias is None else layer.bias
        truth = oracles.own_weight_gradients(layer, weight_of(layer), bias, lambda: gpt2_loss(model))
        torch.testing.assert_close(gradients[:], truth.flatten(0, 1), **TOLERANCE)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gpt2_with_its_own_checkpointing(reentrant: bool) -> None:
    plain, saving = gpt2(), gpt2(use_cache=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its name from version 6 on
        saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        saving.enable_input_require_grads()
    runs = []
    for model in (plain, saving):
        with capture(model, layers="transformer.h.*") as captured:
            gpt2_loss(model).backward()
            runs.append({call.module_name: call.gradients()[:] for call in captured.calls()})
            assert len(captured.calls()) == len(BLOCKS)
    for name in BLOCKS:
        torch.testing.assert_close(runs[1][name], runs[0][name], **TOLERANCE)


def test_gpt2_without_a_conv1d_names_the_layers_that_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"Bilinear selects no layer.* 8 Conv1D, such as 'transformer\.h\.0\.attn\.c_attn'"
    ):
        capture(gpt2(), layers=(nn.Bilinear,))
    with pytest.raises(CaptureError, match="compiled"):
        capture(torch.compile(gpt2()), layers=(nn.Linear,))
    assert list(select_linear(gpt2(), (nn.Linear,), "layers")) == ["lm_head"]


PAGE = (Path(__file__).parents[2] / "docs" / "per_token_gradients.md").read_text(encoding="utf-8")


def test_the_examples_of_the_documentation_run(capsys: pytest.CaptureFixture[str]) -> None:
    encoders, gpt2s = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(encoders.splitlines()) < 40
    names: dict[str, Any] = {}
    exec(encoders, names)
    assert capsys.readouterr().out.count("has the largest gradient") == 4
    assert names["rows"].shape == (int(names["valid"].sum()), 64)
    assert len(names["everything"]) == 8 * 12
    assert {len(each) for each in names["of_sequences"].values()} == {8}
    assert not names["norms"][~names["valid"]].any()
    transformers()
    exec(gpt2s, names)
    assert len(names["norms"]) == len(BLOCKS) + 1
