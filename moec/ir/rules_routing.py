"""Rules of routing: which scores, selections, groups, capacities and norms go together (:mod:`moec.ir.rules`)."""

from __future__ import annotations

import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import RouteSpec
from moec.ir.rule import Rules, disagreement, first_of, known_size

ROUTING = Rules()


@ROUTING.add("k-present", "Route", "MoE")
def _k_present(node: ir.Node) -> str | None:
    return None if "k" in node.attributes else "lacks attribute k, the number of experts per token"


def _routed(node: ir.Node) -> tuple[RouteSpec, int | None]:
    """The spec, and how many experts the router knows."""
    return dialect.spec_of(node, RouteSpec), known_size(dialect.inputs_of(node)["logits"], 1)


@ROUTING.add("k-range", "Route", "MoE")
def _k_range(node: ir.Node) -> str | None:
    spec, E = _routed(node)
    if spec.k < 1:
        return f"k is {spec.k}; at least one expert must be selected"
    return f"k is {spec.k}, but there are only {E} experts" if E is not None and spec.k > E else None


@ROUTING.add("selection-of-all", "Route", "MoE")
def _selection_of_all(node: ir.Node) -> str | None:
    spec, E = _routed(node)
    if spec.selection == "topk" or E is None or spec.k == E:
        return None
    return f"selection={spec.selection!r} has one slot per expert, but k is {spec.k} and there are {E} experts"


@ROUTING.add("capacity", "Route", "MoE")
def _capacity(node: ir.Node) -> str | None:
    spec, _ = _routed(node)
    if spec.capacity < 0:
        return f"capacity is {spec.capacity}; it cannot be negative"
    if spec.selection == "expert_choice" and spec.capacity == 0:
        return "selection='expert_choice' needs a capacity, the number of tokens an expert takes"
    return None


@ROUTING.add("groups", "Route", "MoE")
def _groups(node: ir.Node) -> str | None:
    spec, E = _routed(node)
    if spec.groups < 1 or not 1 <= spec.groups_kept <= spec.groups:
        return f"keeps {spec.groups_kept} of {spec.groups} groups"
    if E is None or spec.groups == 1:
        return None
    if E % spec.groups:
        return f"{E} experts do not divide into {spec.groups} equal groups"
    candidates = E // spec.groups * spec.groups_kept
    return f"k is {spec.k}, but the kept groups hold only {candidates} experts" if spec.k > candidates else None


@ROUTING.add("relative-threshold", "Route", "MoE")
def _relative_threshold(node: ir.Node) -> str | None:
    share = _routed(node)[0].relative_threshold
    return None if 0 <= share <= 1 else f"relative_threshold is {share:g}; expected a share of the largest, 0 to 1"


@ROUTING.add("normalization", "Route", "MoE")
def _normalization(node: ir.Node) -> str | None:
    spec, _ = _routed(node)
    if spec.normalize_floor < 0:
        return f"normalize_floor is {spec.normalize_floor}; it cannot be negative"
    if spec.normalize_floor > 0 and not spec.normalize:
        return "normalize_floor belongs to normalize; nothing is divided without it"
    return None


@ROUTING.add("sparsemixer", "Route", "MoE")
def _sparse_mixer(node: ir.Node) -> str | None:
    spec, _ = _routed(node)
    if spec.score != "sparsemixer":
        return None
    return first_of(
        f"the sparse mixer selects at most 2 experts, not {spec.k}" if spec.k > 2 else None,
        "the sparse mixer selects by itself: selection must be topk" if spec.selection != "topk" else None,
        "the sparse mixer knows no groups" if spec.groups > 1 else None,
        "the sparse mixer takes no correction_bias" if dialect.inputs_of(node)["correction_bias"] is not None else None,
    )


@ROUTING.add("correction-bias-size", "Route", "MoE")
def _correction_bias_size(node: ir.Node) -> str | None:
    bias = dialect.inputs_of(node)["correction_bias"]
    return disagreement("number of experts", {"logits": _routed(node)[1], "correction_bias": known_size(bias, 0)})


@ROUTING.add("tolerance", "Route")
def _tolerance(node: ir.Node) -> str | None:
    spec, E = _routed(node)
    tolerance = dialect.inputs_of(node)["tolerance"]
    if tolerance is None:
        return None
    if spec.selection != "topk" or spec.score == "sparsemixer":
        return f"an expert of selection={spec.selection!r} and score={spec.score!r} cannot take another one's place"
    return disagreement("number of experts", {"logits": E, "tolerance": known_size(tolerance, 0)})
