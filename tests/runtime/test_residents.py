"""Experts that stay in the memory of each rank: those that it uses most, and no more than fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.common.specs import StreamedExpertsSpec, StreamedWeight
from moec.placing.placement import ExpertPlacement, LayerPlacement
from moec.placing.plan import ExpertPlan, LayerPlan
from moec.runtime.direct_reads import PAGE
from moec.runtime.manifest import WeightEntry
from moec.runtime.residents import ProgramWeights, check_resident, predicted_share, with_residents

from ..placing.traces import zipf_trace

EXPERTS = 16
DENSE = 4 * PAGE


def weights(*shares: np.ndarray, stage: int | None = None, first: int = 0) -> ProgramWeights:
    """Make layers of experts of one page each, and other weights before them."""
    entries = [WeightEntry("dense", "uint8", (DENSE,), 0, DENSE)]
    starts = tuple(range(0, PAGE * (EXPERTS + 1), PAGE))
    specs = []
    for number, own in enumerate(shares):
        entries.append(WeightEntry(f"w{number}", "uint8", (PAGE * EXPERTS,), DENSE + number * starts[-1], starts[-1]))
        part = StreamedWeight(number + 1, starts)
        specs.append(StreamedExpertsSpec(f"w{number}", 2, EXPERTS, (part,), tuple(own), planned=first + number))
    return ProgramWeights(specs, entries, stage)


def planned(resident: int, layers: int, *slots: tuple[int, ...]) -> ExpertPlan:
    plan = ExpertPlan(tuple(LayerPlan(str(at), str(at), EXPERTS) for at in range(layers)), resident=resident)
    if not slots:
        return plan
    return plan.placed(
        ExpertPlacement(len(slots), tuple(LayerPlacement(str(at), EXPERTS, slots) for at in range(layers)))
    )


HOT = np.linspace(0.9, 0.1, EXPERTS)


def test_the_most_used_experts_of_all_layers_stay():
    plan = with_residents(planned(DENSE + 6 * PAGE, 2), [weights(HOT / 2, HOT)], "m")
    assert [layer.resident for layer in plan.layers] == [((),), ((0, 1, 2, 3, 4, 5),)]
    share = predicted_share(plan, [weights(HOT / 2, HOT)], "m")
    assert share == pytest.approx(HOT[:6].sum() / (1.5 * HOT.sum()))
    unknown = with_residents(planned(DENSE + 6 * PAGE, 2), [weights((), ())], "m")
    assert [layer.resident for layer in unknown.layers] == [((0, 1, 2),), ((0, 1, 2),)]
    assert predicted_share(unknown, [weights((), ())], "m") is None


def test_each_rank_keeps_its_own_experts_and_an_expert_of_two_ranks_counts_half():
    low, high = tuple(range(8)), tuple(range(8, 16))
    plan = with_residents(planned(DENSE + 3 * PAGE, 1, low, (0, *high)), [weights(HOT)], "m")
    assert plan.layers[0].resident == ((1, 2, 3), (0, 8, 9))  # 0.45 of expert 0 comes to each of both
    plain = with_residents(planned(DENSE + 3 * PAGE, 1, low, high), [weights(HOT)], "m")
    assert plain.layers[0].resident == ((0, 1, 2), (8, 9, 10))


def test_each_stage_has_memory_for_its_own_layers():
    stages = [weights(HOT / 2, stage=0), weights(HOT, stage=1, first=1)]
    plan = with_residents(planned(DENSE + 4 * PAGE, 2), stages, "m")
    assert [layer.resident for layer in plan.layers] == [((0, 1, 2, 3),)] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: dataclasses.replace(plan, resident=DENSE + PAGE), rf"give it at least {DENSE + 2 * PAGE} bytes"),
        (lambda plan: plan, None),
        (
            lambda plan: dataclasses.replace(plan, resident=DENSE + 2 * PAGE),
            r"m, rank 0: the plan keeps experts of 0\.012 MiB in memory, and there is room for 0\.008 MiB beside",
        ),
    ],
)
def test_experts_that_do_not_fit_are_refused(change, message):
    slots = (tuple(range(8)), tuple(range(8, 16)))
    plan = change(with_residents(planned(DENSE + 3 * PAGE, 1, *slots), [weights(HOT)], "m"))
    if message is None:
        check_resident(plan, [weights(HOT)], "m")
        return
    with pytest.raises(MoecError, match=message):
        check_resident(plan, [weights(HOT)], "m")


def test_a_program_without_experts_is_refused():
    with pytest.raises(MoecError, match="m: has no experts or tables that could be streamed; leave resident out"):
        check_resident(planned(DENSE, 1), [weights()], "m")


def test_on_later_tokens_they_are_chosen_more_often_than_experts_by_number():
    trace = zipf_trace(4000, EXPERTS, 2, seed=3, drift=0.1)
    counts = np.bincount(trace[:2000].ravel(), minlength=EXPERTS) / 2000
    slots = (tuple(range(0, 16, 2)), tuple(range(1, 16, 2)))
    hits = []
    for shares in (counts, ()):
        plan = with_residents(planned(DENSE + 3 * PAGE, 1, *slots), [weights(np.array(shares))], "m")
        hits.append(np.isin(trace[2000:], np.concatenate(plan.layers[0].resident)).mean())
    assert hits[0] > 1.3 * hits[1]
