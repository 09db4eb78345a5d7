"""The fuzzer's targets under hypothesis, for seconds; `make fuzz` runs them for minutes."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import NAMES, explore, mutate
from tests.fuzz_target import Target
from tests.fuzz_targets import TARGETS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 11) | st.floats() | st.text(max_size=3),
    lambda value: st.lists(value, max_size=4) | st.dictionaries(st.sampled_from(["input", "output", "x"]), value),
    max_leaves=12,
)
BYTES = {
    "arc": st.fixed_dictionaries({}, optional={"train": JSON, "test": JSON}).map(lambda v: json.dumps(v).encode()),
    "tokens": st.lists(st.integers(0, 17), max_size=40).map(bytes),
    "yaml": st.text("ab:-[]{},#&*!|>'\"%@`? \n\t\\0129.eu~<", max_size=60).map(str.encode),
    "config": st.dictionaries(
        st.sampled_from(["name", "data", "model", "training", "workers", "sweep", "trainin"]),
        st.dictionaries(st.sampled_from(["steps", "arm", "arms", "seeds", "grid", "hidden", "heads", "cpus"]), JSON)
        | JSON,
    ).map(lambda value: json.dumps({"name": "x", **value}).encode()),  # JSON is YAML
    "shards": st.binary(max_size=60).map(lambda data: b"M" + data),
}

# Readers that make do with what there is: half of a good input may be good.
LENIENT = {
    "pieces",
    "names",
    "spool",
    "attempts",
    "record",
    "distributions",
    "predictions",
    "examples",
    "scores",
    "address",
    "token",
    "destination",
    "pins",
    "code",
    "result",
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in TARGETS.items()}


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_taken_and_spoilt_ones_refused_in_our_own_words(name: str, targets: dict[str, Target]) -> None:
    target = targets[name]

    @settings(max_examples=150 if name in BYTES else 40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(BYTES.get(name, st.binary(max_size=60)) | st.binary(max_size=40), st.randoms(use_true_random=False))
    def any_bytes(data: bytes, chance: random.Random) -> None:
        target.run(data)
        target.run(mutate(chance.choice(target.seeds), list(target.seeds), target.words, chance))

    assert target.run(target.seeds[0])
    if name not in LENIENT:
        assert not target.run(target.seeds[0][: len(target.seeds[0]) // 2] + b"\xff")
    any_bytes()


def test_the_command_runs_every_target() -> None:
    assert list(TARGETS) == NAMES


def test_the_fuzzer_finds_what_only_a_path_of_several_steps_leads_to(tmp_path: Path) -> None:
    """A YAML reader broken behind two conditions: guided by lines it is found; and what is found can be run again."""
    good = TARGETS["yaml"](tmp_path)

    def broken(data: bytes) -> None:
        good.run(data)
        if data.count(b"[") == 3 and b"null" in data:
            raise ZeroDivisionError

    runs, edges, findings = explore(broken, (b"a: [1]\n",), (b"null", b"["), 20.0, random.Random(1), stop_at_first=True)
    assert runs > 1
    assert edges > 10
    ((place, (data, text)),) = findings.items()
    assert place.startswith("ZeroDivisionError")
    assert "in broken" in text
    with pytest.raises(ZeroDivisionError):
        broken(data)
