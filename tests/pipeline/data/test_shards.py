import json
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.augment import View, inverse, view_grid, view_task, views
from pipeline.data.manifest import SCHEMA_VERSION, file_hash
from pipeline.data.related import LARGE, canonical_form
from pipeline.data.rows import check_file, read_group, read_lengths
from pipeline.data.shards import open_prepared, prepare, read_rows
from pipeline.data.task import Task
from pipeline.data.tokens import FORMAT, decode_sequence, encoded_length
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig
from tests.pipeline.arc_samples import random_task, write_tasks

TASKS = [random_task(f"t{i:02d}", i, side=3 + i % 4, tests=1 + i % 2) for i in range(20)]


@pytest.fixture
def config(tmp_path):
    folder = write_tasks(tmp_path / "tasks", TASKS)
    # One evaluation task is new, the other repeats a pair of every training task: a leak wherever the split falls.
    leaky = Task("leaky", tuple(task.train[0] for task in TASKS[:18]), TASKS[0].test)
    write_tasks(folder / "evaluation", [random_task("new", 99, tests=2), leaky])
    return DataConfig(
        dataset="folder",
        folder=str(folder),
        max_tokens=2000,
        dihedral_views=3,
        colour_permutations=2,
        rows_per_group=4,
        rows_per_shard=40,
    )


@pytest.fixture
def prepared(config, tmp_path):
    return prepare(config, tmp_path / "data")


def _rewrite(prepared, change):
    """A shard written anew by someone else, with the manifest made to agree."""
    shard = prepared.manifest.shards[0]
    path = prepared.path(shard)
    pq.write_table(change(pq.read_table(path)), path, row_group_size=4)
    _edit_manifest(prepared, lambda m: m["shards"][0].update(sha256=file_hash(path)))


def _edit_manifest(prepared, change):
    from pipeline.data.manifest import Shard, data_hash

    path = prepared.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["data_hash"] = data_hash(Shard(**shard) for shard in manifest["shards"])
    path.write_text(json.dumps(manifest))


def test_tasks_for_selection_leave_those_of_the_test_out(config, tmp_path):
    def ids(prepared, split):
        return {row.task_id for row in read_rows(prepared, split)}

    test = prepare(config, tmp_path / "data")
    selection = prepare(config.model_copy(update={"held_out_for": "selection"}), tmp_path / "data")
    assert test.folder != selection.folder
    assert len(ids(selection, "held_out")) == len(ids(test, "held_out")) > 0
    assert not ids(test, "held_out") & (ids(selection, "held_out") | ids(selection, "train"))


def test_every_task_is_written_whole_in_every_view(prepared, config):
    tasks = {task.task_id: task for task in TASKS}
    table = pa.concat_tables(pq.read_table(prepared.path(shard)) for shard in prepared.shards("train"))
    held_out = {sequence.task_id for sequence in read_rows(prepared, "held_out")}
    written = Counter()
    for row in table.to_pylist():
        view = View(row["view"], tuple(map(int, row["colours"])))
        written[row["task_id"], view] += 1
        undone = [view_grid(g, inverse(view)).tolist() for pair in decode_sequence(row["tokens"]) for g in pair]
        assert undone == [g.tolist() for pair in tasks[row["task_id"]].pairs for g in (pair.input, pair.output)]
        assert row["pair"] == -1
        assert row["length"] == len(row["tokens"]) == len(row["labelled"])
    assert written == Counter({(name, view): 1 for name in tasks.keys() - held_out for view in views(name, config)})
    ids = table["task_id"].to_pylist()
    assert ids != sorted(ids)


def test_held_out_and_evaluation_rows_are_single_test_pairs_as_they_are(prepared):
    held_out = read_rows(prepared, "held_out")
    tasks = {task.task_id: task for task in TASKS}
    for sequence in held_out:
        answer = tasks[sequence.task_id].test[sequence.pair].output
        np.testing.assert_array_equal(decode_sequence(sequence.tokens)[-1][1], answer)
        assert sequence.labelled.sum() == answer.shape[0] * (answer.shape[1] + 1) + 1
    expected = [(name, pair) for name in sorted({s.task_id for s in held_out}) for pair in range(len(tasks[name].test))]
    assert [(s.task_id, s.pair) for s in held_out] == expected
    assert [(s.task_id, s.pair) for s in read_rows(prepared, "evaluation")] == [("leaky", 0), ("new", 0), ("new", 1)]


def test_the_manifest_counts_what_is_there(prepared):
    counts = prepared.manifest.counts
    assert counts["train"].tasks + counts["held_out"].tasks == 20
    assert counts["held_out"].tasks == 4
    assert counts["train"].rows == 16 * 6
    assert [(s.rows, s.row_groups) for s in prepared.shards("train")] == [(40, 10), (40, 10), (16, 4)]
    for split in ("train", "held_out", "evaluation"):
        rows = read_rows(prepared, split)
        assert counts[split].rows == len(rows)
        assert counts[split].tokens == sum(map(len, rows))
        assert counts[split].labelled_tokens == sum(int(row.labelled.sum()) for row in rows)


def test_leaks_are_reported(prepared):
    trained = {sequence.task_id for sequence in read_rows(prepared, "train")}
    leaks = {(leak.split, leak.task, leak.train_task) for leak in prepared.manifest.leakage}

    def forms(task):
        return {canonical_form(pair): pair.input.size + pair.output.size for pair in task.pairs}

    leaky = forms(Task("leaky", tuple(task.train[0] for task in TASKS[:18]), TASKS[0].test))
    common = {task.task_id: [cells for form, cells in forms(task).items() if form in leaky] for task in TASKS}
    related = {name for name, cells in common.items() if len(cells) > 1 or max(cells, default=0) >= LARGE}
    assert leaks == {("evaluation", "leaky", name) for name in trained & related}
    assert len(leaks) > 3
    assert len({name for name in trained - related if common[name]}) > 3  # a small pair in common may be chance


def test_long_tasks_and_views_are_counted_not_used(config, tmp_path):
    # The limit is such that some tasks fit as they are and not when turned.
    limit = sorted(encoded_length(task.pairs) for task in TASKS)[12]
    cut = config.model_copy(update={"max_tokens": limit})
    fitting = [task for task in TASKS if encoded_length(task.pairs) <= limit]
    prepared = prepare(cut, tmp_path / "data")
    counts = prepared.manifest.counts
    assert counts["train"].tasks + counts["held_out"].tasks == len(fitting)
    assert counts["train"].too_long_tasks == 20 - len(fitting) > 0
    trained = {sequence.task_id for sequence in read_rows(prepared, "train")}
    turned = sum(encoded_length(t.pairs, True) > limit for t in fitting if t.task_id in trained)
    assert counts["train"].too_long_views == 2 * turned > 0  # of three symmetries one transposes, in two colourings
    assert counts["train"].rows == counts["train"].tasks * 6 - 2 * turned
    assert counts["evaluation"].too_long_tasks == 1
    assert max(map(len, read_rows(prepared, "train"))) <= limit


def test_an_intact_data_set_is_used_again_and_another_setting_makes_another(prepared, config, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in prepared.folder.iterdir()}
    again = prepare(config, tmp_path / "data")
    assert again == prepared
    assert before == {path.name: path.stat().st_mtime_ns for path in again.folder.iterdir()}
    other = prepare(config.model_copy(update={"seed": 1}), tmp_path / "data")
    assert other.folder != prepared.folder
    assert other.manifest.source_hash == prepared.manifest.source_hash
    assert other.manifest.data_hash != prepared.manifest.data_hash
    elsewhere = prepare(config, tmp_path / "elsewhere")
    assert elsewhere.manifest == prepared.manifest


def test_progress_goes_up_to_the_number_of_rows(config, tmp_path):
    seen = []
    prepared = prepare(config, tmp_path / "data", lambda done, total: seen.append((done, total)))
    total = sum(counts.rows for counts in prepared.manifest.counts.values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_what_a_killed_run_left_is_no_data_set(prepared, config, tmp_path):
    aside = prepared.folder.with_name(f".{prepared.folder.name}.partial")
    prepared.folder.rename(aside)
    (aside / "manifest.json").unlink()
    assert prepare(config, tmp_path / "data") == prepared
    assert not aside.exists()


def test_a_damaged_data_set_is_written_anew_and_says_so(prepared, config, tmp_path, caplog):
    prepared.path(prepared.manifest.shards[1]).write_bytes(b"")
    assert prepare(config, tmp_path / "data") == prepared
    assert open_prepared(prepared.folder, "arc") == prepared
    assert "is damaged" in caplog.text


def test_two_processes_may_prepare_at_once(config, tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may wait for ever for a lock
    with ProcessPoolExecutor(2, context) as pool:
        first, second = pool.map(prepare, [config] * 2, [tmp_path / "data"] * 2)
    assert first == second == open_prepared(first.folder, "arc")


def test_a_place_that_cannot_be_written_to_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        prepare(config, tmp_path / "file")


def test_any_flipped_bit_is_noticed(prepared):
    draw = np.random.default_rng(0)
    path = prepared.path(prepared.manifest.shards[0])
    whole = path.read_bytes()
    for place in draw.integers(0, len(whole), 25):
        torn = bytearray(whole)
        torn[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(torn)
        with pytest.raises(UserError, match=r"train-00000\.parquet: is damaged: sha256"):
            open_prepared(prepared.folder, "arc")


def test_a_flipped_bit_in_the_values_is_noticed_without_the_hash(prepared):
    path = prepared.path(prepared.manifest.shards[0])
    metadata = pq.ParquetFile(path).metadata
    column = next(
        c for c in map(metadata.row_group(1).column, range(metadata.num_columns)) if c.path_in_schema[:6] == "tokens"
    )
    torn = bytearray(path.read_bytes())
    torn[column.data_page_offset + column.total_compressed_size // 2] ^= 4
    path.write_bytes(torn)
    open_prepared(prepared.folder, "arc", hashes=False)
    read_group(path, 0, FORMAT)
    with pytest.raises(UserError, match=r"train-00000\.parquet, row group 1: cannot be read"):
        read_group(path, 1, FORMAT)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop_columns(["labelled"]), "column 'labelled' is missing"),
        (lambda t: t.append_column("more", t["pair"]), "unknown column 'more'"),
        (lambda t: t.set_column(1, "pair", t["pair"].cast(pa.int64())), "column 'pair' is int64"),
        (lambda t: t.slice(1), "the manifest says 40 in 10"),
        (
            lambda t: t.set_column(
                4, t.schema.field("tokens"), pa.array([[16]] * len(t), t.schema.field("tokens").type)
            ),
            "`tokens` holds 16; expected less than 16",
        ),
    ],
)
def test_a_shard_of_another_make_is_refused(prepared, change, reason):
    _rewrite(prepared, change)
    with pytest.raises(UserError, match=f"train-00000.parquet: .*{reason}"):
        open_prepared(prepared.folder, "arc")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_shard_is_refused_even_if_its_hash_agrees(prepared, part):
    path = prepared.path(prepared.manifest.shards[0])
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    _edit_manifest(prepared, lambda m: m["shards"][0].update(sha256=file_hash(path)))
    with pytest.raises(UserError, match=r"train-00000\.parquet: is no readable Parquet file"):
        open_prepared(prepared.folder, "arc")
    with pytest.raises(UserError, match=r"train-00000\.parquet: lengths cannot be read"):
        read_lengths(path)


def test_no_damage_to_a_footer_ends_the_process(prepared):
    """Arrow, asked for the statistics in a damaged footer, aborts; here every seventh byte of it is damaged."""
    shard = prepared.manifest.shards[0]
    path = prepared.path(shard)
    whole = path.read_bytes()
    refused = 0
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(footer, len(whole) - 8, 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            check_file(path, shard.rows, shard.row_groups, FORMAT)
        except UserError:
            refused += 1
    assert refused > 50  # of hundreds: names, sizes and statistics that nobody asks for may say anything


def test_values_are_checked_again_when_they_are_read(prepared):
    path = prepared.path(prepared.manifest.shards[0])
    table = pq.read_table(path)
    field = table.schema.field("rows")
    wild = [[32] * len(row) for row in table["rows"].to_pylist()]
    pq.write_table(table.set_column(5, field, pa.array(wild, field.type)), path)
    with pytest.raises(UserError, match="row group 0: `rows` holds 32; expected less than 32"):
        read_group(path, 0, FORMAT)
    pq.write_table(table.set_column(5, field, pa.array([[1]] * len(table), field.type)), path)
    with pytest.raises(UserError, match="`rows` is not as long as `length` says"):
        read_group(path, 0, FORMAT)


def test_missing_files_and_foreign_manifests_are_named(prepared):
    manifest = prepared.folder / "manifest.json"
    text = manifest.read_text()
    for changed, reason in (
        (
            text.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'),
            f"schema_version is 99; expected {SCHEMA_VERSION}",
        ),
        (text.replace('"refused"', '"denied"'), "refused: Field required"),
        (text[:-10], "is no manifest"),
        ("[]", "is no manifest"),
        (text.replace('"train-00000.parquet"', '"../train-00000.parquet"'), r"shards.0.file: String should match"),
        (text.replace(prepared.manifest.shards[0].sha256, "0" * 64), "expected data_hash"),
    ):
        manifest.write_text(changed)
        with pytest.raises(UserError, match=f"manifest.json: .*{reason}"):
            open_prepared(prepared.folder, "arc")
    manifest.write_text(text)
    prepared.path(prepared.manifest.shards[1]).unlink()
    with pytest.raises(UserError, match=r"train-00001\.parquet: is missing"):
        open_prepared(prepared.folder, "arc")
    with pytest.raises(UserError, match="cannot be read"):
        open_prepared(prepared.folder / "absent", "arc")


@pytest.mark.parametrize("views", [1, 8])
def test_a_turned_and_recoloured_copy_of_a_trained_task_is_reported_as_a_leak(views, tmp_path):
    copy = view_task(TASKS[0], View(3, (4, *range(4), *range(5, 10))))
    write_tasks(tmp_path / "tasks", TASKS)
    write_tasks(tmp_path / "tasks" / "evaluation", [Task("copy", copy.train, copy.test)])
    config = DataConfig(
        dataset="folder", folder=str(tmp_path / "tasks"), max_tokens=2000, dihedral_views=views, held_out=0.1
    )
    prepared = prepare(config, tmp_path / "data")
    assert TASKS[0].task_id in {row.task_id for row in read_rows(prepared, "train")}
    assert [(leak.task, leak.train_task) for leak in prepared.manifest.leakage] == [("copy", TASKS[0].task_id)]


def test_a_data_set_made_under_an_older_version_is_not_used_again(prepared, config, tmp_path, monkeypatch):
    """Which tasks are held out is a rule of the version, so the version is part of the folder's name."""
    monkeypatch.setattr("pipeline.data.shards.SCHEMA_VERSION", SCHEMA_VERSION - 1)
    monkeypatch.setattr("pipeline.data.shard_writer.SCHEMA_VERSION", SCHEMA_VERSION - 1)
    older = prepare(config, tmp_path / "data")
    assert older.folder != prepared.folder
    monkeypatch.undo()
    assert prepare(config, tmp_path / "data").folder == prepared.folder
    reason = rf"schema_version is {SCHEMA_VERSION - 1}; expected {SCHEMA_VERSION}\. Prepare the data again"
    with pytest.raises(UserError, match=reason):
        open_prepared(older.folder, "arc")


def test_the_public_tasks_are_split_without_a_leak(tmp_path):
    prepared = prepare(DataConfig(dihedral_views=1), tmp_path)
    counts = prepared.manifest.counts
    assert (counts["train"].tasks, counts["held_out"].tasks, counts["train"].too_long_tasks) == (149, 37, 814)
    assert (counts["evaluation"].tasks, counts["evaluation"].too_long_tasks) == (0, 120)
    assert not prepared.manifest.leakage
    assert {s.task_id for s in read_rows(prepared, "train")}.isdisjoint(
        s.task_id for s in read_rows(prepared, "held_out")
    )
