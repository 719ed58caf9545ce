"""The part of a layer after attention: one MLP, or experts with a router."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.gguf.graph.builder import Builder, LayerTensors
from moec.ir.dialect import FORMULATION_KEY, Activation, ExpertsSpec, LinearSpec, RouteSpec, ScoreFunction

_SMALLEST_SUM = 6.103515625e-5
"""Lower bound of the sum by which llama.cpp divides routing weights: the smallest normal float16."""
_GATES: dict[int, ScoreFunction] = {1: "softmax", 2: "sigmoid", 3: "softmax_topk", 4: "sqrt_softplus"}
"""Score functions by ``expert_gating_func`` of metadata."""
_SWIGLU = ExpertsSpec()
Step = Callable[[ir.Value, int], ir.Value]
"""Computation of a layer on a normalised input [B,S,D]; the second argument is the layer."""


def gated(
    build: Builder, x: ir.Value, layer: int, inner: int, end: str = "", activation: Activation = "silu"
) -> ir.Value:
    """Compute ``down(activation(gate(x)) * up(x))`` with the matrices ``ffn_gate``, ``ffn_up`` and ``ffn_down``.
    ``end`` is the suffix of their names. One matrix ``ffn_up`` may hold gate and up (Phi-3)."""
    write, name = build.write, f"blk.{layer}"
    if build.has(f"{name}.ffn_gate{end}.weight"):
        weight = build.matrix(f"{name}.ffn_gate{end}.weight", inner, build.width)
        bias = build.optional_vector(f"{name}.ffn_gate{end}.bias", inner)
        spec = LinearSpec(activation=activation)
        gate = write.moec("Linear", f"{name}.ffn_gate{end}", spec, x=x, weight=weight, bias=bias)[0]
        up = build.linear(x, f"{name}.ffn_up{end}", build.width, inner)
    else:
        both = build.linear(x, f"{name}.ffn_up{end}", build.width, 2 * inner)
        first, up = write.split(both, inner, inner, axis=-1, label=f"{name}.ffn_up{end}")
        gate = _activated(build, first, activation)
    hidden = write.op("Mul", gate, up, label=f"{name}.ffn_hidden{end}")
    return build.linear(hidden, f"{name}.ffn_down{end}", inner, build.width)


def plain(build: Builder, x: ir.Value, layer: int, inner: int, activation: Activation, end: str = "") -> ir.Value:
    """Compute ``down(activation(up(x)))`` with the matrices ``ffn_up`` and ``ffn_down``, whose names end in ``end``."""
    name = f"blk.{layer}.ffn_up{end}"
    weight, bias = build.matrix(f"{name}.weight", inner, build.width), build.optional_vector(f"{name}.bias", inner)
    hidden = build.write.moec("Linear", name, LinearSpec(activation=activation), x=x, weight=weight, bias=bias)[0]
    return build.linear(hidden, f"blk.{layer}.ffn_down{end}", inner, build.width)


def _activated(build: Builder, x: ir.Value, activation: Activation) -> ir.Value:
    if activation != "silu":
        raise UnsupportedError(
            f"{build.metadata.where}: gate and up are one matrix and the activation is {activation}; expected silu"
        )
    return build.write.op("Mul", x, build.write.op("Sigmoid", x))


@dataclasses.dataclass(frozen=True)
class RouterOptions:
    """A router over ``experts`` experts. ``correction``: whether a tensor ``exp_probs_b`` biases the selection:
    ``needed``, ``allowed`` or not (``none``)."""

    experts: int
    spec: RouteSpec
    correction: Literal["none", "allowed", "needed"] = "none"

    @staticmethod
    def of(build: Builder, score: ScoreFunction = "softmax", normalize: bool = True, **options: Any) -> RouterOptions:
        """Router with ``score`` over ``expert_count`` experts, of which it selects ``expert_used_count``. Raises
        UnsupportedError for counts that do not fit."""
        metadata = build.metadata
        experts, used = metadata.whole("expert_count"), metadata.whole("expert_used_count")
        if used > experts:
            raise UnsupportedError(
                f"{metadata.where}: a token uses {used} of {experts} experts; expected 1 to {experts}"
            )
        groups = metadata.whole("expert_group_count", 0, least=0)
        kept = metadata.whole("expert_group_used_count", 0, least=0)
        limits: dict[str, Any] = {}
        if groups > 1:
            if experts % groups or not 0 < kept < groups or used > kept * (experts // groups) or experts == groups:
                raise UnsupportedError(
                    f"{metadata.where}: {kept} of {groups} groups are kept, of {experts} experts, of which {used} are "
                    "used; expected groups of equal size, fewer kept than there are, with room for the experts used"
                )
            limits = {"groups": groups, "groups_kept": kept, "group_score": "sum_top2"}
        floor: dict[str, Any] = {"normalize": True, "normalize_floor": _SMALLEST_SUM} if normalize else {}
        return RouterOptions(experts, RouteSpec(used, score, **floor, **limits), **options)

    def scaled(self, scale: float) -> RouterOptions:
        """Copy whose weights are multiplied by ``scale``; 0 stands for 1."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, scale=scale or 1.0))


def score_of(build: Builder, default: int | None = None) -> ScoreFunction:
    """Read the score function from metadata. Raises UnsupportedError for one that moec does not know."""
    number = build.metadata.whole("expert_gating_func", default, least=0)
    number = number or default or 0
    if number not in _GATES:
        raise UnsupportedError(f"{build.metadata.where}: expert_gating_func is {number}; expected {list(_GATES)}")
    return _GATES[number]


def experts(
    build: Builder,
    x: ir.Value,
    layer: int,
    router: RouterOptions,
    inner: int,
    spec: ExpertsSpec = _SWIGLU,
    inputs: ir.Value | None = None,
    width: int = 0,
) -> ir.Value:
    """Compute the weighted sum [B,S,D] of the experts that a layer's router selects for each token of x. ``inputs``:
    inputs [B,S,width] of the experts where these are not those of the router; the sum then has their shape. Where the
    file has a factor for each expert, it multiplies the routing weights."""
    write, name, count = build.write, f"blk.{layer}", router.experts
    rows = write.reshape(x, -1, build.width, label=f"{name}.tokens")
    logits = build.linear(rows, f"{name}.ffn_gate_inp", build.width, count)
    width = width or build.width
    if inputs is not None:
        x, rows = inputs, write.reshape(inputs, -1, width, label=f"{name}.inputs")
    weights, ids = write.moec(
        "Route", f"{name}.route", router.spec, logits=logits, correction_bias=_correction(build, name, router)
    )
    factors = f"{name}.ffn_down_exps.scale"
    if build.has(factors) and build.file.tensors[f"{name}.ffn_down_exps.weight"].kind != "NVFP4":
        own = write.op("Gather", build.vector(factors, count), ids, axis=0)
        weights = write.op("Mul", weights, own, label=f"{name}.route.scaled")
    shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    if build.has(f"{name}.ffn_gate_up_exps.weight"):
        layout, parts = "gate_up", {"up": "ffn_gate_up_exps", "down": "ffn_down_exps"}
        shapes["up"] = (2 * inner, width)
    else:
        layout = "separate" if spec.gated else "none"
        parts = {part: f"ffn_{part}_exps" for part in ("up", "down", *(["gate"] if spec.gated else []))}
    operands: dict[str, ir.Value | None] = {
        part: build.matrix(f"{name}.{label}.weight", count, *shapes[part]) for part, label in parts.items()
    }
    for part, label in parts.items():
        operands[f"{part}_bias"] = build.optional_vector(f"{name}.{label}.bias", count, shapes[part][0])
    spec = dataclasses.replace(spec, gate_layout=layout)
    y = write.moec("Experts", f"{name}.experts", spec, x=rows, weights=weights, experts=ids, **operands)[0]
    node = y.producer()
    assert node is not None
    node.metadata_props[FORMULATION_KEY] = "gguf"
    build.expert_layers.append(LayerTensors(node, _names(build, name, parts)))
    return write.op("Reshape", y, write.op("Shape", x), label=f"{name}.experts.tokens")


def _names(build: Builder, name: str, parts: dict[str, str]) -> dict[str, str]:
    """The tensors of a layer that have an entry for each expert (:class:`LayerTensors`)."""
    names = {part: f"{name}.{label}.weight" for part, label in parts.items()}
    names |= {f"{part}_bias": f"{name}.{label}.bias" for part, label in parts.items()}
    names |= {"router": f"{name}.ffn_gate_inp.weight", "router_bias": f"{name}.ffn_gate_inp.bias"}
    names["correction_bias"] = f"{name}.exp_probs_b.bias"
    return {operand: tensor for operand, tensor in names.items() if build.has(tensor)}


def _correction(build: Builder, name: str, router: RouterOptions) -> ir.Value | None:
    label = f"{name}.exp_probs_b.bias"
    if router.correction == "none" or (router.correction == "allowed" and not build.has(label)):
        return None
    return build.vector(label, router.experts)


def with_shared(
    build: Builder, x: ir.Value, routed: ir.Value, layer: int, inner: int, is_gated: bool = False
) -> ir.Value:
    """Add a shared expert of ``inner`` units to the sum of the routed ones, unless ``inner`` is 0. ``is_gated``: its
    result is multiplied by the sigmoid of a product with x (Qwen2)."""
    if not inner:
        return routed
    write, name = build.write, f"blk.{layer}"
    shared = gated(build, x, layer, inner, "_shexp")
    if is_gated:
        gate = build.vector(f"{name}.ffn_gate_inp_shexp.weight", build.width)
        column = write.op("Unsqueeze", gate, write.numbers(1))
        weight = write.op("Sigmoid", write.op("MatMul", x, column), label=f"{name}.ffn_gate_inp_shexp")
        shared = write.op("Mul", shared, weight)
    return write.op("Add", routed, shared, label=f"{name}.with_shared")
