"""Layers after chains of rewrites, from a seed: the verdict on each, and the rewrites that a failure needs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from .blocks import Layer, draw_layer, feeds_for, model_of
from .edit import Array, with_types
from .judge import Verdict, judge, outputs_of
from .registry import REWRITES, ROUNDS
from .rewrites.whole import LAST, OTHER_TYPES

LEAST_STEPS, MOST_STEPS = 30, 40
Step = tuple[str, int]
"""A rewrite's name, and the seed of where it is done."""


@dataclasses.dataclass(frozen=True)
class Case:
    layer: Layer
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        chain = " -> ".join(f"{name} ({seed})" for name, seed in self.steps)
        return f"[{self.layer}] {chain or 'as it is'}"


def draw_case(seed: int) -> Case:
    """A layer and 30 to 40 rewrites, each of which finds something to do; where that is possible, all is in float16
    after one in eight."""
    random = np.random.default_rng(seed)
    layer, names = draw_layer(random), [name for name in REWRITES if name not in (LAST, OTHER_TYPES)]
    length = int(random.integers(LEAST_STEPS, MOST_STEPS + 1))
    case = Case(layer)
    while len(case.steps) < length:
        step = (names[random.integers(len(names))], int(random.integers(1000)))
        if _applied(case, step) is not None:
            case = _followed(case, step)
    last = (LAST, 0)
    return _followed(case, last) if random.random() < 1 / 8 and _applied(case, last) is not None else case


def _followed(case: Case, step: Step) -> Case:
    return dataclasses.replace(case, steps=(*case.steps, step))


def rewritten(case: Case) -> onnx.ModelProto:
    """The layer after its steps. Steps that find nothing do nothing."""
    return ir.to_proto(_model(case))


def _model(case: Case) -> ir.Model:
    if not case.steps:
        return model_of(case.layer)
    before = dataclasses.replace(case, steps=case.steps[:-1])
    return _applied(before, case.steps[-1]) or _model(before)


@functools.lru_cache(maxsize=64)
def _applied(case: Case, step: Step) -> ir.Model | None:
    """The model after a step; None if the step finds nothing. Cached, because many drawn chains begin alike and none
    changes a model."""
    name, seed = step
    return REWRITES[name](with_types(_model(case)), np.random.default_rng(seed))


@functools.lru_cache(maxsize=64)
def _expected(layer: Layer) -> list[list[Array]]:
    return outputs_of(ir.to_proto(model_of(layer)), feeds_for(layer))


def verdict_of(case: Case) -> Verdict:
    rounds = any(name in ROUNDS for name, _ in case.steps)
    return judge(rewritten(case), feeds_for(case.layer), _expected(case.layer), 1, rounds)


def alone(name: str, count: int, seed: int = 0) -> Iterator[tuple[Case, Verdict]]:
    """A rewrite alone, on as many layers that are raised without it; fewer where it finds nothing to do on most."""
    result = 0
    for number in range(40 * count):
        layer = draw_layer(np.random.default_rng([seed, number]))
        case = Case(layer, ((name, number),))
        if result == count:
            return
        if _applied(Case(layer), case.steps[0]) is None or is_gap(layer):
            continue
        result += 1
        yield case, verdict_of(case)


@functools.lru_cache(maxsize=4096)
def is_gap(layer: Layer) -> bool:
    """Whether a layer is not raised even as it is."""
    return verdict_of(Case(layer)).status != "raised"


def smallest(case: Case, verdict: Verdict) -> Case:
    """The case with the fewest steps that ends with the same verdict."""
    position = 0
    while position < len(case.steps):
        fewer = dataclasses.replace(case, steps=case.steps[:position] + case.steps[position + 1 :])
        if verdict_of(fewer).status == verdict.status:
            case = fewer
        else:
            position += 1
    return case
