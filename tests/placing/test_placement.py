"""A placement sends every pair to a rank that holds its expert, and is refused where it is none."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.placing.placement import ExpertPlacement, LayerPlacement, linear

REPLICATED = LayerPlacement("a", 3, ((0, 1), (1, 2), (1,), (2, 0)))


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
    ("experts", "slots", "message"),
    [
        (2, ((0,),), "expert 1 has no slot"),
        (10**18, ((0,),), "expert 1 has no slot"),
        (1, ((0, 0),), "in two slots"),
        (1, ((0, 1),), "slots have expert 1; expected experts from 0 to 0"),
        (1, ((0, -1),), "slots have expert -1"),
    ],
)
def test_other_slots_are_refused(experts, slots, message):
    with pytest.raises(MoecError, match=message):
        LayerPlacement("a", experts, slots)


@pytest.mark.parametrize(
    ("ranks", "nodes", "message"), [(3, 2, "multiple of the number of nodes"), (0, 1, "0 ranks"), (2, 1, "of 1 ranks")]
)
def test_other_numbers_of_ranks_are_refused(ranks, nodes, message):
    with pytest.raises(MoecError, match=message):
        ExpertPlacement(ranks, (LayerPlacement("a", 1, ((0,),)),), nodes)
