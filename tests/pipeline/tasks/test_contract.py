"""A task and a model of one's own: what keeps the contract trains, what breaks it is refused before anything starts."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from pipeline import measures
from pipeline.cli import main
from pipeline.data.loader import Loader
from pipeline.data.published import publish
from pipeline.data.rows import read_group, table_of
from pipeline.data.sequential import SequentialLoader, open_loader
from pipeline.data.shards import open_prepared, prepare, read_rows
from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.planning.preflight import check_start
from pipeline.records.spool import read_spool
from pipeline.settings.config import DataConfig, Experiment, replace
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import every_trial
from pipeline.settings.user_code import user_code
from pipeline.storage.opening import open_storage
from pipeline.submission.own_code import not_sent
from pipeline.tasks import Format, Sequence
from pipeline.tasks.check import check_model, check_task
from pipeline.tracking.images import render_prototypes
from pipeline.training.build import build_model
from pipeline.training.kept import open_step
from pipeline.training.model_file import save_model
from pipeline.training.places import places_of
from pipeline.training.routing_map import read_map
from pipeline.training.worker import run_training
from tests.pipeline.samples import SMALL, small_experiment
from tests.pipeline.tasks.own import TASK, parity_row

OWN = "tests.pipeline.tasks.own"
CPU = torch.device("cpu")


def parity(task: str = "TASK", build: str | None = "build", **training: object) -> Experiment:
    values = {
        "name": "own",
        "data": {"task": f"{OWN}:{task}", "max_tokens": 16, "rows_per_group": 4},
        "model": {"hidden": 6, "layers": 2, "heads": 1, **({"build": f"{OWN}:{build}"} if build else {})},
        "training": {**SMALL["training"], "batch_tokens": 64, **training},  # type: ignore[dict-item]
    }
    return validate_experiment(values, "test")


def metrics_of(folder: TrialFolder) -> dict[int, dict[str, float]]:
    return {line.step: line.metrics for line in read_spool(folder.spool)[0]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(parity().data, tmp_path_factory.mktemp("data")).folder
    assert isinstance(folder, Path)
    return folder


def test_rows_come_back_as_they_were_and_batches_carry_their_classes(data: Path) -> None:
    prepared = open_prepared(data, task=f"{OWN}:TASK")
    assert prepared.manifest.dataset == "parity"
    for row in read_rows(prepared, "held_out"):
        number = int(row.task_id[1:])
        made = parity_row(number, 3 + number % 7)
        assert made.labels is not None
        assert row.labels is not None
        assert [each.tolist() for each in (row.tokens, *row.coordinates, row.labels)] == [
            each.tolist() for each in (made.tokens, *made.coordinates, made.labels)
        ]
    batch = next(Loader(prepared, "train", 64, 0).batches(0))
    for place, name in enumerate(batch.task_ids):
        made = parity_row(int(name[1:]), 3 + int(name[1:]) % 7)
        n = len(made)
        assert made.labels is not None
        assert batch.labels[place, :n].tolist() == made.labels.tolist()  # where they stand: nothing is shifted
        assert (batch.labels[place, n:] == -100).all()
        assert batch.tokens[place, n:].tolist() == [4] * (batch.tokens.shape[1] - n)


@pytest.mark.parametrize("arm", ["per_token", "top_k"])
def test_both_engines_train_anothers_model_alike_and_what_it_leaves_is_whole(
    data: Path, tmp_path: Path, arm: str
) -> None:
    by_engine = {}
    density = {"model.density": 0.4} if arm == "top_k" else {}
    for engine in ("hooks", "fused"):
        experiment = replace(parity(arm=arm, engine=engine), density, "test")
        check_model(experiment)
        folder = TrialFolder(tmp_path / engine)
        folder.root.mkdir()
        folder.config.write_text(experiment.model_dump_json())  # as the driver does
        run_training(experiment, folder, data, CPU)
        by_engine[engine] = metrics_of(folder)
    assert by_engine["hooks"].keys() == by_engine["fused"].keys() == {2, 4, 6, 8}
    for step, metrics in by_engine["hooks"].items():
        for name, value in metrics.items():
            if not name.startswith("speed/"):
                assert by_engine["fused"][step][name] == pytest.approx(value, rel=1e-9, nan_ok=True), (step, name)
    last = by_engine["hooks"][8]
    assert {"held_out/third", "evaluation/third", "held_out/examples", "activation_rate/L2"} <= last.keys()
    assert "activation_rate.by_module/L1.rungs" in last
    folder = TrialFolder(tmp_path / "fused")
    assert len(json.loads(folder.predictions.read_text())) == last["held_out/examples"] == 2
    assert render_prototypes(max(folder.prototypes.iterdir())).size[0] > 100
    whole, earlier = open_step(folder, "last", own_code=True), open_step(folder, 4, own_code=True)
    assert [type(each.model).__name__ for each in (whole, earlier)] == ["Chain", "Chain"]
    for step in ("last", 4):
        with pytest.raises(UserError, match=rf"names code, data\.task: {OWN}:TASK and model\.build: {OWN}:build"):
            open_step(folder, step)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has no `predict`"):
        whole.predict("x")
    with pytest.raises(UserError, match=rf"trained with data\.task: '{OWN}:TASK', which answers no files"):
        whole.answer(tmp_path / "x")
    root = folder.routing_maps
    maps = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.safetensors"))
    assert maps == [f"{number}/step-00000{step}.safetensors" for number in (1, 2) for step in (4, 8)]
    assert read_map(root / maps[0]).labels == ("L0.rungs", "L1.rungs", "L2.entry")


def test_batches_from_a_storage_are_those_from_the_folder(data: Path, tmp_path: Path) -> None:
    there = publish(open_prepared(data, task=f"{OWN}:TASK"), open_storage(str(tmp_path / "storage")))
    here, far = (
        list(Loader(prepared, "train", 64, 0, 1, 2).batches(0))
        for prepared in (open_prepared(data, task=f"{OWN}:TASK"), there)
    )
    assert len(here) == len(far) > 1
    for one, other in zip(here, far, strict=True):
        for first, second in zip((*one.inputs, one.labels), (*other.inputs, other.labels), strict=True):
            assert torch.equal(first, second)


def test_code_that_a_manifest_names_is_never_imported(data: Path) -> None:
    """Whoever can write to a storage could name any module."""
    with pytest.raises(UserError, match=rf"holds data of task '{OWN}:TASK'; expected data\.task: text"):
        open_prepared(data, task="text")


def test_rows_that_are_trained_on_and_judged_by_are_named_as_leaks(data: Path) -> None:
    """The task gives two of its training rows as evaluation rows."""
    leaks = open_prepared(data, task=f"{OWN}:TASK").manifest.leakage
    assert {(leak.split, leak.task, leak.train_task) for leak in leaks} == {
        ("evaluation", "r12", "r12"),
        ("evaluation", "r13", "r13"),
    }


def test_training_is_taken_up_exactly_where_a_kill_left_it(data: Path, tmp_path: Path) -> None:
    whole, cut = TrialFolder(tmp_path / "whole"), TrialFolder(tmp_path / "cut")
    run_training(parity(), whole, data, CPU)

    def stop(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(parity(), cut, data, CPU, on_log=stop)
    run_training(parity(), cut, data, CPU)
    states = [folder.checkpoints / "step-000008" / "state.safetensors" for folder in (whole, cut)]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_scores_are_those_of_single_rows_worked_by_the_definition(data: Path, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    run_training(parity(build=None), folder, data, CPU)  # our transformer, with the task's own axis and classes
    model, wrong, count = open_step(folder, "last", own_code=True).model, 0, 0
    for row in read_rows(open_prepared(data, task=f"{OWN}:TASK"), "held_out"):
        tokens, half = (torch.from_numpy(each.astype(np.int64))[None] for each in (row.tokens, *row.coordinates))
        said = model(tokens, half)[0].argmax(-1)
        assert row.labels is not None
        for place, label in enumerate(row.labels.tolist()):
            count += label >= 0
            wrong += label >= 0 and int(said[place]) == 2
    assert metrics_of(folder)[8]["held_out/third"] == pytest.approx(wrong / count)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("MISSING", r"AttributeError.*has no attribute 'MISSING'.*Expected package\.module:attribute"),
        ("NO_TASK", r"is a int; expected a pipeline\.tasks\.Task"),
        ("RAISES", r"`read` raised RuntimeError: no such server"),
        ("NO_SOURCE", r"`read` returned \[1, 2\]; expected a Source"),
        ("CHANGES", r"gave other rows, or another digest, when it was called a second time"),
        ("NOTHING_HELD_OUT", r"has no rows in the split held_out"),
        ("NO_ROWS", r"in its splits; expected Rows"),
        ("LARGE_TOKEN", r"has 5 among its tokens; expected whole numbers from 0 and below 5"),
        ("FLOATS", r"has tokens as float64 \[6\]; expected whole numbers \[6\]"),
        ("SHORT_LABELS", r"has labels as int64 \[2\]; expected whole numbers \[6\]"),
        ("NO_LABELS", r"has no labels; expected whole numbers \[6\]"),
        ("LARGE_LABEL", r"has 3 among its labels; expected whole numbers from 0 and below 3"),
        ("NO_NAME", r"has task_id=''"),
        ("NO_AXIS", r"has 0 coordinates; expected 1: \['half'\]"),
        ("LONG", r"has 99 tokens; expected 1 to data\.max_tokens=16"),
        ("PATH", r"has name='\.\./x'"),
        ("PADDING", r"has padding=5; expected a token id"),
        ("COLUMN", r"has a column 'tokens'"),
        ("TAKEN", r"has a score 'density', a name that is taken by a metric of every task"),
        ("SCORE", r"score 'bad' cannot be measured"),
        ("SCORE_NAN", r"score 'bad' measured .* expected finite numbers"),
        ("COLLATE", r"`collate` made tokens \[1, 8\]"),
        ("ANSWER_NO_FUNCTION", r"has answer='x'; expected a function, or None"),
        ("MAPS", r"has maps=True; expected pipeline\.tasks\.RoutingMaps, or None"),
        ("NO_LAYOUT", r"`maps\.lay_out` is a Sequence; row 'r00'\. Expected a Layout of it"),
        ("SHORT_LAYOUT", r"`maps\.lay_out` has panels as int64 \[2\]; expected whole numbers \[3\]"),
        ("LAYOUT_RAISES", r"`maps\.lay_out` raised ZeroDivisionError"),
    ],
)
def test_a_task_that_breaks_its_contract_is_refused_with_its_reason(task: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"data\.task: '{OWN}:{task}'.*{message}"):
        check_task(parity(task).data)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "TASK",
            r"data\.order: sequential needs groups of rows, but .* has no `group`. Give it one.* or use data",
        ),
        ("NO_GROUP_NAME", r"`group` of 'r12' gave '' and ''; expected the name of a task"),
        ("GROUP_RAISES", r"`group` raised IndexError"),
    ],
)
def test_a_task_without_groups_is_not_trained_in_sequence(tmp_path: Path, task: str, message: str) -> None:
    experiment = replace(parity(task), {"data.order": "sequential"}, "test")
    check_task(parity(task).data)
    with pytest.raises(UserError, match=message):
        check_start(every_trial(experiment), tmp_path / "out", None)


def test_a_task_of_ones_own_is_trained_on_group_by_group_and_forgotten(tmp_path: Path) -> None:
    experiment = replace(parity("GROUPED"), {"data.order": "sequential", "training.steps": 12}, "test")
    check_task(experiment.data)
    data = prepare(experiment.data, tmp_path / "data")
    loader = open_loader(experiment, data)
    assert isinstance(loader, SequentialLoader)
    assert sorted(loader.tasks) == ["1", "2", "3", "4"]  # those of tens that are held out, and two more, are not there
    stream = [{task_id[1] for task_id in batch.task_ids} for _, batch in loader.stream()]
    assert stream == [{name} for name in loader.tasks for _ in range(3)]
    folder = TrialFolder(tmp_path / "trial")
    run_training(experiment, folder, Path(str(data.folder)), CPU)
    assert {measures.FORGETTING_LOSS, measures.FORGETTING_INCREASE} <= metrics_of(folder)[12].keys()


def test_what_a_task_answers_to_a_file_is_printed_and_written(tmp_path: Path) -> None:
    file, out = tmp_path / "asked.txt", tmp_path / "out.json"
    file.write_text("0 1 2")

    def predict(task: str, *more: str) -> Result:
        folder = tmp_path / task
        save_model(folder, build_model(parity(task)), parity(task))
        return CliRunner().invoke(main, ["predict", str(folder), str(file), *more])

    assert "names code, data.task" in " ".join(predict("ANSWERS").stderr.split())
    ran = predict("ANSWERS", "--own-code", "--submission", str(out))
    assert (ran.exit_code, ran.stderr) == (0, f"3 tokens. Written: {out}\n")
    classes = json.loads(out.read_text())
    assert len(classes) == 3
    assert {*classes} <= {0, 1, 2}
    assert json.loads(predict("ANSWERS", "--own-code").stdout) == classes
    for task, message in (
        ("TASK", "answers no files; use pipeline.api.load_model(run), or give the task an `answer` (docs/tasks.md)"),
        ("NO_ANSWERS", "`answer` returned a list; expected pipeline.tasks.Answers"),
        ("ANSWERS_NO_JSON", "`answer` returned a value that JSON cannot hold"),
    ):
        refused = predict(task, "--own-code")
        assert refused.exit_code == 2
        assert message in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("MISSING", r"cannot be used \(AttributeError"),
        ("NO_TASK", r"is a int; expected a function of ModelSettings"),
        ("no_model", r"returned a str; expected a torch\.nn\.Module"),
        ("no_layers", r"without a tiny_onn\.SparseProtoLinear"),
        ("ignores_density", r"entry has density=0\.5, but model\.density: None; give each .* \*\*settings\.routing"),
        ("wrong_outputs", r"returns \[2, 13, 17\] for tokens \[2, 13\]; expected logits \[2, 13, 16\]"),
        ("sees_all", r"is not causal: changing the tokens from place 12 on changes its logits at place 0"),
        ("breaks", r"cannot be trained with arm 'per_token' \(.*is called as model\(tokens, \*coordinates\)"),
    ],
)
def test_a_model_that_breaks_its_contract_is_refused_with_its_reason(build: str, message: str) -> None:
    experiment = replace(small_experiment(), {"model.build": f"{OWN}:{build}"}, "test")
    with pytest.raises(UserError, match=rf"(?s)model\.build: '{OWN}:{build}'.*{message}"):
        check_model(experiment)


@pytest.mark.parametrize(
    ("task", "message"),
    [("EXAMPLES", r"returned \[\]; expected a list of 2"), ("NO_JSON", "value that JSON cannot hold")],
)
def test_examples_that_break_their_contract_are_refused(task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_model(parity(task))


def test_a_model_may_see_all_of_a_row_where_rows_have_labels_of_their_own() -> None:
    check_model(parity(build="sees_all"))


@pytest.mark.parametrize("command", ["train", "plan", "ablate"])
def test_the_commands_refuse_them_before_anything_is_prepared(tmp_path: Path, command: str) -> None:
    config = tmp_path / "own.yaml"
    sweep = {"sweep": {"arms": ["per_token"], "seeds": [0]}}
    config.write_text(json.dumps({**parity("LARGE_TOKEN").model_dump(mode="json"), **sweep}))
    ran = CliRunner().invoke(main, [command, str(config), "--output", str(tmp_path / "out")])
    assert ran.exit_code == 2, (ran.output, ran.exception)
    assert "has 5 among its tokens" in ran.output
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"task": "texts"}}, r"data\.task: found 'texts' \(did you mean 'text'\?\)"),
        ({"data": {"task": "text", "dihedral_views": 2}}, r"data\.dihedral_views: found 2, a setting of task: arc"),
        (
            {"data": {"task": "text", "dataset": "arc-agi-1"}},
            r"data\.dataset: found 'arc-agi-1', a setting of task: arc",
        ),
        (
            {"data": {"task": "a:b"}, "training": {"vote_views": 2}},
            r"training\.vote_views: found 2, a setting of task: arc",
        ),
        ({"model": {"build": "my_model"}}, r"model\.build: found 'my_model'; expected package\.module:function"),
    ],
)
def test_settings_of_another_task_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_experiment({"name": "x", **changes}, "test")


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    for changes, message in (
        ({"data.options": {"a": 1}}, r"data\.options: found \{'a': 1\}, but data\.task: arc has none"),
        ({"model.options": {"a": 1}}, r"model\.options: found \{'a': 1\}, which only a model of your own takes"),
    ):
        trials = every_trial(replace(small_experiment(), changes, "test"))
        with pytest.raises(UserError, match=message):
            check_start(trials, tmp_path, None)


def test_the_code_of_a_task_and_a_model_is_hashed_sent_and_names_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "my_own_task.py"
    module.write_text(f"from {OWN} import TASK, build\nimport my_own_part\n")
    (tmp_path / "my_own_part.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"data.task": "my_own_task:TASK", "model.build": "my_own_task:build"}
    experiment = replace(parity(), changes, "test")
    assert set(user_code(experiment)) == {"my_own_task.py", "my_own_part.py"}
    with pytest.raises(UserError, match=r"the \w+ 'my_own_task:\w+' needs my_own_part\.py, my_own_task\.py"):
        not_sent(experiment, [])
    assert not_sent(experiment, [Path("my_own_part.py"), Path("my_own_task.py")]) == []
    first = prepare(experiment.data, tmp_path / "data").folder
    assert prepare(experiment.data, tmp_path / "data").folder == first
    (tmp_path / "my_own_part.py").write_text("X = 2\n")
    assert prepare(experiment.data, tmp_path / "data").folder != first  # it may make other rows now


def test_what_was_there_before_keeps_its_digest_and_its_data() -> None:
    """Of experiments as they were before a task and a model could be named: checkpoints and data are found again."""
    experiment = validate_experiment({"name": "x"}, "test")
    assert experiment.digest() == "d93abe846450d610"
    assert replace(experiment, {"model.build": "a:b"}, "test").digest() != experiment.digest()
    assert replace(experiment, {"data.task": "a:b"}, "test").digest() != experiment.digest()


@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 299), st.integers(0, 70_000), st.integers(-1, 2)), min_size=1), min_size=1
    )
)
def test_any_rows_of_a_format_come_back_from_parquet(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[tuple[int, int, int]]]
) -> None:
    form = Format(vocabulary=300, coordinates={"far": 70_001}, classes=3)
    made = []
    for place, row in enumerate(rows):
        tokens, far, labels = (np.array(each) for each in zip(*row, strict=True))
        made.append(Sequence(tokens, (far,), task_id=f"t{place}", labels=np.where(labels < 0, -100, labels)))
    path = tmp_path_factory.mktemp("rows") / "train-00000.parquet"
    pq.write_table(table_of(made, form), path, write_page_checksum=True)
    back = read_group(path, 0, form)
    for one, other in zip(made, back, strict=True):
        assert one.labels is not None
        assert other.labels is not None
        arrays = [(each.tokens.tolist(), each.coordinates[0].tolist()) for each in (one, other)]
        assert arrays[0] == arrays[1]
        assert one.labels.tolist() == other.labels.tolist()


def test_places_by_hand() -> None:
    def places(*names: str) -> list[tuple[int, str]]:
        return list(places_of(names).values())

    assert places("blocks.0.attention.q", "blocks.1.attention.o") == [(0, "q"), (1, "o")]
    assert places("up.0", "up.1", "entry") == [(0, "up"), (1, "up"), (2, "entry")]
    assert places("h.0.attn.out", "h.0.mlp.out") == [(0, "attn_out"), (0, "mlp_out")]
    assert places("first", "second", "") == [(0, "first"), (1, "second"), (2, "layer")]
    assert places("a.0", "b.0.a", "c.0.a")[0] == (0, "a")
    assert len(set(places("a.0", "b.0.a", "c.0.a", "d.0"))) == 4


def test_the_built_in_tasks_keep_the_contract_themselves() -> None:
    for name in ("arc", "text"):
        check_task(DataConfig(task=name))
    check_model(small_experiment())
    check_model(replace(parity(build=None), {"data": {"task": "text", "options": {}}}, "test"))
    assert TASK.batch([parity_row(0, 3)]).tokens.shape == (1, 3)


def test_the_first_cause_of_a_failed_import_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ModuleNotFoundError('no X here') from error\n"
    )
    (tmp_path / "own_late.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    said = r"\(ModuleNotFoundError: no X here; at first ZeroDivisionError: division by zero\)"
    with pytest.raises(UserError, match=said):
        check_task(parity().data.model_copy(update={"task": "own_late:TASK"}))
