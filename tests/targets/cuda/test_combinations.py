"""Whole MoE nodes, emulated, against the interpreter of the same graph: routers, expert variants and formats together.

Every variant is combined with every format, but each router with only one of these combinations, because a router's
kernels do not depend on the experts.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.passes.cast_weights import CastWeights
from moec.passes.framework.base import Report
from moec.passes.quantize_experts import QuantizeExperts

from ..node_models import node_model

D, F, LONG = 64, 48, 300
ROUTERS = {
    "softmax": RouteSpec(2),
    "softmax, normalised": RouteSpec(4, normalize=True, normalize_epsilon=1e-6),
    "of the chosen": RouteSpec(8, "softmax_topk"),
    "sigmoid": RouteSpec(1, "sigmoid", scale=2.5),
    "groups": RouteSpec(4, "sigmoid", normalize=True, groups=4, groups_kept=2, group_score="sum_top2"),
    "sqrt softplus": RouteSpec(3, "sqrt_softplus", normalize=True),
    "sparse mixer": RouteSpec(2, "sparsemixer", jitter=0.01),
    "threshold": RouteSpec(4, threshold=0.2),
    "relative threshold": RouteSpec(4, relative_threshold=0.7, normalize=True),
    "capacity": RouteSpec(2, capacity=9),
    "all": RouteSpec(8, selection="all"),
    "expert choice": RouteSpec(8, selection="expert_choice", capacity=5),
}
VARIANTS = {
    "swiglu": ExpertsSpec(),
    "geglu, transposed": ExpertsSpec("gelu_tanh", "interleaved", up_transposed=True, down_transposed=True),
    "clamped": ExpertsSpec("silu", "up_gate", alpha=1.702, limit=1.0, up_offset=1.0),
    "relu2": ExpertsSpec("relu2", "none"),
    "weight on input": ExpertsSpec("silu", "gate_up", weight_on_input=True),
    "sizes": ExpertsSpec("gelu", "none", hidden_sizes=(48, 1, 17, 32, 8, 40, 3, 9)),
}
FORMATS = {
    "float32": (),
    "bfloat16": (CastWeights("bf16", minimum=1),),
    "float16": (CastWeights("fp16", minimum=1),),
    "int8": (QuantizeExperts("int8", group=32),),
    "int4": (QuantizeExperts("int4", group=32),),
    "mxfp4": (QuantizeExperts("mxfp4"),),
    "int8 and int4": (QuantizeExperts("int8", group=32, experts="0-2"), QuantizeExperts("int4", group=32)),
}
QUICK = {("groups", "clamped", "int8 and int4")}
"""The combination in every run: a router, experts and formats with the most rules. Experts in float32, and experts that
choose tokens, are in every run of test_moe.py."""


def combinations() -> list:
    routers, variants, formats = list(ROUTERS), list(VARIANTS), list(FORMATS)
    met = [(name, variants[i % len(variants)], formats[i % len(formats)]) for i, name in enumerate(routers)]
    met += [(routers[i % 3], *pair) for i, pair in enumerate(itertools.product(variants, formats))]
    names = dict.fromkeys([*sorted(QUICK), *met])
    return [pytest.param(*name, marks=() if name in QUICK else pytest.mark.nightly) for name in names]


def node(router: RouteSpec, spec: ExpertsSpec, experts: int):
    random = np.random.default_rng(5)

    def stack(rows: int, columns: int, transposed: bool) -> np.ndarray:
        shape = (experts, columns, rows) if transposed else (experts, rows, columns)
        return (random.standard_normal(shape) / np.sqrt(columns)).astype(np.float32)

    up = stack(2 * F if spec.gated else F, D, spec.up_transposed)
    weights = {"up": up, "down": stack(D, F, spec.down_transposed)}
    feeds = {"x": np.zeros((1, D), np.float32), "logits": np.zeros((1, experts), np.float32)}
    return node_model("MoE", feeds, weights, router, spec)


def cases(experts: int):
    """Inputs of routing: even and skewed selections, and ties."""
    for T in (0, 1, 7, 64, LONG):
        random = np.random.default_rng(T)
        logits = random.standard_normal((T, experts)).astype(np.float32)
        skewed = logits + np.where(np.arange(experts) < 2, 4, 0).astype(np.float32)
        for scores in (logits, skewed, np.round(logits)):
            yield {"x": random.standard_normal((T, D)).astype(np.float32), "logits": scores}


def agree(run, model, experts: int) -> None:
    # Kernels round hidden units to the type of the tokens, and sum in float32.
    for feeds in cases(experts):
        (expected,) = interpreter.run(model, feeds, dtype=np.float64).values()
        actual = run(feeds)["y"].astype(np.float64)
        largest = max(np.abs(expected).max(initial=0), 1e-3)
        assert np.abs(actual - expected).max(initial=0) <= 2e-2 * largest, f"{len(feeds['x'])} tokens"


@pytest.mark.parametrize("router, variant, form", combinations())
def test_combinations(emulated, router, variant, form):
    model = node(ROUTERS[router], VARIANTS[variant], 8)
    for change in FORMATS[form]:
        change.apply(model, Report())
    agree(emulated(model), model, 8)


@pytest.mark.nightly
@pytest.mark.parametrize("router", ["of the chosen", "groups", "softmax"])
def test_many_experts(emulated, router):
    model = node(dataclasses.replace(ROUTERS[router]), ExpertsSpec(), 256)
    agree(emulated(model), model, 256)
