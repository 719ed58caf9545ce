"""Sizes and numbers of the inputs with which a model is tried."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.checking.samples import MANY, Samples
from moec.common.specs import TensorSpec

IDS, MASK = TensorSpec("ids", "int64", ("B", "S")), TensorSpec("mask", "int64", ("B", "P + S"))
KEYS = TensorSpec("keys", "float32", ("B", 2, "P", 4))
FLOATS = Samples([TensorSpec("x", "float32", ("T", 4)), TensorSpec("v", "float32", ("U",))], {}, {})
CACHED = Samples([IDS, MASK, KEYS], {"ids": 7}, {"P + S": "P + S"})


def shapes(inputs) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in inputs.items()}


def test_free_sizes_are_those_that_follow_from_no_other():
    assert CACHED.free == ["B", "S", "P"] and FLOATS.free == ["T", "U"]
    assert dataclasses.replace(FLOATS, dependent={"U": "T + 1"}).free == ["T"]


def test_unequal_sizes_leave_caches_empty():
    assert FLOATS.unequal() == [{"T": 3, "U": 4}, {"T": 4, "U": 3}]
    assert CACHED.unequal() == [{"P": 0, "B": 3, "S": 4}, {"P": 0, "B": 4, "S": 3}]
    assert dataclasses.replace(FLOATS, specs=FLOATS.specs[:1]).unequal() == []


def test_unequal_sizes_that_guards_rule_out_are_left_out():
    assert dataclasses.replace(FLOATS, guards=["T <= 3"]).unequal() == [{"T": 3, "U": 4}]
    assert dataclasses.replace(FLOATS, guards=["T <= 3", "U <= 3"]).unequal() == []


def test_many_tokens_and_several_of_everything_are_usual():
    many, single, other = FLOATS.usual()
    assert shapes(many) == {"x": (1, 4), "v": (MANY,)}
    assert shapes(single) == {"x": (3, 4), "v": (4,)} and shapes(other) == {"x": (4, 4), "v": (3,)}
    many, single, _ = CACHED.usual()
    assert shapes(many)["ids"] == (1, MANY) and shapes(many)["keys"][2] == many["mask"].shape[1] - MANY
    assert shapes(single) == {"ids": (3, 4), "mask": (3, 4), "keys": (3, 2, 0, 4)}


def test_floats_of_other_magnitudes_come_further():
    usual = FLOATS.of(7, 2, 11)
    scaled = list(FLOATS.further([]))[:5]
    for inputs, factor in zip(scaled, (1e-3, 30.0, 1e3, -1.0, 0.0), strict=True):
        for name, array in usual.items():
            assert array.size
            np.testing.assert_array_equal(inputs[name], array * np.float32(factor))
    integers = dataclasses.replace(FLOATS, specs=[IDS, TensorSpec("s", "bfloat16", ("S",))])
    assert len(list(integers.further([]))) == 2


def test_the_first_and_the_last_index_come_further():
    *scaled, first, last = CACHED.further([])
    assert len(scaled) == 5
    for inputs in scaled:
        np.testing.assert_array_equal(inputs["ids"], CACHED.of(7, 2, 11)["ids"])
    assert (first["ids"] == 0).all() and (last["ids"] == 6).all() and first["ids"].shape == (2, 7)
    assert (first["mask"] == 1).all()


def test_so_many_tokens_and_so_many_sequences_come_last():
    tokens, sequences = list(CACHED.further([50]))[-2:]
    assert tokens["ids"].shape == (1, 50) and sequences["ids"].shape == (50, 3)


def test_rows_are_those_of_the_largest_input_or_elements_of_indices():
    assert CACHED.rows_at({"B": 2, "S": 3, "P": 0}) == 6
    assert CACHED.rows_at({"B": 2, "S": 3, "P": 5}) == 2 * 2 * 5
    assert FLOATS.rows_at({"T": 9, "U": 4}) == 9 and FLOATS.rows_at({"T": 0, "U": 4}) == 1
    flags = [TensorSpec("b", "bool", (3, "T")), TensorSpec("u", "uint8", (4, "T"))]
    assert dataclasses.replace(FLOATS, specs=flags[:1]).rows_at({"T": 5}) == 15
    assert dataclasses.replace(FLOATS, specs=flags).rows_at({"T": 5}) == 20


@pytest.mark.parametrize("sizes", [{"B": 2, "S": 3, "P": 5}, {"B": 1, "S": 9, "P": 0}])
def test_sizes_of_inputs_are_those_that_they_were_made_of(sizes):
    assert CACHED.sizes_of(CACHED.at(sizes, 0)) == sizes
    assert CACHED.complete(sizes)["P + S"] == sizes["P"] + sizes["S"]
    assert CACHED.allows(sizes)
    assert dataclasses.replace(CACHED, guards=["P + S <= 8"]).allows(sizes) == (sizes["P"] == 5)
