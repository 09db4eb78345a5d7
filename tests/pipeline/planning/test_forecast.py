"""What a sweep would take, against numbers worked by hand; and a few real steps, timed."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from pipeline.cli import main
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.errors import UserError
from pipeline.planning import memory
from pipeline.planning.calibration import MOST_TIMED, _spread, _with_time
from pipeline.planning.calibration_worker import Measured
from pipeline.planning.forecast import Forecast, Kind, at_once, kinds_of
from pipeline.planning.forecast_view import differing_settings, number, print_forecast, size, summary
from pipeline.planning.memory import check_memory
from pipeline.running.cluster import Resources
from pipeline.settings.config import Experiment
from pipeline.settings.experiment_file import read_experiment, validate_experiment
from pipeline.settings.trials import every_trial, trials_of
from tests.pipeline.samples import SMALL, small_data, write_config

MEASURED = Measured(
    parameters=1000,
    prepare_seconds=1.0,
    compile_seconds=4.0,
    seconds_per_token=0.001,
    observe_seconds=0.5,
    evaluate_seconds=2.0,
    decode_seconds=3.0,
    checkpoint_seconds=0.25,
    core_share=1.0,
    built_bytes=300_000_000,
    peak_bytes=500_000_000,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def swept(sweep: dict[str, Any] | None = None, **workers: Any) -> Experiment:
    """Eight steps of 512 tokens; logged every 2, evaluated every 4, saved every 2."""
    arms = {"arms": ["per_token", "aggregated"], "seeds": [0, 1, 2]}
    return validate_experiment({**SMALL, "sweep": {**arms, **(sweep or {})}, "workers": workers}, "t")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


def forecast(kinds: tuple[Kind, ...], together: int = 2, **changes: Any) -> Forecast:
    order = tuple(trial.key for trial in trials_of(swept()) if trial.key in {t.key for k in kinds for t in k.trials})
    values: dict[str, Any] = {"ended": 0, "nodes": (Resources(2),), "free_disk_bytes": 5e9, "prunes": False, **changes}
    return Forecast(name="small", kinds=kinds, order=order, at_once=together, **values)


def test_trials_that_differ_in_seed_and_rates_are_of_one_kind(data: Prepared) -> None:
    kinds = kinds_of(trials_of(swept()), data)
    assert [(kind.example.training.arm, len(kind.trials)) for kind in kinds] == [("per_token", 3), ("aggregated", 3)]
    space = {"training.learning_rate": {"uniform": [0.1, 1]}, "model.layers": {"choice": [1, 2]}}
    searched = trials_of(swept({"search": {"samples": 6, "space": space}}))
    assert sorted(len(kind.trials) for kind in kinds_of(searched, data)) == sorted(
        sum(t.experiment.model.layers == layers for t in searched) // 2 for layers in (1, 1, 2, 2)
    )


def test_tokens_and_epochs_are_those_of_the_loader(data: Prepared) -> None:
    kind = kinds_of(trials_of(swept()), data)[0]
    loader = Loader(data, "train", 512, 0)
    padded = [batch.tokens.numel() for batch in loader.batches(0)]
    assert kind.tokens_per_step == pytest.approx(sum(padded) / len(padded))
    assert kind.epochs == pytest.approx(8 / len(padded))
    assert kind.tokens == pytest.approx(8 * kind.tokens_per_step)
    assert kind.state_bytes == 4 * 8 * kind.parameters  # float64: parameters, gradients, two moments


def test_the_time_of_a_trial_and_of_all(data: Prepared) -> None:
    first, second = (
        replace(kind, measured=MEASURED, tokens_per_step=500.0) for kind in kinds_of(trials_of(swept()), data)
    )
    # 6 to start, 1 + 4; 8 steps of 500 ms; 4 logs of 0.5; 2 evaluations of 2; 4 checkpoints of 0.25; 3 to decode
    assert first.seconds == pytest.approx(6 + 5 + 8 * 0.5 + 4 * 0.5 + 2 * 2 + 4 * 0.25 + 3) == pytest.approx(25)
    quicker = replace(second, measured=replace(MEASURED, decode_seconds=1.0))
    # Two at a time, in their order: 25 and 23, seed by seed, so that each place in turn has 25 and 23.
    assert forecast((first, quicker)).seconds == pytest.approx(25 + 25 + 23 + 25)
    assert forecast((first, quicker), together=6).seconds == pytest.approx(25 + 25)
    shared = replace(first, measured=replace(MEASURED, core_share=0.5))
    assert (shared.seconds, shared.alone_seconds) == (pytest.approx(25), pytest.approx(6 + 19 / 2))
    assert forecast((first, second), together=1).seconds == pytest.approx(25 + 6 * 25)
    assert forecast((first, replace(second, measured=None))).seconds is None
    pair = replace(
        first, trials=trials_of(swept(count=2, cpus=0.5)), measured=replace(MEASURED, seconds_per_token=0.002)
    )
    assert pair.seconds == pytest.approx(25)  # each of two workers has half of the tokens


@pytest.mark.parametrize("when", ["end", "always", "never"])
def test_of_logs_evaluations_and_checkpoints_those_are_counted_that_happen(data: Prepared, when: str) -> None:
    every = {"log_every": 7, "evaluate_every": 5, "checkpoint_every": 3, "score_evaluation": when}
    changed = {**SMALL, "training": {**SMALL["training"], **every}}  # type: ignore[dict-item]
    kind = kinds_of(every_trial(validate_experiment(changed, "t")), data)[0]
    measured = replace(MEASURED, evaluation_seconds=7.0)
    scored = {"end": 1, "always": 2, "never": 0}[when]
    # of 8 steps 3, 5, 6, 7 and 8 are logged, 5 and 8 evaluated, and 3, 6 and 8 saved
    estimate = replace(kind, measured=measured, tokens_per_step=500.0).seconds
    assert estimate == pytest.approx(6 + 5 + 8 * 0.5 + 5 * 0.5 + 2 * 2 + scored * 7 + 3 * 0.25 + 3)


def test_how_many_run_at_once() -> None:
    trials = trials_of(swept(count=2, cpus=0.5))
    assert at_once(trials, (Resources(2),), None) == 2
    assert at_once(trials, (Resources(64),), None) == 6
    assert at_once(trials, (Resources(64),), 4) == 4
    with pytest.raises(UserError, match=r"workers\.cpus: a trial asks for 1 CPUs"):
        at_once(trials, (Resources(0.5),), None)


def test_what_does_not_fit_the_memory_is_refused(data: Prepared) -> None:
    kinds = [replace(kind, measured=MEASURED) for kind in kinds_of(trials_of(swept()), data)]
    check_memory(kinds, 2, 1.5e9)  # 2 x (0.5 + 0.25 of Ray's own)
    with pytest.raises(
        UserError, match=r"need 1\.5 GB, but this machine has 1\.4 GB\. .*Use sweep\.max_concurrent <= 1"
    ):
        check_memory(kinds, 2, 1.4e9)


def test_workers_that_share_a_gpu_must_fit_its_memory(data: Prepared) -> None:
    measured = replace(MEASURED, peak_bytes=3_000_000_000, gpu_bytes=8_000_000_000)

    def check(together: int, **workers: Any) -> None:
        kinds = [replace(kind, measured=measured) for kind in kinds_of(trials_of(swept(**workers)), data)]
        check_memory(kinds, together, 1.0)  # the machine's own memory is not what they take

    check(4, gpus=1)
    check(2, gpus=0.5)  # 2 x (3 + 0.5 of CUDA's own)
    check(2, gpus=0.25)  # four could share it, but two run
    with pytest.raises(
        UserError, match=r"workers\.gpus=0\.25: 4 workers would share a GPU of 8\.0 GB, but each needs 3\.00 GB"
    ):
        check(2, gpus=0.25, count=2)
    measured = replace(measured, gpu_bytes=3_400_000_000)
    with pytest.raises(UserError, match=r"workers\.gpus=1: 1 workers would share a GPU"):
        check(1, gpus=1)


def test_of_many_kinds_some_are_timed_and_the_others_reckoned(data: Prepared) -> None:
    kind = kinds_of(trials_of(swept()), data)[0]
    many = [replace(kind, parameters=100 * n) for n in range(1, 31)]
    chosen = _spread(many)
    assert len(chosen) == MOST_TIMED
    assert (chosen[0].parameters, chosen[-1].parameters) == (100, 3000)
    other = replace(kind, parameters=2000, trials=kind.trials[1:])
    measured = _with_time(other, {"x": (replace(kind, parameters=1000), MEASURED)}).measured
    assert measured is not None
    assert measured.seconds_per_token == pytest.approx(0.002)
    assert measured.peak_bytes == 700_000_000  # what is not the process itself is doubled
    assert measured.compile_seconds == 4.0


def test_the_lines_say_what_it_takes(data: Prepared) -> None:
    kinds = tuple(replace(k, measured=MEASURED, tokens_per_step=500.0) for k in kinds_of(trials_of(swept()), data))
    screen = io.StringIO()
    print_forecast(forecast(kinds, ended=3), Console(file=screen, width=80), "on this machine")
    text = " ".join(screen.getvalue().split())
    for part in (
        "per_token 2 x 8 3 8",
        "500 MB 25 s",
        "6 trials to run, 3 have ended before; 2 at once on 1 machine with 2 CPUs",
        "Each trial has 1 worker of 1 CPU",
        "Tokens: 24,000 in all",
        "Memory: 1.5 GB for all that run at once",
        "Time: about 1 min 40 s",
        "6 s per trial to start its workers",
    ):
        assert part in text
    assert max(map(len, screen.getvalue().splitlines()[:7])) <= 80  # the table
    assert re.search(r"until \d\d:\d\d", text)
    assert "at most 1 min 40 s" in summary(forecast(kinds, prunes=True), "here")[-1]
    busy = tuple(replace(kind, measured=replace(MEASURED, core_share=0.25)) for kind in kinds)
    told = " ".join(summary(forecast(busy), "here"))
    assert "workers got 25 % of the CPU time" in told
    assert "about 57 s" in told  # 25 + 3 * (6 + 19 / 4) = 57.25
    assert "not estimated" in summary(forecast((replace(kinds[0], measured=None),)), "here")[-1]
    assert (number(950), number(3_700_000), size(1), size(3.66e9)) == ("950", "3.7 million", "1 MB", "3.7 GB")


def test_the_command_without_calibration(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["plan", str(config), "--output", str(out), "--no-calibration", "--json"]
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert (told["trials"], told["seconds"], len(told["kinds"])) == (2, None, 2)
    assert not (out / "sweeps").exists()
    assert not (out / "mlflow.db").exists()
    alone = CliRunner().invoke(main, [*words, "--set", "sweep=null"])
    assert [kind["trials"] for kind in json.loads(alone.stdout)["kinds"]] == [["per_token-s0"]]  # as train would
    done = out / "sweeps" / "look" / "trials" / "task_only-s0"
    done.mkdir(parents=True)
    (done / "result.json").write_text("{}")
    none = next(trial for trial in every_trial(read_experiment(config)) if trial.key == "task_only-s0")
    (done / "config.json").write_text(none.experiment.model_dump_json())
    assert json.loads(CliRunner().invoke(main, words).stdout)["ended_before"] == 1
    for change, message in (
        ("training.steps=77", "holds this experiment, which cannot grow in this way:\n  training.steps: "),
        ("workers.cpus=999", "workers.cpus: a trial asks for 999 CPUs"),
        ("workers.gpus=64", "workers.gpus: a trial asks for 64 GPUs"),
        ("model.hiden=8", "did you mean 'model.hidden'?"),
    ):
        refused = CliRunner().invoke(main, [*words, "--set", change])
        assert refused.exit_code == 2
        assert message in refused.stderr
    unreached = CliRunner().invoke(main, [*words, "--address", "127.0.0.1:9"])
    assert unreached.exit_code == 2
    assert "nothing answers" in unreached.stderr


@pytest.mark.slow
def test_a_few_steps_are_timed(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["plan", str(config), "--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, [*words, "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    for kind in told["kinds"]:
        assert kind["measured"]["parameters"] == kind["parameters"]
        assert 0 < kind["measured"]["seconds_per_token"] < 1
        assert 0 < kind["measured"]["core_share"] <= 1
        assert 50e6 < kind["worker_bytes"] < 5e9
        assert kind["seconds"] > told["seconds_of_start"]["trial"]
    assert told["seconds"] >= told["seconds_of_start"]["sweep"] + max(kind["seconds"] for kind in told["kinds"])
    monkeypatch.setattr(memory, "machine_memory", lambda: 1e6)
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert "but this machine has 0.0 GB" in refused.stderr


@pytest.mark.slow
def test_a_cluster_is_asked_for_its_machines(config: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        words = ["plan", str(config), "--output", str(tmp_path / "out"), "--no-calibration", "--json"]
        ran = CliRunner().invoke(main, [*words, "--address", cluster.address, "--set", "workers.cpus=2.0"])
        assert ran.exit_code == 0, ran.output
        told = json.loads(ran.stdout)
        assert sorted(machine["cpus"] for machine in told["machines"]) == [1, 2]
        assert told["trials_at_once"] == 1  # only one of the machines can hold a worker
        refused = CliRunner().invoke(main, [*words, "--address", cluster.address, "--set", "workers.cpus=3.0"])
        assert refused.exit_code == 2
        assert "on 2 machines, and each worker must fit on one" in refused.stderr
    finally:
        cluster.shutdown()


def test_rows_that_look_alike_say_in_what_they_differ(data: Prepared) -> None:
    grid = {"training.precision": ["float32", "float64"], "model.gain": [1.0, 2.0]}
    kinds = kinds_of(trials_of(swept({"grid": grid})), data)
    assert differing_settings(kinds) == [[f"precision {each}"] for each in ("float32", "float32", "float64", "float64")]
    kinds = tuple(replace(kind, measured=MEASURED) for kind in kinds)
    screen = io.StringIO()
    print_forecast(forecast(kinds), Console(file=screen, width=80), "here")
    rows = screen.getvalue().splitlines()
    assert sum("precision float64" in row for row in rows) == 2
    assert differing_settings(kinds_of(trials_of(swept()), data)) == [[], []]
