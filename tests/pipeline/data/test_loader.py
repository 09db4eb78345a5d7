from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.batch import IGNORED, collate
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.plan import SHORTEST, UnequalSteps, plan_epoch
from pipeline.data.rows import read_group
from pipeline.data.shards import prepare, read_rows
from pipeline.data.task import Pair, Task, grid_of
from pipeline.data.tokens import PAD, decode_sequence, encode_task
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig
from tests.pipeline.arc_samples import random_task, write_tasks

TASKS = [random_task(f"t{i:02d}", i, side=2 + i % 4) for i in range(24)]
BUDGET = 1200


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    root = tmp_path_factory.mktemp("loader")
    folder = write_tasks(root / "tasks", TASKS)
    config = DataConfig(
        dataset="folder", folder=str(folder), max_tokens=300, rows_per_group=3, rows_per_shard=32, seed=4
    )
    return prepare(config, root / "data")


def _ranks(prepared, world_size, budget=BUDGET, seed=0):
    return [Loader(prepared, "train", budget, seed, rank, world_size) for rank in range(world_size)]


def _rows(batch):
    """Each row of a batch as its bare tokens."""
    return [bytes(tokens[valid].tolist()) for tokens, valid in zip(batch.tokens, batch.valid, strict=True)]


def _same(first, second):
    tensors = [(*batch.inputs, batch.labels, batch.valid) for batch in (first, second)]
    return first.task_ids == second.task_ids and all(map(torch.equal, *tensors))


def test_a_batch_worked_by_hand():
    short = Task("s", (Pair(grid_of([[1]]), grid_of([[2]])),), (Pair(grid_of([[3]]), grid_of([[4]])),))
    longer = Task("l", short.train, (Pair(grid_of([[3]]), grid_of([[5, 6]])),))
    batch = collate([encode_task(short, 0), encode_task(longer, 0)], PAD)
    assert batch.task_ids == ("s", "l")
    assert batch.tokens.tolist() == [
        [11, 12, 1, 14, 13, 2, 14, 15, 12, 3, 14, 13, 4, 14, 15, PAD],
        [11, 12, 1, 14, 13, 2, 14, 15, 12, 3, 14, 13, 5, 6, 14, 15],
    ]
    none = [IGNORED] * 11
    assert batch.labels.tolist() == [[*none, 4, 14, 15, IGNORED, IGNORED], [*none, 5, 6, 14, 15, IGNORED]]
    assert batch.coordinates[1][1].tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 3, 0]
    assert batch.coordinates[0][0].tolist() == [0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0]
    assert batch.valid.tolist() == [[True] * 15 + [False], [True] * 16]
    assert batch.to("cpu").tokens.dtype == batch.labels.dtype == torch.int64


def test_a_batch_may_hold_no_label():
    task = Task("t", TASKS[0].train, (Pair(grid_of([[1]]), None),))
    assert (collate([encode_task(task, 0)]).labels == IGNORED).all()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_all_ranks_take_equal_steps_and_together_see_each_row_once(prepared, world_size, epoch):
    loaders = _ranks(prepared, world_size)
    batches = [list(loader.batches(epoch)) for loader in loaders]
    assert {len(part) for part in batches} == {loader.steps_per_epoch(epoch) for loader in loaders}
    seen = Counter(row for part in batches for batch in part for row in _rows(batch))
    assert seen == Counter(sequence.tokens.tobytes() for sequence in read_rows(prepared, "train"))
    for batch in (batch for part in batches for batch in part):
        assert batch.tokens.numel() <= BUDGET // world_size
        assert (batch.valid.sum(1) >= SHORTEST * batch.tokens.shape[1]).all()


def test_batches_carry_their_rows_whole(prepared):
    by_tokens = {sequence.tokens.tobytes(): sequence for sequence in read_rows(prepared, "train")}
    for batch in _ranks(prepared, 1)[0].batches(0):
        for b, row in enumerate(_rows(batch)):
            decode_sequence(row)
            sequence, n = by_tokens[row], len(row)
            assert [axis[b, :n].tolist() for axis in batch.coordinates] == [a.tolist() for a in sequence.coordinates]
            labels = [int(t) if label else IGNORED for t, label in zip(sequence.tokens, sequence.labelled, strict=True)]
            assert batch.labels[b, :n].tolist() == [*labels[1:], IGNORED]


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_is_taken_up_exactly_at_any_step(prepared, world_size):
    for loader in _ranks(prepared, world_size):
        whole = list(loader.batches(2))
        for start in range(len(whole) + 1):
            rest = list(_ranks(prepared, world_size)[loader.rank].batches(2, start))
            assert len(rest) == len(whole) - start
            assert all(_same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_the_stream_is_taken_up_exactly_across_epochs(prepared):
    loader = _ranks(prepared, 2)[1]
    first = loader.steps_per_epoch(0)
    whole = list(islice(loader.stream(), 2 * first + 5))
    assert [epoch for epoch, _ in whole[: first + 1]] == [0] * first + [1]
    for step in (0, 3, first - 1, first, first + 2):
        for (epoch, batch), (other_epoch, other) in zip(
            whole[step:], _ranks(prepared, 2)[1].stream(step), strict=False
        ):
            assert epoch == other_epoch
            assert _same(batch, other)


def test_the_order_is_a_function_of_seed_epoch_and_world_size(prepared):
    def order(seed, epoch, world_size, loader=None):
        loader = loader or _ranks(prepared, world_size, seed=seed)[0]
        return [row for batch in loader.batches(epoch) for row in _rows(batch)]

    used = _ranks(prepared, 1)[0]
    list(used.batches(3))
    torch.manual_seed(7)
    np.random.seed(7)
    assert order(0, 1, 1) == order(0, 1, 1, used)
    assert len({tuple(order(*key)) for key in ((0, 0, 1), (0, 1, 1), (1, 0, 1), (0, 0, 2))}) == 4


def test_only_the_row_groups_that_are_needed_are_read(prepared, monkeypatch):
    read = []

    def counting(path, group, form, footer):
        read.append((path.name, group))
        return read_group(path, group, form, footer)

    loaders = _ranks(prepared, 2)
    monkeypatch.setattr("pipeline.data.row_reader.read_group", counting)
    groups = sum(shard.row_groups for shard in prepared.shards("train"))
    by_rank = []
    for loader in loaders:
        read.clear()
        list(loader.batches(0))
        assert len(read) == len(set(read))
        by_rank.append(set(read))
    assert by_rank[0].isdisjoint(by_rank[1])
    assert len(by_rank[0] | by_rank[1]) == groups
    read.clear()
    (last,) = loaders[0].batches(0, loaders[0].steps_per_epoch(0) - 1)
    assert len(read) <= len(last.task_ids)
    read.clear()
    next(loaders[0].batches(0))
    assert len(read) <= 16 < groups


def test_too_few_rows_for_so_many_ranks_are_refused(prepared):
    with pytest.raises(UserError, match=r"split train: \d+ rows in \d+ row groups are too few for 200 ranks.*workers"):
        Loader(prepared, "train", 200 * 300, 0, 0, 200)


def test_a_row_longer_than_the_budget_is_refused(prepared):
    with pytest.raises(UserError, match="batch_tokens=100 over 2 workers leaves 50; use batch_tokens >= "):
        Loader(prepared, "train", 100, 0, 0, 2)


def test_an_empty_split_is_refused(prepared):
    with pytest.raises(UserError, match="split evaluation: has no rows"):
        Loader(prepared, "evaluation", BUDGET, 0)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(50, 200),
    st.integers(1, 5),
)
def test_any_plan_is_fair_exact_and_within_bounds(groups, world_size, budget, window):
    lengths = [np.array(group, dtype=np.int32) for group in groups]
    try:
        plan = plan_epoch(lengths, 1, 2, world_size, budget, window)
    except UnequalSteps as refusal:
        rows, steps = refusal.rows, refusal.steps
        plan = ()
    if not plan:
        # Only where a rank truly has fewer rows than another has batches.
        assert rows < steps
        return
    assert len({len(batches) for batches in plan}) == 1
    seen = Counter(row for batches in plan for batch in batches for row in batch.rows)
    assert seen == Counter((g, r) for g, group in enumerate(groups) for r in range(len(group)))
    for batches in plan:
        assert [batch.window for batch in batches] == sorted(batch.window for batch in batches)
        for batch in batches:
            sizes = [groups[g][r] for g, r in batch.rows]
            assert batch.longest == max(sizes)
            assert len(sizes) * max(sizes) <= budget
            assert min(sizes) >= SHORTEST * max(sizes)
        for number in {batch.window for batch in batches}:
            assert len({g for batch in batches if batch.window == number for g, _ in batch.rows}) <= window


def test_a_rank_with_less_work_splits_its_largest_batch():
    # Rank shares of 4 long and 4 short rows: budget 10 makes 4 batches of the one and 1 of the other.
    lengths = [np.array([10] * 4), np.array([2] * 4)]
    sizes = [sorted(len(batch.rows) for batch in batches) for batches in plan_epoch(lengths, 0, 0, 2, 10)]
    assert sizes == [[1] * 4] * 2
    with pytest.raises(UnequalSteps, match="gets 3 rows, but another rank needs 4 steps"):
        plan_epoch([np.array([10] * 4), np.array([2] * 3)], 0, 0, 2, 10)
