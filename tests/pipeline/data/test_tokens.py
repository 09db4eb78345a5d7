import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.arc import load_corpus
from pipeline.data.task import Pair, Task, grid_of
from pipeline.data.tokens import (
    BOS,
    COORDINATE_RANGE,
    END,
    INPUT,
    OUTPUT,
    PAD,
    ROW_END,
    VOCABULARY_SIZE,
    advance,
    decode_grid,
    decode_sequence,
    encode_pairs,
    encode_task,
    encoded_length,
    prompt_length,
)
from pipeline.settings.config import DataConfig
from tests.pipeline.arc_samples import grids, tasks

TASK = Task("t", (Pair(grid_of([[1, 2], [3, 4]]), grid_of([[5]])),), (Pair(grid_of([[6]]), grid_of([[7, 8]])),))


def test_a_sequence_worked_by_hand():
    whole = encode_task(TASK)
    demonstration = [INPUT, 1, 2, ROW_END, 3, 4, ROW_END, OUTPUT, 5, ROW_END, END]
    test = [INPUT, 6, ROW_END, OUTPUT, 7, 8, ROW_END, END]
    assert whole.tokens.tolist() == [BOS, *demonstration, *test]
    assert whole.coordinates[0].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0]
    assert whole.coordinates[1].tolist() == [0, 0, 1, 2, 3, 1, 2, 3, 0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 3, 0]
    assert np.flatnonzero(whole.labelled).tolist() == [9, 10, 11, 16, 17, 18, 19]
    one = encode_task(TASK, pair=0)
    assert one.tokens.tolist() == whole.tokens.tolist()
    assert np.flatnonzero(one.labelled).tolist() == [16, 17, 18, 19]
    assert prompt_length(one.tokens) == 16
    assert (one.task_id, one.pair, whole.pair) == ("t", 0, -1)
    assert {whole.tokens.dtype, whole.coordinates[0].dtype, whole.coordinates[1].dtype} == {np.dtype(np.uint8)}


def test_an_unknown_answer_makes_a_prompt():
    task = Task("t", TASK.train, (Pair(grid_of([[6]]), None),))
    prompt = encode_task(task, pair=0)
    assert prompt.tokens.tolist() == encode_task(TASK, pair=0).tokens[:16].tolist()
    assert len(prompt) == prompt_length(prompt.tokens) == encoded_length(task.pairs)
    assert not prompt.labelled.any()
    assert decode_sequence(prompt.tokens)[1][1] is None
    with pytest.raises(ValueError, match="pair 0 has no output"):
        encode_pairs([task.test[0], task.train[0]], [True, True])


@given(tasks())
def test_the_round_trip_is_exact(task):
    sequence = encode_task(task)
    decoded = decode_sequence(sequence.tokens)
    assert len(decoded) == len(task.pairs)
    for (given_input, given_output), pair in zip(decoded, task.pairs, strict=True):
        np.testing.assert_array_equal(given_input, pair.input)
        np.testing.assert_array_equal(given_output, pair.output)
    assert len(sequence) == encoded_length(task.pairs)
    turned = [Pair(pair.input.T, pair.output.T) for pair in task.pairs]
    assert encoded_length(task.pairs, transposed=True) == len(encode_pairs(turned, [True] * len(turned)))


@given(tasks())
def test_labels_are_the_outputs_and_their_ends(task):
    sequence = encode_task(task)
    labelled = sequence.tokens[sequence.labelled].tolist()
    expected = []
    for pair in task.pairs:
        for row in pair.output.tolist():
            expected += [*row, ROW_END]
        expected.append(END)
    assert labelled == expected
    last = encode_task(task, len(task.test) - 1)
    # All that is labelled comes after the prompt, and all after the prompt is labelled.
    assert np.flatnonzero(last.labelled).tolist() == list(range(prompt_length(last.tokens), len(last)))


@given(tasks())
def test_coordinates_follow_from_the_tokens_alone(task):
    sequence = encode_task(task)
    row = column = 0
    for t in range(1, len(sequence)):
        row, column = advance(int(sequence.tokens[t - 1]), row, column, int(sequence.tokens[t]))
        assert (row, column) == tuple(axis[t] for axis in sequence.coordinates)


@given(st.lists(st.tuples(*(st.integers(0, n - 1) for n in (16, 32, 32, 16))), min_size=1))
def test_advance_is_the_same_for_ints_arrays_and_tensors(cases):
    expected = [advance(*case) for case in cases]
    columns = np.array(cases).T
    for kind in (np.asarray, torch.as_tensor):
        rows, cols = advance(*(kind(part) for part in columns))
        assert list(zip(rows.tolist(), cols.tolist(), strict=True)) == expected
    assert all(0 <= value < COORDINATE_RANGE for pair in expected for value in pair)


def test_a_grid_that_grows_too_large_stays_at_the_last_coordinate():
    assert advance(3, 5, 31, 4) == (5, 31)
    assert advance(ROW_END, 31, 4, 4) == (31, 1)
    assert advance(3, 5, 30, ROW_END) == (5, 31)
    assert advance(3, 5, 7, END) == (0, 0)


def test_the_largest_grid_stays_inside_the_ranges():
    sequence = encode_pairs([Pair(grid_of(np.full((30, 30), 9)), grid_of([[0]]))], [True])
    assert sequence.coordinates[0].max() == 30
    assert sequence.coordinates[1].max() == 31 == COORDINATE_RANGE - 1
    assert sequence.tokens.max() == VOCABULARY_SIZE - 1


@given(grids())
def test_a_drawn_grid_is_read_with_or_without_its_end(grid):
    drawn = [token for row in grid.tolist() for token in (*row, ROW_END)]
    np.testing.assert_array_equal(decode_grid(drawn), grid)
    np.testing.assert_array_equal(decode_grid([*drawn, END]), grid)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "no row at all"),
        ([END], "no row at all"),
        ([1, 2], "not closed by ROW_END"),
        ([ROW_END], "token 0 closes a row of 0 cells"),
        ([1, 2, ROW_END, 3, ROW_END], "token 4 closes a row of 1 cells; row 0 has 2"),
        ([1, PAD, ROW_END], "token 1 is PAD"),
        ([1, END, 2, ROW_END], "token 1 is END"),
        ([1, ROW_END] * 31, "31x1 cells"),
        (([1] * 31 + [ROW_END]), "1x31 cells"),
    ],
)
def test_what_is_no_grid_says_why(tokens, reason):
    with pytest.raises(ValueError, match=reason):
        decode_grid(tokens)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([INPUT], "begins with BOS"),
        ([BOS, OUTPUT], "pair 0 begins with OUTPUT"),
        ([BOS, INPUT, 1, ROW_END], "pair 0 lacks"),
        ([BOS, INPUT, 1, ROW_END, END, OUTPUT, 1, ROW_END, END], "pair 0 holds END before its OUTPUT"),
        ([BOS, INPUT, 1, ROW_END, OUTPUT, 1, ROW_END], "pair 0 lacks"),
    ],
)
def test_what_is_no_sequence_says_why(tokens, reason):
    with pytest.raises(ValueError, match=reason):
        decode_sequence(tokens)


def test_a_prompt_needs_an_output():
    with pytest.raises(ValueError, match="no OUTPUT"):
        prompt_length(np.array([BOS, INPUT, 1, ROW_END]))


def test_how_many_public_tasks_fit():
    lengths = [encoded_length(task.pairs) for task in load_corpus(DataConfig()).train]
    assert [sum(length <= limit for length in lengths) for limit in (512, 1024)] == [186, 473]
    assert max(lengths) == 9316
