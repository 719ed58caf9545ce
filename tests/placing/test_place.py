"""Every method places every layer, and numbers that do not fit are refused."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.placing.place import METHODS, place
from moec.placing.placement import linear

LOADS = np.random.default_rng(0).integers(0, 100, (3, 12))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("ranks", "nodes"), [(1, 1), (4, 2), (5, 1), (16, 2)])
def test_every_method_places_every_layer(method, ranks, nodes):
    placement = place(LOADS, ranks, nodes, method=method)
    assert (placement.ranks, placement.nodes) == (ranks, nodes)
    assert [layer.name for layer in placement.layers] == ["layers.0", "layers.1", "layers.2"]
    assert all(sum(map(len, layer.slots)) == layer.experts == 12 for layer in placement.layers)
    assert max(len(slots) for layer in placement.layers for slots in layer.slots) == -(-12 // ranks)


def test_linear_is_the_placement_without_a_profile():
    assert place(LOADS, 5, method="linear").layers[1] == linear("layers.1", 12, 5)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "linear"])
def test_replicas_go_to_hot_experts(method):
    loads = np.array([[90, 10, 10, 10, 10, 10]])
    (layer,) = place(loads, 3, replicas=2, method=method, names=["a"]).layers
    assert layer.name == "a" and sum(map(len, layer.slots)) == 8
    assert layer.holders()[0] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 1, "method": "linear"}, "the method linear places none"),
        ({"replicas": 37}, "expected 0 to 36: 4 ranks can hold each of the 12 experts of 'layers.0' once"),
        ({"replicas": -1}, "expected 0 to 36"),
        ({"nodes": 3}, "multiple of the number of nodes"),
        ({"nodes": 0}, "multiple of the number of nodes"),
        ({"groups": 5, "nodes": 1}, "groups that divide the experts"),
        ({"method": "best"}, "expected one of eplb"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(MoecError, match=message):
        place(LOADS, 4, **{"method": "eplb", **options})


@pytest.mark.parametrize("loads", [[[1, float("nan")]], [[1, -1]], [[]], [np.zeros((2, 2, 2))]])
def test_loads_that_are_none_are_refused(loads):
    with pytest.raises(MoecError, match="expected numbers from 0 up"):
        place(loads, 2, method="eplb")
