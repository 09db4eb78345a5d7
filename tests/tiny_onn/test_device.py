"""A step on a device that holds no values: it mixes no devices, and looks at no value but once, where it must.

torch's `meta` device refuses what a GPU refuses, an operator over tensors of two devices, and any look at a value,
which on a GPU would be a wait for it.
"""

import contextlib
import traceback

import pytest
import torch

from tests.tiny_onn.helpers import VOCABULARY, new_dynamics, small_model


class _NoAutocast(contextlib.nullcontext):
    """`meta` knows no autocast."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("arm", "engine"),
    [
        *((arm, "fused") for arm in ("per_token", "relative", "fisher", "none")),
        *((arm, "hooks") for arm in ("per_token", "aggregated", "metric_only", "none")),
    ],
)
def test_a_step_looks_once_at_a_value_and_mixes_no_devices(
    arm: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", _NoAutocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    model = small_model(arm).to("meta")
    dynamics = new_dynamics(model, arm, engine=engine)
    tokens = torch.zeros(2, 5, dtype=torch.long, device="meta")
    valid = torch.ones(2, 5, dtype=torch.bool, device="meta")
    picks = arm in ("aggregated", "metric_only")  # valid tokens out of a mask: a second look, at how many there are
    with dynamics.watch(None if picks else valid, labels=8, tokens=10) as watched:
        logits = model(tokens, tokens, tokens)
        assert logits.shape == (2, 5, VOCABULARY)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors") as looked:
            dynamics.compute_and_apply_gradients(loss, watched)
    ours = [frame for frame in traceback.extract_tb(looked.tb) if "/tiny_onn/" in frame.filename]
    assert ours[-1].line == "if not finite.all():"  # after forward, backward, Goodness and all norms
