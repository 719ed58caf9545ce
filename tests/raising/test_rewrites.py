"""MoE layers after rewrites: every rewrite alone, and chains. To repeat: ``python -m tests.raising``."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ..instruments.outcomes import Case as CompiledCase
from ..instruments.outcomes import compare
from ..products import sampled
from .blocks import FORMULATIONS, ROUTERS, Layer, draw_layer, feeds_for, model_of
from .cases import Case, alone, draw_case, is_gap, rewritten, smallest, verdict_of
from .edit import with_types
from .judge import outputs_of
from .registry import REWRITES, ROUNDS
from .rewrites.whole import LAST, OTHER_TYPES

GAPS = frozenset({OTHER_TYPES})
"""Rewrites after which some layers are not raised."""
TYPICAL = (
    *(Layer(formulation=formulation) for formulation in FORMULATIONS),
    *(
        Layer("dense unrolled", router, "gelu", "none", bias=True, k=1 if router == "switch" else 2)
        for router in ROUTERS
    ),
    Layer("loop", "softmax", "gelu_tanh", "separate", bias=True, shared="last", sequences=True),
    Layer("dense", "softmax of chosen", "relu", "separate", bias=True, sequences=True),
    Layer("loop of additions", bias=True),
    Layer("slots unrolled", "switch", "silu", "merged", k=1),
)


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_finds_its_place_and_changes_nothing_to_onnxruntime(name):
    """On the first typical layer where it finds something to do, twice, so that names do not clash."""
    for layer in TYPICAL:
        model = model_of(layer)
        once = REWRITES[name](with_types(model), np.random.default_rng(1))
        if once is not None:
            break
    else:
        pytest.fail("it finds nothing to do on any layer")
    again = None if name == LAST else REWRITES[name](with_types(once), np.random.default_rng(2))
    assert_same_outputs(again or once, model, layer, 2e-2 if name in ROUNDS else 2e-5)


def assert_same_outputs(model: ir.Model, original: ir.Model, layer: Layer, tolerance: float) -> None:
    expected = outputs_of(ir.to_proto(original), feeds_for(layer))
    result = outputs_of(ir.to_proto(model), feeds_for(layer))
    for (right,), (array,) in zip(expected, result, strict=True):
        np.testing.assert_allclose(array, right, atol=tolerance)


def test_what_finds_nothing_leaves_a_model_alone():
    layer = Layer("dense", "softmax", "relu", "none")
    model = model_of(layer)
    assert REWRITES["split as slices"](model, np.random.default_rng(0)) is None
    assert ir.to_proto(model) == ir.to_proto(model_of(layer))


@pytest.mark.parametrize("name", ["nodes reordered", "subgraph into a function"])
def test_what_branches_read_stays_in_front_of_them(name):
    layer = Layer()
    branched = REWRITES["no op if"](model_of(layer), np.random.default_rng(0))
    cases = (REWRITES[name](with_types(branched), np.random.default_rng(seed)) for seed in range(20))
    for model in filter(None, cases):
        onnx.checker.check_model(ir.to_proto(model))
        assert_same_outputs(model, branched, layer, 2e-5)


@pytest.mark.parametrize(("name", "seed"), sampled([*REWRITES], range(3), 18))
def test_layers_are_raised_after_one_rewrite(name, seed):
    """All layers are raised except for known gaps, in which nothing is wrong and nothing crashes either."""
    for case, verdict in alone(name, 1, seed):
        allowed = ("raised", "refused", "silent") if name in GAPS else ("raised",)
        assert verdict.status in allowed, f"{verdict.status}: {case}: {verdict.detail}"


def test_groups_that_rounds_of_argmax_keep_are_found():
    """Such a router has no constant for the number of groups."""
    case = Case(Layer(router="groups", E=6), (("top k by rounds of argmax", 0), ("division by reciprocal", 0)))
    assert verdict_of(case).status == "raised"


def test_layers_as_they_are_are_raised():
    for seed in range(6):
        layer = draw_layer(np.random.default_rng(seed))
        assert not is_gap(layer), str(layer)


def raised_of(seeds: range) -> int:
    """Number of chains that are raised; fails if a chain is neither raised nor refused with a reason."""
    raised = 0
    for case in map(draw_case, seeds):
        verdict = verdict_of(case)
        if verdict.status not in ("raised", "refused"):
            pytest.fail(f"{verdict.status}: {smallest(case, verdict)}: {verdict.detail}")
        raised += verdict.status == "raised"
    return raised


def test_chains_of_rewrites_are_never_raised_wrongly():
    raised_of(range(3))


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(1000, 3000, 100))
def test_many_chains_of_rewrites_are_never_raised_wrongly(first):
    assert raised_of(range(first, first + 100)) >= 96  # 99 of 100 are, on average


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5000, 5060))
def test_compiled_chains_of_rewrites_compute_what_onnxruntime_does(seed):
    case = draw_case(seed)
    if any(name in ROUNDS for name, _ in case.steps):
        pytest.skip("the chain rounds to float16")
    model = rewritten(case)
    feeds = feeds_for(case.layer)
    outcome = compare(CompiledCase(model, feeds, 1e-4), outputs_of(model, feeds))
    assert outcome.status in ("pass", "refused"), f"{case}: {outcome.detail}"
