"""A placement is read from a file, refused where it is none, and sends every pair to a rank that holds its expert."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.placing.placement import ExpertPlacement, LayerPlacement, linear, read_placement

REPLICATED = LayerPlacement("a", 3, ((0, 1), (1, 2), (1,), (2, 0)))


def test_the_text_is_read_back():
    placement = ExpertPlacement(4, (REPLICATED, linear("b", 6, 4)), 2)
    assert read_placement(placement.text(), "p.json") == placement
    assert json.loads(placement.text()) == placement.as_data()


@pytest.mark.parametrize("experts", [1, 3, 8, 9])
def test_linear_placements_are_even(experts):
    sizes = [len(slots) for slots in linear("a", experts, 4).slots]
    assert sum(sizes) == experts and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("rank", range(4))
def test_pairs_go_to_holders(rank, nodes):
    experts = np.random.default_rng(rank).integers(-1, 5, (50, 3))
    to = REPLICATED.destinations(experts, rank, nodes)
    holders = REPLICATED.holders()
    for expert, chosen in zip(experts.ravel(), to.ravel(), strict=True):
        allowed = holders[expert] if 0 <= expert < 3 else [rank]
        near = [holder for holder in allowed if holder // (4 // nodes) == rank // (4 // nodes)]
        assert chosen in ([rank] if rank in allowed else near or allowed)


def test_replicas_share_rows():
    to = REPLICATED.destinations(np.full((9, 1), 1), 3)
    assert np.bincount(to.ravel(), minlength=4).tolist() == [3, 3, 3, 0]


def test_no_token_goes_nowhere():
    assert REPLICATED.destinations(np.zeros((0, 2), np.int32), 0).shape == (0, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "as moec plan --ranks prints it"),
        ({"ranks": 2, "layers": 3}, "layers"),
        ({"ranks": True, "layers": []}, "ranks"),
        ({"ranks": 3, "nodes": 2, "layers": []}, "multiple of the number of nodes"),
        ({"ranks": 1, "layers": [{"name": "a", "experts": 2, "slots": [[0]]}]}, "expert 1 has no slot"),
        ({"ranks": 1, "layers": [{"name": "a", "experts": 1, "slots": [[0, 0]]}]}, "in two slots"),
        ({"ranks": 1, "layers": [{"name": "a", "experts": 1, "slots": [[0, 1]]}]}, "from 0 to 0"),
        ({"ranks": 2, "layers": [{"name": "a", "experts": 1, "slots": [[0]]}]}, "slots of 1 ranks"),
        ({"ranks": 1, "layers": [{"name": 1, "experts": 1, "slots": [[0]]}]}, "name"),
        ({"ranks": 1, "layers": [{"name": "a", "experts": 1, "slots": [["x"]]}]}, "slots"),
    ],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(MoecError, match=message) as refusal:
        read_placement(json.dumps(data), "p.json")
    assert str(refusal.value).startswith("p.json: ")
