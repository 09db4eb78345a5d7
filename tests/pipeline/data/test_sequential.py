"""Task after task: each step's task by a slow twin, every row in each pass, and the same from any step on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batch import Batch
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.plan import plan_pass
from pipeline.data.published import publish
from pipeline.data.sequential import SequentialLoader, last_steps, open_loader, order_of
from pipeline.data.shards import open_prepared, prepare, read_rows
from pipeline.data.task import Pair, Task, grid_of
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig, Experiment, replace
from pipeline.storage.opening import open_storage
from tests.pipeline.arc_samples import random_task, write_tasks
from tests.pipeline.samples import small_experiment

TASKS = [random_task(f"t{i:02d}", i, side=2 + i % 4) for i in range(9)]
STEPS, BUDGET, VIEWS = 40, 400, 5


def prepared_in(root: Path, tasks: list[Task], views: int) -> Prepared:
    folder = str(write_tasks(root / "tasks", tasks))
    config = DataConfig(dataset="folder", folder=folder, max_tokens=200, rows_per_group=3, dihedral_views=views, seed=4)
    return prepare(config, root / "data")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_in(tmp_path_factory.mktemp("sequential"), TASKS, VIEWS)


def loaders(prepared: Prepared, world_size: int, steps: int = STEPS, budget: int = BUDGET) -> list[SequentialLoader]:
    return [SequentialLoader(prepared, budget, 0, 4, steps, rank, world_size) for rank in range(world_size)]


def rows(*batches: Batch) -> list[bytes]:
    return [
        bytes(tokens[valid].tolist())
        for batch in batches
        for tokens, valid in zip(batch.tokens, batch.valid, strict=True)
    ]


def same(first: Batch, second: Batch) -> bool:
    pairs = zip((*first.inputs, first.labels), (*second.inputs, second.labels), strict=True)
    return first.task_ids == second.task_ids and all(torch.equal(*pair) for pair in pairs)


def test_shares_worked_by_hand() -> None:
    assert last_steps(10, 3) == [3, 6, 10]
    assert last_steps(3, 3) == [1, 2, 3]
    assert last_steps(7, 2) == [3, 7]


def test_the_order_is_the_seeds_alone() -> None:
    names = [f"n{number}" for number in range(20)]
    assert order_of(names, 3) == order_of(names[::-1], 3)
    assert sorted(order_of(names, 3)) == sorted(names)
    assert order_of(names, 3) != order_of(names, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_task_after_task_and_within_each_pass_after_pass_over_all_of_its_rows(
    prepared: Prepared, world_size: int
) -> None:
    """Against a slow twin, which walks through the steps one by one."""
    every = read_rows(prepared, "train")
    of_task = {
        name: Counter(r.tokens.tobytes() for r in every if r.task_id == name) for name in {*map(str, ids(every))}
    }
    ranks = loaders(prepared, world_size)
    tasks = ranks[0].tasks
    assert sorted(tasks) == sorted(of_task)
    streams = [loader.stream() for loader in ranks]
    seen: list[tuple[str, int, list[bytes]]] = []
    for step in range(1, STEPS + 1):
        name = next(n for k, n in enumerate(tasks) if step <= (k + 1) * STEPS // len(tasks))
        assert tasks[ranks[0].task_at(step)] == name
        parts = [next(stream) for stream in streams]
        assert {again for again, _ in parts} == {parts[0][0]}
        assert {task for _, batch in parts for task in batch.task_ids} == {name}
        assert all(batch.tokens.numel() <= BUDGET // world_size for _, batch in parts)
        seen.append((name, parts[0][0], rows(*(batch for _, batch in parts))))
    assert all(next(stream, None) is None for stream in streams)
    shares = Counter(name for name, _, _ in seen)
    assert max(shares.values()) - min(shares.values()) <= 1
    whole = 0
    for name in tasks:
        passes = [again for each, again, _ in seen if each == name]
        assert passes == sorted(passes)
        for again in range(passes[-1]):  # the last one may be cut short by the end of the task's share
            counted = Counter(row for each, at, part in seen if (each, at) == (name, again) for row in part)
            assert counted.keys() == of_task[name].keys()
            assert (counted - of_task[name]).total() == -of_task[name].total() % world_size  # rows that are taken twice
            whole += 1
    assert whole


def ids(every: list) -> list[str]:
    return [row.task_id for row in every]


@pytest.mark.parametrize("world_size", [1, 2])
def test_it_is_taken_up_exactly_at_any_step(prepared: Prepared, world_size: int) -> None:
    for loader in loaders(prepared, world_size):
        whole = list(loader.stream())
        assert len(whole) == STEPS
        for start in range(STEPS + 1):
            rest = list(loader.stream(start))
            assert [again for again, _ in rest] == [again for again, _ in whole[start:]]
            assert all(same(a, b) for (_, a), (_, b) in zip(rest, whole[start:], strict=True))


def test_two_workers_have_the_batches_of_one_between_them_where_rows_are_equally_long(tmp_path: Path) -> None:
    def square(n: int) -> Task:
        grids = [grid_of(np.random.default_rng(10 * n + k).integers(0, 10, (3, 3))) for k in range(6)]
        return Task(f"s{n}", (Pair(*grids[:2]), Pair(*grids[2:4])), (Pair(*grids[4:]),))

    prepared = prepared_in(tmp_path, [square(n) for n in range(4)], 8)
    length = len(read_rows(prepared, "train")[0])
    (one,) = loaders(prepared, 1, budget=4 * length)
    both = zip(*(loader.stream() for loader in loaders(prepared, 2, budget=4 * length)), strict=True)
    for (_, whole), ((_, first), (_, second)) in zip(one.stream(), both, strict=True):
        assert len(first.valid) == len(second.valid) == 2
        assert sorted(rows(whole)) == sorted(rows(first, second))


def test_a_task_of_one_row_is_there_for_every_worker(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, TASKS[:5], 1)
    for loader in loaders(prepared, 3, steps=7, budget=600):
        assert [len(batch.valid) for _, batch in loader.stream()] == [1] * 7


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=6), st.integers(1, 3))
def test_a_pass_takes_every_row_and_none_twice_but_to_share_out(lengths: list[list[int]], world_size: int) -> None:
    groups = {3 * number: list(range(len(each))) for number, each in enumerate(lengths)}  # in some row groups of many
    sizes = [np.array(lengths[n // 3] if n % 3 == 0 else [1]) for n in range(3 * len(lengths))]
    for window in (2, 256):
        plan = plan_pass(groups, sizes, (0, "task", 1), world_size, 20, window)
        assert len({len(batches) for batches in plan}) == 1
        taken = Counter(address for batches in plan for batch in batches for address in batch.rows)
        assert set(taken) == {(group, row) for group, each in groups.items() for row in each}
        windows = -(-len(taken) // (window * world_size))
        assert taken.total() - len(taken) <= windows * (world_size - 1)
        for batch in (batch for batches in plan for batch in batches):
            assert batch.longest == max(int(sizes[group][row]) for group, row in batch.rows)
            assert batch.padded_tokens <= 20
        assert plan == plan_pass(groups, sizes, (0, "task", 1), world_size, 20, window)


def test_of_a_large_task_no_more_than_a_window_is_held(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    (loader,) = loaders(prepared, 1)
    whole = list(loader.stream())
    monkeypatch.setattr("pipeline.data.sequential.WINDOW_ROWS", 1)
    assert all(same(a, b) for (_, a), (_, b) in zip(loader.stream(), whole, strict=True))


def test_a_storage_gives_the_same(prepared: Prepared, tmp_path: Path) -> None:
    there = publish(prepared, open_storage(str(tmp_path / "shared")))
    for rank in range(2):
        here, away = (loaders(each, 2)[rank].stream() for each in (prepared, there))
        assert all(same(a, b) for (_, a), (_, b) in zip(here, away, strict=True))


def test_what_a_step_takes_is_expected(prepared: Prepared) -> None:
    for loader in loaders(prepared, 2):
        whole = [batch.tokens.numel() for _, batch in loader.stream()]
        tokens, passes = loader.expected(STEPS)
        assert tokens == pytest.approx(sum(whole) / STEPS, rel=0.1)  # later passes are cut a little otherwise
        ends = [0, *loader.ends]
        firsts = [len(loader._plan(number, 0)[0]) for number in range(len(loader.tasks))]
        shares = [(end - begin) / n for begin, end, n in zip(ends[:-1], ends[1:], firsts, strict=True)]
        assert passes == pytest.approx(sum(shares) / len(shares))


def test_what_cannot_be_is_refused(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = len(loaders(prepared, 1)[0].tasks)
    with pytest.raises(UserError, match=rf"{tasks} tasks to train on, but training.steps={tasks - 1}. Use training.st"):
        loaders(prepared, 1, steps=tasks - 1)
    assert loaders(prepared, 1, steps=tasks)[0].ends == list(range(1, tasks + 1))
    with pytest.raises(UserError, match=r"a row has \d+ tokens"):
        loaders(prepared, 20)
    two = prepared_in(tmp_path, TASKS[:2], 1)  # of which one is held out
    with pytest.raises(UserError, match="all rows belong to one task, 't0"):
        loaders(two, 1)


def sequential(experiment: Experiment) -> Experiment:
    return replace(experiment, {"data.order": "sequential"}, "test")


def test_the_order_changes_neither_the_prepared_data_nor_what_was_filed_before(prepared: Prepared) -> None:
    mixed = small_experiment()
    assert "order" not in mixed._digested()["data"]
    assert sequential(mixed).digest() != mixed.digest()
    folder = prepared.folder
    assert isinstance(folder, Path)
    text = (folder / "manifest.json").read_text()
    again = prepare(prepared.manifest.config.model_copy(update={"order": "sequential"}), folder.parent)
    assert again.folder == folder
    assert (folder / "manifest.json").read_text() == text
    assert '"order"' not in text
    assert open_prepared(folder, "arc").manifest.config.order == "mixed"
    assert isinstance(open_loader(mixed, prepared), Loader)
    assert isinstance(open_loader(sequential(small_experiment(steps=40)), prepared), SequentialLoader)


def test_with_a_constant_schedule_steps_are_part_of_the_settings() -> None:
    short, long = (small_experiment(schedule="constant", steps=steps) for steps in (8, 9))
    assert short.digest() == long.digest()
    assert sequential(short).digest() != sequential(long).digest()
