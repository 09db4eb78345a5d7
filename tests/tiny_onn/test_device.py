"""What a GPU does differently, as far as it can be tried without one.

torch's `meta` device refuses what a GPU refuses, an operator over tensors of two devices, and any look at a value,
which on a GPU would be a wait for it. And autograd walks the graph of a GPU in a thread of the device's own.
"""

import contextlib
import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import pytest
import torch

from tests.tiny_onn.helpers import VOCABULARY, all_gradients, batch, new_dynamics, small_model, step


class _NoAutocast(contextlib.nullcontext):
    """`meta` knows no autocast."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()


def _send_no_number(value: object, **_: object) -> torch.Tensor:
    """For torch.tensor and torch.as_tensor: they copy a number from this machine's memory, and wait for the device."""
    assert isinstance(value, torch.Tensor), value
    return value


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("arm", "engine"),
    [
        *((arm, "fused") for arm in ("per_token", "relative", "fisher", "none")),
        *((arm, "hooks") for arm in ("per_token", "aggregated", "metric_only", "none")),
    ],
)
def test_a_step_looks_once_at_a_value_and_mixes_no_devices(
    arm: str, engine: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", _NoAutocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "tensor", _send_no_number)
    monkeypatch.setattr(torch, "as_tensor", _send_no_number)
    model = small_model(arm).to("meta")
    dynamics = new_dynamics(model, arm, engine=engine)
    tokens = torch.zeros(2, 5, dtype=torch.long, device="meta")
    valid = torch.ones(2, 5, dtype=torch.bool, device="meta")
    with dynamics.watch(valid if masked else None, labels=8, tokens=10) as watched:
        logits = model(tokens, tokens, tokens)
        assert logits.shape == (2, 5, VOCABULARY)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors") as looked:
            dynamics.compute_and_apply_gradients(loss, watched)
    ours = [frame for frame in traceback.extract_tb(looked.tb) if "/tiny_onn/" in frame.filename]
    assert ours[-1].line == "if not finite.all():"  # after forward, backward, Goodness and all norms


@contextlib.contextmanager
def _backward_in_another_thread() -> Iterator[list[threading.Thread]]:
    """Yields the threads in which backward passes ran."""
    backward: Callable[..., None] = torch.Tensor.backward
    threads = []

    def elsewhere(loss: torch.Tensor) -> None:
        raised: list[BaseException] = []

        def walk() -> None:
            try:
                backward(loss)
            except BaseException as error:
                raised.append(error)

        threads.append(threading.Thread(target=walk))
        threads[-1].start()
        threads[-1].join()
        if raised:
            raise raised[0]

    with mock.patch.object(torch.Tensor, "backward", elsewhere):
        yield threads


def differences(arm: str, engine: str, use_compiler: bool, observe: bool) -> list[str]:
    """Whose gradients are others when the backward pass runs in another thread."""
    tokens, valid = batch(torch.Generator().manual_seed(1), 3, 6)
    here = new_dynamics(small_model(arm), arm, engine=engine)
    there = new_dynamics(small_model(arm), arm, engine=engine, use_compiler=use_compiler)
    expected = all_gradients(here, lambda: step(here, tokens, valid, observe=observe))
    with _backward_in_another_thread() as threads:
        gradients = all_gradients(there, lambda: step(there, tokens, valid, observe=observe))
    assert len(threads) == 1
    assert gradients.keys() == expected.keys()
    return [name for name in gradients if not torch.allclose(gradients[name], expected[name], rtol=1e-10, atol=1e-12)]


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize(
    ("arm", "engine"), [("per_token", "fused"), ("none", "fused"), ("per_token", "hooks"), ("aggregated", "hooks")]
)
def test_a_backward_pass_in_another_thread_changes_nothing(arm: str, engine: str, observe: bool) -> None:
    assert differences(arm, engine, False, observe) == []


@pytest.mark.parametrize(("engine", "observe"), [("fused", False), ("fused", True), ("hooks", False)])
def test_what_is_compiled_is_first_compiled_in_another_thread(engine: str, observe: bool) -> None:
    # In a process that does not check shapes at run time: torch.compile cannot follow that in a thread of its own.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        assert process.submit(differences, "per_token", engine, True, observe).result() == []
