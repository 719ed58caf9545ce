"""Sizes are computed in the order of their slots, where any order computes the same."""

from __future__ import annotations

import pytest
import tvm
import tvm_ffi
from tvm.script import tirx as T

from moec.targets.tvm.phases.order_sizes import OrderSizes


@T.prim_func(s_tir=True)
def independent(H: T.Buffer((T.int64(8),), "int64")):
    T.func_attr({"tirx.is_host_func": True})
    H[T.int64(5)] = H[T.int64(0)] * T.int64(2)
    H[T.int64(7)] = T.int64(3)
    H[T.int64(3)] = H[T.int64(0)] * H[T.int64(1)]


@T.prim_func(s_tir=True)
def in_order(H: T.Buffer((T.int64(8),), "int64")):
    T.func_attr({"tirx.is_host_func": True})
    H[T.int64(3)] = H[T.int64(0)] * H[T.int64(1)]
    H[T.int64(5)] = H[T.int64(0)] * T.int64(2)
    H[T.int64(7)] = T.int64(3)


@T.prim_func(s_tir=True)
def reads_what_it_stores(H: T.Buffer((T.int64(8),), "int64")):
    H[T.int64(5)] = H[T.int64(0)] * T.int64(2)
    H[T.int64(3)] = H[T.int64(5)]


@T.prim_func(s_tir=True)
def stores_twice(H: T.Buffer((T.int64(8),), "int64")):
    H[T.int64(5)] = T.int64(2)
    H[T.int64(3)] = T.int64(1)
    H[T.int64(5)] = T.int64(1)


@T.prim_func(s_tir=True)
def reads_anywhere(H: T.Buffer((T.int64(8),), "int64")):
    H[T.int64(5)] = H[H[T.int64(0)]]
    H[T.int64(3)] = T.int64(1)


@T.prim_func(s_tir=True)
def stores_in_two(H: T.Buffer((T.int64(8),), "int64"), G: T.Buffer((T.int64(8),), "int64")):
    H[T.int64(5)] = T.int64(2)
    G[T.int64(3)] = T.int64(1)


def ordered(function):
    return OrderSizes()(tvm.IRModule({"f": function}))["f"]


def test_independent_sizes_are_ordered():
    actual = ordered(independent)
    assert tvm_ffi.structural_equal(actual.without_attr("global_symbol"), in_order.without_attr("global_symbol"))
    assert actual.attrs["global_symbol"] == "independent" and actual.attrs["tirx.is_host_func"]


@pytest.mark.parametrize("function", [reads_what_it_stores, stores_twice, reads_anywhere, stores_in_two])
def test_others_stay_as_they_are(function):
    assert tvm_ffi.structural_equal(ordered(function), function)
