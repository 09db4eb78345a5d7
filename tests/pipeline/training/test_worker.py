import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline import measures
from pipeline.data import tokens
from pipeline.data.batch import IGNORED, Batch, collate
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.shards import prepare, read_rows
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import trials_of
from pipeline.tasks.arc import ARC
from pipeline.tasks.arc_predictions import exact_match, predict
from pipeline.training.build import build_dynamics, build_model, schedule
from pipeline.training.checkpoint import checkpoints
from pipeline.training.evaluate import evaluate
from pipeline.training.measuring import step_metrics
from pipeline.training.model_file import open_model
from pipeline.training.step import StepReport, batch_logits
from pipeline.training.stopping import TrainingStopped
from pipeline.training.trial import Entry, OpenTrial, open_trial
from pipeline.training.worker import run_training, train
from tests.pipeline.arc_samples import random_task, write_tasks
from tests.pipeline.samples import SMALL, small_data, small_experiment
from tiny_onn.dynamics import DynamicsReport
from tiny_onn.routing_health import routing_health

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    folder = TrialFolder(tmp_path_factory.mktemp("whole"))
    run_training(small_experiment(), folder, data.folder, CPU)
    return folder


def metrics_of(folder: TrialFolder) -> dict[int, dict[str, float]]:
    return {line.step: line.metrics for line in read_spool(folder.spool)[0]}


def without_speed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("speed/")}


def test_a_run_leaves_what_the_driver_reads(data: Prepared, whole: TrialFolder) -> None:
    metrics = metrics_of(whole)
    assert list(metrics) == [2, 4, 6, 8]
    assert measures.HELD_OUT_LOSS in metrics[4]
    assert measures.HELD_OUT_LOSS not in metrics[6]
    last = metrics[8]
    for name in (measures.TASK_LOSS, measures.META_LOSS, "held_out/pairs_exact", "activation_rate/L1"):
        assert name in last
    mean = sum(last[f"activation_rate.by_module/L0.{p}"] for p in "qkvo") / 4
    assert last["activation_rate/L0"] == pytest.approx(mean)
    assert sorted(p.name for p in whole.prototypes.iterdir()) == [f"step-{n:06d}.safetensors" for n in (0, 4, 8)]
    assert [p.name for p in checkpoints(whole.checkpoints)] == ["step-000004", "step-000006", "step-000008"]
    result = json.loads(whole.result.read_text())
    assert result["steps"] == 8
    assert result["metrics"][measures.HELD_OUT_LOSS] == last[measures.HELD_OUT_LOSS]
    predictions = json.loads(whole.predictions.read_text())
    assert {each["task_id"] for each in predictions} <= {row.task_id for row in read_rows(data, "held_out")}
    assert predictions


def test_what_is_due_between_two_logs_is_done_then_and_logged(
    data: Prepared, whole: TrialFolder, tmp_path: Path
) -> None:
    folder = TrialFolder(tmp_path)
    run_training(small_experiment(log_every=7, evaluate_every=5, checkpoint_every=3), folder, data.folder, CPU)
    metrics = metrics_of(folder)
    assert list(metrics) == [3, 5, 6, 7, 8]
    assert [step for step in metrics if measures.HELD_OUT_LOSS in metrics[step]] == [5, 8]
    assert [p.name for p in checkpoints(folder.checkpoints)] == ["step-000003", "step-000006", "step-000008"]
    last = [path.checkpoints / "step-000008" / "state.safetensors" for path in (folder, whole)]
    assert last[0].read_bytes() == last[1].read_bytes()  # when it is logged changes nothing that is trained


@pytest.mark.parametrize(("when", "steps"), [("end", [8]), ("always", [4, 8]), ("never", [])])
def test_evaluation_tasks_are_scored_by_themselves_when_they_are_to_be(
    when: str, steps: list[int], tmp_path: Path
) -> None:
    """The metrics are those of the saved model, token by token over the rows of the evaluation tasks alone."""
    source = write_tasks(tmp_path / "tasks", [random_task(f"t{i}", i) for i in range(8)])
    write_tasks(source / "evaluation", [random_task(f"e{i}", 50 + i, tests=1 + i) for i in range(3)])
    values = {**SMALL, "data": {**SMALL["data"], "dataset": "folder", "folder": str(source)}}  # type: ignore[dict-item]
    training = {**SMALL["training"], "score_evaluation": when, "decode_tasks": 3}  # type: ignore[dict-item]
    experiment = validate_experiment({**values, "training": training}, "test")
    prepared, folder = prepare(experiment.data, tmp_path / "data"), TrialFolder(tmp_path / "trial")
    run_training(experiment, folder, prepared.folder, CPU)
    metrics = metrics_of(folder)
    assert [step for step in metrics if measures.EVALUATION_LOSS in metrics[step]] == steps
    assert [step for step in metrics if "evaluation/tasks_exact" in metrics[step]] == steps[-1:]
    assert [step for step in metrics if measures.HELD_OUT_LOSS in metrics[step]] == [4, 8]
    if steps:
        model, rows = open_model(folder.model).model.requires_grad_(False), read_rows(prepared, "evaluation")
        assert [row.task_id for row in rows] == ["e0", "e1", "e1", "e2", "e2", "e2"]
        total = count = right = 0.0
        for row in rows:
            batch = collate([row])
            logits = model(*batch.inputs)[0].log_softmax(-1)
            for t in batch.labels[0].ne(IGNORED).nonzero().flatten().tolist():
                total -= float(logits[t, batch.labels[0, t]])
                right += float(logits[t].argmax() == batch.labels[0, t])
                count += 1
        last = metrics[8]
        assert last[measures.EVALUATION_LOSS] == pytest.approx(total / count, rel=1e-9)
        assert last[measures.EVALUATION_TOKEN_ACCURACY] == pytest.approx(right / count)
        made = predict(model, rows, 128)
        assert last["evaluation/pairs_exact"] == sum(each.exact for each in made) / 6
        assert 0 < last["evaluation/density"] <= 1


@pytest.mark.parametrize("kept", ["step-000006", "step-000004"])
def test_a_run_taken_up_from_a_checkpoint_ends_bit_equal(
    data: Prepared, whole: TrialFolder, tmp_path: Path, kept: str
) -> None:
    shutil.copytree(whole.root, tmp_path / "trial")
    folder = TrialFolder(tmp_path / "trial")
    folder.result.unlink()
    for path in checkpoints(folder.checkpoints):
        if path.name > kept:
            shutil.rmtree(path)
    lines = folder.spool.read_text().splitlines(keepends=True)
    folder.spool.write_text("".join(lines[:3]) + '{"step": 8, "me')  # killed in mid-line
    run_training(small_experiment(), folder, data.folder, CPU)
    state = (folder.checkpoints / "step-000008" / "state.safetensors").read_bytes()
    assert state == (whole.checkpoints / "step-000008" / "state.safetensors").read_bytes()
    again, before = metrics_of(folder), metrics_of(whole)
    assert list(again) == list(before)
    assert without_speed(again[8]) == without_speed(before[8])


def test_a_run_killed_just_before_its_result_ends_with_the_same_metrics(
    data: Prepared, whole: TrialFolder, tmp_path: Path
) -> None:
    shutil.copytree(whole.root, tmp_path / "trial")
    folder = TrialFolder(tmp_path / "trial")
    folder.result.unlink()
    run_training(small_experiment(), folder, data.folder, CPU)
    again, before = (json.loads(f.result.read_text()) for f in (folder, whole))
    assert again["metrics"] == before["metrics"]
    assert folder.spool.read_bytes() == whole.spool.read_bytes()


def test_a_worker_whose_trial_was_taken_up_by_another_writes_no_more(data: Prepared, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    asked: list[int] = []

    def overtaken() -> None:
        asked.append(len(read_spool(folder.spool)[0]))
        if len(asked) == 3:
            raise TrainingStopped("attempt 1 has been overtaken")

    with pytest.raises(TrainingStopped, match="overtaken"):
        run_training(small_experiment(), folder, data.folder, CPU, check_ours=overtaken)
    assert asked == [0, 1, 2]
    assert list(metrics_of(folder)) == [2, 4]
    assert not folder.result.exists()


def test_the_loop_takes_what_it_measures_and_records_from_its_caller(data: Prepared, tmp_path: Path) -> None:
    """With a measure and records of one's own, and nothing else: no file is written, and a record stops it."""
    trial = open_trial(small_experiment(), TrialFolder(tmp_path / "trial"), data.folder, CPU)
    seen: list[tuple[int, float]] = []

    def loss(_: OpenTrial, entry: Entry) -> None:
        entry.metrics["loss"] = float(entry.report.task_loss)

    def record(entry: Entry) -> None:
        seen.append((entry.step, entry.metrics["loss"]))
        if entry.step == 6:
            raise TrainingStopped("enough")

    with pytest.raises(TrainingStopped, match="enough"):
        train(trial, measures=[loss], records=[record], prunes=lambda entry: False)
    assert [step for step, _ in seen] == [2, 4, 6]
    assert all(0 < value < 10 for _, value in seen)
    entry = train(
        open_trial(small_experiment(), TrialFolder(tmp_path / "trial"), data.folder, CPU),
        measures=[loss],
        records=[],
        prunes=lambda entry: entry.step == 4,
    )
    assert entry is not None
    assert (entry.step, entry.metrics["loss"]) == seen[1]
    assert not (tmp_path / "trial").exists()


def test_arms_of_a_seed_start_alike_and_see_the_same_batches(data: Prepared) -> None:
    sweep = {"arms": ["per_token", "aggregated", "task_only"], "seeds": [0, 1]}
    trials = trials_of(validate_experiment({**SMALL, "sweep": sweep}, "test"))
    assert [t.key for t in trials] == [f"{arm}-s{seed}" for seed in (0, 1) for arm in sweep["arms"]]
    starts = [torch.cat([p.flatten() for p in build_model(t.experiment).parameters()]) for t in trials]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0], starts[3])
    streams = [Loader(data, "train", 512, t.experiment.training.seed).stream(0) for t in trials[:2]]
    for _ in range(5):
        a, b = (next(stream)[1] for stream in streams)
        assert torch.equal(a.tokens, b.tokens)


def test_evaluation_does_not_depend_on_batches_and_counts_every_row_once(data: Prepared) -> None:
    model = build_model(small_experiment())
    rows = read_rows(data, "held_out")
    total, right, count = 0.0, 0, 0
    for row in rows:  # one row at a time, by the definition
        t, r, c = (torch.from_numpy(a.astype("int64"))[None] for a in (row.tokens, *row.coordinates))
        predicted = torch.log_softmax(model(t, r, c), dim=-1)[0]
        for place in range(1, len(row)):
            if row.labelled[place]:
                total -= float(predicted[place - 1, int(row.tokens[place])].detach())
                right += int(predicted[place - 1].argmax() == int(row.tokens[place]))
                count += 1
    for budget in (128, 1000):
        metrics = evaluate(model, rows, budget, 0, 1, task=ARC)
        assert metrics[measures.HELD_OUT_LOSS] == pytest.approx(total / count, rel=1e-10)
        assert metrics[measures.HELD_OUT_TOKEN_ACCURACY] == pytest.approx(right / count)


def test_routing_of_held_out_rows_does_not_depend_on_batches_and_patterns_come_at_the_end(
    data: Prepared, whole: TrialFolder
) -> None:
    model, rows = build_model(small_experiment()), read_rows(data, "held_out")
    some, many = (evaluate(model, rows, budget, 0, 1, task=ARC, patterns=True) for budget in (128, 1000))
    assert some == pytest.approx(many, rel=1e-9)
    assert 0 < many[measures.DENSITY] < many[measures.UNION_OF_CHUNK] <= 1 - many[measures.DEAD_EXPERTS]
    metrics = metrics_of(whole)
    assert {measures.DENSITY, measures.DEAD_EXPERTS} <= set(metrics[4])
    at_the_end = {measures.UNION_OF_CHUNK, measures.TASK_INFORMATION}  # of one task there is no distance to another
    assert measures.TASK_DISTANCE not in metrics[8]
    assert not at_the_end & set(metrics[4])
    assert at_the_end <= set(metrics[8])


def test_evaluation_has_the_precision_of_training(data: Prepared, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    run_training(small_experiment(precision="bfloat16"), folder, data.folder, CPU)
    model = open_model(folder.model).model
    rows = read_rows(data, "held_out")
    narrow, wide = (evaluate(model, rows, 512, 0, 1, task=ARC, autocast=autocast) for autocast in (True, False))
    assert metrics_of(folder)[8][measures.HELD_OUT_LOSS] == narrow[measures.HELD_OUT_LOSS]
    assert narrow[measures.HELD_OUT_LOSS] != wide[measures.HELD_OUT_LOSS]
    rounding = 2**-8  # of bfloat16
    assert narrow[measures.HELD_OUT_LOSS] == pytest.approx(wide[measures.HELD_OUT_LOSS], rel=rounding)
    batch = collate(rows[:1])
    assert batch_logits(model, batch, autocast=True).dtype == torch.float32


def test_tokens_per_second_count_the_time_that_batches_take(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Loader.batches

    def slowly(self: Loader, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in read(self, epoch, start):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(Loader, "batches", slowly)
    folder = TrialFolder(tmp_path)
    run_training(small_experiment(steps=4), folder, data.folder, CPU)
    for metrics in metrics_of(folder).values():
        assert 0 < metrics[measures.TOKENS_PER_SECOND] < 512 / 0.2  # no batch has more tokens


@pytest.mark.parametrize("has_goodness", [True, False])
def test_a_measure_without_a_value_is_nan_so_that_no_earlier_value_is_taken_for_it(
    has_goodness: bool,
) -> None:
    weights = torch.zeros(3, 5)  # a layer whose tokens are all routed nowhere
    goodness = torch.rand(3, 5)
    health = routing_health(weights, goodness, (goodness,) * 3) if has_goodness else routing_health(weights)
    nothing, one = torch.tensor(math.nan), torch.tensor(1.0)
    report = DynamicsReport(nothing, nothing, one, {"blocks.0.attention.q": health})
    metrics = step_metrics(StepReport(nothing, one, one, report), by_module=True, has_goodness=has_goodness)
    empty = {measures.TASK_LOSS, measures.EFFECTIVE_EXPERTS, measures.MUTUAL_INFORMATION}
    if has_goodness:
        empty |= {measures.META_LOSS, *measures.OF_GOODNESS} - {measures.FRACTION_GOOD}
    assert {name.partition("/L")[0].removesuffix(".by_module") for name, v in metrics.items() if math.isnan(v)} == empty
    assert metrics["activation_rate/L0"] == 0
    assert any(name.startswith(measures.OF_GOODNESS) for name in metrics) == has_goodness


def test_exact_match_by_hand(data: Prepared) -> None:
    rows = read_rows(data, "held_out")[:3]
    made = predict(build_model(small_experiment()), rows, 128)
    assert [(p.task_id, p.pair) for p in made] == [(r.task_id, r.pair) for r in rows]
    for each, row in zip(made, rows, strict=True):
        given, target = tokens.decode_sequence(row.tokens)[-1]
        assert each.input == given.tolist()
        assert each.target == target.tolist()
        assert each.exact == (each.prediction == each.target)
    from dataclasses import replace

    pairs = [replace(made[0], task_id=t, exact=e) for t, e in (("a", True), ("a", False), ("b", True), ("c", False))]
    scores = {"pairs_exact": 0.5, "tasks_exact": pytest.approx(1 / 3), "pass_at_2": 0.0}
    assert exact_match(pairs) == scores


def test_the_schedule_warms_up_and_ends_near_a_tenth() -> None:
    training = small_experiment(steps=100, warmup_steps=9).training
    factors = [schedule(training, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert max(factors) <= 1
    assert factors[99] == pytest.approx(1 - 0.9 * 90 / 91)


def test_a_constant_schedule_warms_up_and_stays_whatever_the_steps() -> None:
    factors = {
        steps: [
            schedule(small_experiment(steps=steps, warmup_steps=4, schedule="constant").training, step)
            for step in range(8)
        ]
        for steps in (8, 800)
    }
    assert factors[8] == factors[800] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0]


def test_a_batch_without_any_label_teaches_nothing(data: Prepared) -> None:
    from dataclasses import replace

    from pipeline.data.batch import IGNORED
    from pipeline.training.step import train_step

    experiment = small_experiment(learning_rate=1e-3)
    dynamics = build_dynamics(build_model(experiment), experiment.training)
    _, batch = next(Loader(data, "train", 512, 0).stream(0))
    outcome = train_step(dynamics.model, replace(batch, labels=torch.full_like(batch.labels, IGNORED)), dynamics)
    assert float(outcome.task_loss) == 0
    assert float(outcome.labelled) == 0
    assert float(outcome.dynamics.gradient_norm) == 0
    assert all(p.isfinite().all() for p in dynamics.model.parameters())
