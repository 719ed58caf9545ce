"""Operations and bytes of kernels' calls."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moec.common.errors import ArtifactError
from moec.common.work import (
    Argument,
    AttentionWork,
    BatchedWork,
    GroupedWork,
    MatmulWork,
    Work,
    parse_work,
    work_as_data,
    work_of,
)


def given(*shapes, dtype=np.float32):
    return [Argument(np.zeros(shape, dtype), constant=False) for shape in shapes]


def test_gemm_counts_its_rows_and_all_it_touches():
    weight = Argument(np.zeros(100, np.int8), constant=True)
    arguments = [*given((8, 64)), weight, *given((5, 32))]  # rows, weight, result
    moved = 8 * 64 * 4 + 100 + 5 * 32 * 4
    assert work_of(MatmulWork(60, 32, "int8"), arguments) == Work(2 * 5 * 60 * 32, moved, "int8")


def grouped(sizes=(), sized="width"):
    return GroupedWork(64, 32, 2, "int8", (8.0, 4.0), (0, 1, 0), sizes, sized)


def grouped_arguments(*blocks):
    """Make rows, blocks with room for more, their number, and a weight that is not read completely."""
    table = np.full((len(blocks) + 2, 3), 99, np.int32)
    table[: len(blocks)] = np.reshape(blocks, (-1, 3))
    count = np.array([len(blocks)], np.int32)
    arrays = [np.zeros((6, 64), np.int8), table, count]
    weight = Argument(np.zeros(10**6, np.int8), constant=True)
    return [*(Argument(array, constant=False) for array in arrays), weight], sum(array.nbytes for array in arrays)


def test_grouped_gemm_counts_experts_with_rows_in_their_formats():
    arguments, other_bytes = grouped_arguments((0, 0, 2), (1, 2, 3), (1, 5, 1))
    work = work_of(grouped(), arguments)
    weights = 2 * 64 * 32
    assert work == Work(2 * 6 * weights, other_bytes + weights + weights // 2, "int8")


def test_grouped_gemm_without_rows():
    arguments, other_bytes = grouped_arguments()
    assert work_of(grouped(), arguments) == Work(0, other_bytes, "int8")


@pytest.mark.parametrize(
    ("sized", "weights"),
    [("width", 2 * 64 * 8), ("inner", 2 * 8 * 32)],
)
def test_experts_of_other_sizes(sized, weights):
    arguments, _ = grouped_arguments((2, 0, 6))
    assert work_of(grouped((32, 16, 8), sized), arguments).operations == 2 * 6 * weights


def test_batched_matmul():
    assert work_of(BatchedWork(), given((2, 3, 5), (2, 5, 7), (2, 3, 7))).operations == 2 * 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("causal", "pairs"),
    [("", 3 * 10), ("last", 8 + 9 + 10), ("first", 1 + 2 + 3)],
)
def test_attention_counts_the_keys_a_query_sees(causal, pairs):
    arguments = given((2, 4, 3, 16), (2, 2, 10, 16), (2, 2, 10, 8), (2, 4, 3, 8))
    work = work_of(AttentionWork(causal, False), arguments)
    assert work.operations == 2 * 2 * 4 * pairs * (16 + 8)
    assert work.bytes_moved == sum(argument.array.nbytes for argument in arguments)


def test_attention_counts_the_keys_in_use():
    operands = given((2, 4, 1, 16), (2, 2, 10, 16), (2, 2, 10, 16))
    lengths = Argument(np.array([4, 6], np.int32), constant=False)
    arguments = [*operands, lengths, *given((2, 4, 1, 16))]
    work = work_of(AttentionWork("lengths", True), arguments)
    assert work.operations == 2 * 4 * (4 + 6) * 32
    unused = (operands[1].array.nbytes + operands[2].array.nbytes) // 2
    assert work.bytes_moved == sum(argument.array.nbytes for argument in arguments) - unused


def test_values_that_are_columns_of_keys_are_read_once():
    pages = given((2, 1, 2, 5, 16), (2, 1, 2, 5, 16))
    arguments = [*given((1, 4, 1, 16)), *pages, Argument(np.array([5]), constant=False), *given((1, 4, 1, 8))]
    both, once = (work_of(AttentionWork("lengths", True, True, in_keys), arguments) for in_keys in (False, True))
    assert both.bytes_moved - once.bytes_moved == pages[0].array.nbytes // 2
    assert both.operations == once.operations == 2 * 4 * 5 * (16 + 8)


def test_other_kernels_move_bytes():
    assert work_of(None, given((2, 3), (2, 3))) == Work(None, 48)


def test_calls_add_up():
    assert Work(1, 2, "int8") + Work(3, 4, "int8") == Work(4, 6, "int8")
    assert (Work(1, 2) + Work(None, 4)).operations is None


@pytest.mark.parametrize(
    "model",
    [None, MatmulWork(60, 32, "int8"), grouped((32, 16, 8), "inner"), BatchedWork(), AttentionWork("last", True)],
)
def test_models_survive_an_artifact(model):
    data = work_as_data(model)
    assert parse_work(None if data is None else json.loads(json.dumps(data)), "art") == model


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "counts is null; expected one of 'matmul', 'grouped', 'batched', 'attention'"),
        ({"counts": ["matmul"]}, "counts is a list of 1; expected one of"),
        ({"counts": "matmul"}, "inner is missing; expected a whole number"),
        ({"counts": "matmul", "inner": 1, "width": "2", "arithmetic": "int8"}, 'width is "2"; expected a whole number'),
        ({"counts": "attention", "causal": "none", "has_lengths": False}, "causal is .*; expected one of '', 'first'"),
        ({"counts": "batched", "inner": 3}, "has the unknown field 'inner'"),
    ],
)
def test_other_models_are_refused(data, message):
    with pytest.raises(ArtifactError, match=f"^kernel 'k': work: {message}.*; compile the model again$"):
        parse_work(data, "kernel 'k'")
