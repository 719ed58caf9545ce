"""The moec dialect: the operators of a Mixture-of-Experts layer, as nodes of domain ``moec`` in an ONNX IR graph.

Sizes: T tokens, d hidden size, E routed experts, k experts per token, f intermediate size.

=================  ==========================================================================  ====================
operator           inputs                                                                      outputs
=================  ==========================================================================  ====================
``Route``          logits[T,E], correction_bias?[E], tolerance?[E]                             weights[T,k],
                                                                                               experts[T,k] (int32)
``Experts``        x[T,d], weights[T,k], experts[T,k], up, down, gate?, up_bias?, down_bias?,   y[T,d]
                   gate_bias?
``Dispatch``       experts[T,k]                                                                offsets[E+1],
                                                                                               positions[T,k],
                                                                                               tokens[T*k],
                                                                                               owners[T*k] (all int32)
``GroupedMatMul``  x[R,K], weights[E,K,N], offsets[E+1], bias?[E,N]                            y[R,N]
``Combine``        rows[R,N], weights[T,k], positions[T,k]                                     y[T,N]
``MoE``            x[T,d], logits[T,E], correction_bias?, up, down, gate?, up_bias?,           y[T,d]
                   down_bias?, gate_bias?
``Linear``         x[...,K], weight[N,K], bias?[N]                                             y[...,N]
``Expect``         x[T,d], experts[T,k], weights[E,...]                                        y[T,d]
``Absent``         logits[T,E], weights[E,...]                                                 tolerance[E] (float32)
``RoundRows``      x[...,N]                                                                    y[...,N]
``SendRows``       x[T,d], experts[T,k], weights?[T,k]                                         sent[1] (int32)
``ReceiveRows``    sent[1], x[T,d], experts[T,k], weights?[T,k]                                rows[P,d], owners[P,1]
                                                                                               (int32), weights[P,1]
``ReturnRows``     results[P,N], experts[T,k]                                                  rows[T*k,N],
                                                                                               positions[T,k] (int32)
=================  ==========================================================================  ====================

An expert id of -1 means "not dispatched": the pair contributes nothing (capacity overflow, a threshold not reached).
All meaning is in the attributes, which are the fields of :class:`RouteSpec` (``Route``), :class:`ExpertsSpec`
(``Experts``), :class:`DispatchSpec` (``Dispatch``), :class:`ProductSpec` (``GroupedMatMul``), :class:`LinearSpec`
(``Linear``) and :class:`RanksSpec` (``SendRows``, ``ReceiveRows``, ``ReturnRows``). A ``MoE`` node has those of
``Route`` and ``Experts``, all others have none. The reference semantics are in :mod:`moec.ir.semantics`,
:mod:`moec.ir.semantics_dispatch` and :mod:`moec.ir.products`. The storage format of a weight is not an attribute: the
standard nodes before the operand define it (:mod:`moec.ir.weights.stored`).

``Expect`` returns x. It announces that these experts, of the layer whose last weights are ``weights``, will probably be
selected, so that a target that streams experts reads them ahead. ``Absent`` reports, at the time when the router has
computed ``logits``, the experts that are not in memory, of the layer whose last weights are ``weights``. Its
``tolerance`` is 0 for an expert in memory; for an absent one it is the share of the weight that may be lost if an
expert in memory replaces it. It is 0 for all unless the caller of the model allows a loss, and in the reference
interpreter.

``RoundRows`` returns x with every row of the last axis rounded to integers from -127 to 127 times its *scale*. The
scale is a bfloat16, 1/127 of the row's largest magnitude and at least 2^-126, so that the error is at most 1/253 of
that magnitude. The 8 bits of a scale and the 7 of 127 fit into a float32, so that rounding a row again changes nothing.
A row with an infinity or a NaN becomes NaN.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar, get_args, get_origin

import onnx_ir as ir

from moec.common.field_types import field_types

DOMAIN = "moec"
FORMULATION_KEY = "moec.formulation"
"""Key of a node's metadata: the formulation of the block that it was raised from."""
BLOCK_KEY = "moec.block"
"""Key of a node's metadata: the name of its block in remarks and evidence."""
ORIGIN_KEY = "moec.origin"
"""Key of a node's metadata: the origins of its experts (:mod:`moec.ir.origins`)."""
REFUSAL_KEY = "moec.refusal"
"""Key of a node's metadata: the reason why an operator of onnxruntime was not rewritten in ONNX and moec operators."""

ScoreFunction = Literal[
    "softmax", "sigmoid", "softmax_topk", "sigmoid_topk", "sqrt_softplus", "softplus", "relu", "identity", "sparsemixer"
]
Selection = Literal["topk", "all", "expert_choice"]
GroupScore = Literal["max", "sum_top2"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "identity"]
GateLayout = Literal["none", "separate", "gate_up", "up_gate", "interleaved"]
Arithmetic = Literal["float32", "tf32", "bfloat16", "int8", "fp8", "mxfp8", "mxfp4", "nvfp4"]
GROUPED_ARITHMETICS: tuple[Arithmetic, ...] = ("int8", "fp8", "mxfp8", "mxfp4", "nvfp4")
"""The arithmetics that round rows in groups, which have a scale each."""


@dataclasses.dataclass(frozen=True)
class RouteSpec:
    """The rule that selects k weighted experts per token by the logits.

    1. ``s = score(logits)``: ``softmax`` over all experts; ``sigmoid``, ``softplus``, ``sqrt_softplus``, ``relu``,
       ``identity`` elementwise. ``softmax_topk`` selects by the logits and takes the softmax over the selected logits
       only, ``sigmoid_topk`` their sigmoid (selecting by the sigmoids would differ: those of large logits are equal).
       ``sparsemixer`` (k <= 2, PhiMoE, arXiv 2409.12136) takes one masked argmax per round; the weight is the masked
       softmax of that round. The mask hides logits more than ``2 * jitter`` below the maximum, relative to the larger
       of their magnitude and the maximum.
    2. Selection score ``c = s + correction_bias`` (DeepSeek-V3): the bias changes the selection, never the weight.
       With ``groups`` > 1 the experts form that many equal groups. A group's score is its ``max`` or the ``sum_top2``
       of ``c``. Only the best ``groups_kept`` groups stay candidates (the others' ``c`` becomes -inf).
    3. ``selection``: ``topk`` takes the k largest ``c``, ties to the lower id, ordered from large to small;
       ``all`` takes every expert in id order (k = E: dense mixtures); ``expert_choice`` lets every expert take the
       ``capacity`` tokens it scores highest (k = E, id -1 where not taken). With a ``tolerance`` (``topk`` alone) a
       selected expert e other than the first, with ``tolerance[e] > 0``, may be replaced. The replacement is the expert
       with the largest ``c`` among those that are not selected and have tolerance 0. Its weight has to be at least
       ``1 - tolerance[e]`` times that of e. Slots are replaced from the last one on.
    4. Weights are ``s`` at the selected ids. Pairs with weights at or below ``threshold`` (if not None) are dropped (id
       -1, weight 0). Then pairs are dropped whose magnitude is below ``relative_threshold`` (0 to 1) times the largest
       magnitude of the token; the largest itself and its equals always stay. A NaN is below nothing and is not a
       largest.
    5. ``normalize``: weights are divided by (their sum over the k selected + ``normalize_epsilon``), but at least by
       ``normalize_floor`` (if > 0).
    6. Weights are multiplied by ``scale``.
    7. ``capacity`` > 0 with ``topk``: tokens in order, first choices of all tokens before second choices; a pair beyond
       its expert's capacity is dropped (id -1, weight 0). Capacity makes a token depend on all others.
    """

    k: int
    score: ScoreFunction = "softmax"
    selection: Selection = "topk"
    normalize: bool = False
    normalize_epsilon: float = 0.0
    normalize_floor: float = 0.0
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    group_score: GroupScore = "max"
    jitter: float = 0.0
    threshold: float | None = None
    relative_threshold: float = 0.0
    capacity: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductSpec:
    """The arithmetic of products of rows with weights: the rounding of the rows before they are multiplied.

    ``float32``: not rounded; the product is that of the graph (in float16 or float64 if x is). ``bfloat16``: every
    element to bfloat16 (half to even), sums in float32. ``tf32``: every element to a float32 with 10 bits of fraction
    (half away from zero), sums in float32. ``int8``: every group of ``activation_group`` consecutive elements of a row
    (0: the whole row; the last group may be shorter) becomes ``scale * q``, where in float32
    ``scale = max(abs(group)) / 127`` and ``q = round half to even(group / scale)``. A group whose scale is 0 becomes
    zeros. A group with an infinity or a NaN makes the whole row of the result NaN. Integer products are summed exactly
    within a group, groups are summed in float32. ``fp8``: the same with ``scale = max(abs(group)) / 448`` and q the
    nearest float8 e4m3 (half to even; OCP, "8-bit Floating Point Specification") of ``group / scale``, at most 448;
    groups of 128 are those of DeepSeek-V3 (arXiv 2412.19437, 3.3.2).

    ``mxfp8`` and ``mxfp4``: the same as ``fp8`` with scales that are powers of two: the smallest that is at least
    ``max(abs(group)) / 448`` for e4m3, or ``/ 6`` for float4 e2m1, and at least 2**-127 (OCP, "Microscaling Formats",
    whose groups have 32 elements; rounded up, nothing is cut off: arXiv 2506.08027). Next to the largest float32,
    numbers may become infinite. ``nvfp4``: e2m1 with
    ``scale = code * factor``, where ``factor = max(abs(row)) / (448 * 6)`` and code is the nearest e4m3, at most 448,
    of ``max(abs(group)) / 6 / factor``. NVIDIA's format has groups of 16 and a factor for a whole tensor; here each row
    has one, so that its result depends on no other row. A row with an infinity or a NaN is NaN.
    """

    arithmetic: Arithmetic = "float32"
    activation_group: int = 0


@dataclasses.dataclass(frozen=True)
class LinearSpec(ProductSpec):
    """``y = act(x @ weight.T + bias)`` over the last axis of x; with ``transposed`` the weight is [K,N]."""

    activation: Activation = "identity"
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class ExpertsSpec(ProductSpec):
    """The function of one expert on one row, and the place where the routing weight enters.

    Not gated (``gate_layout`` = none): ``h = act(x @ up + up_bias)``. Gated: ``g``, ``u`` are the gate and up
    projections, ``h = act(g) * (u + up_offset)``. Then ``y = h @ down + down_bias``.

    ``gate_layout``: ``separate`` takes gate from its own input; otherwise ``up`` holds both along its 2f axis:
    ``gate_up`` (first half is the gate), ``up_gate`` (second half), ``interleaved`` (even columns are the gate);
    ``up_bias`` then has 2f entries in the same layout.

    Weights are [E, out, in]; with ``up_transposed`` (for up and gate) or ``down_transposed`` they are [E, in, out].
    ``alpha``: scale inside silu, ``x * sigmoid(alpha * x)`` (1.702 for the sigmoid approximation of GELU).
    ``limit`` > 0 clamps ``g`` to at most ``limit`` and ``u`` to [-limit, limit] before the activation (GPT-OSS).
    ``weight_on_input``: the expert sees ``w * x`` and its output is summed unweighted (Llama 4).
    ``output_limit`` > 0 clamps every element of ``y`` to [-output_limit, output_limit] (a guard for float16).
    Experts with id >= E and < E + ``identity_experts`` return their input (zero-computation experts, MoE++).
    ``hidden_sizes``: expert e has only its first ``hidden_sizes[e]`` hidden units (elements of ``h``); the stored
    weights of the others are ignored. Empty: every expert has all f.
    All products, in and out of the hidden units, are computed in the arithmetic of :class:`ProductSpec`.
    """

    activation: Activation = "silu"
    gate_layout: GateLayout = "gate_up"
    up_transposed: bool = False
    down_transposed: bool = False
    alpha: float = 1.0
    limit: float = 0.0
    up_offset: float = 0.0
    weight_on_input: bool = False
    output_limit: float = 0.0
    identity_experts: int = 0
    hidden_sizes: tuple[int, ...] = ()

    @property
    def gated(self) -> bool:
        return self.gate_layout != "none"

    @property
    def fused(self) -> bool:
        """Whether ``up`` holds gate and up."""
        return self.gated and self.gate_layout != "separate"

    def gate_and_up(self, both: Any) -> tuple[Any, Any]:
        """The two halves of an array that holds gate and up along its last axis, of ``fused`` experts."""
        if self.gate_layout == "interleaved":
            return both[..., 0::2], both[..., 1::2]
        half = both.shape[-1] // 2
        first, second = both[..., :half], both[..., half:]
        return (first, second) if self.gate_layout == "gate_up" else (second, first)


@dataclasses.dataclass(frozen=True)
class DispatchSpec:
    """Dispatched rows: the pairs (token, slot), sorted by their expert. Experts of any form are graphs over these rows.

    ``Dispatch`` tells which pair each of the R = T * k rows belongs to. Rows are sorted stably by expert: pairs of one
    expert keep the order of tokens, then slots. Pairs that are not dispatched come last, in the same order.

    - ``offsets``: the rows ``offsets[e]`` to ``offsets[e + 1]`` are those of expert e. The rows of pairs that are not
      dispatched begin at ``offsets[E]``.
    - ``positions``: the row of every pair; -1 for a pair that is not dispatched.
    - ``tokens``: the token of every row. ``Gather(x, tokens)`` are the dispatched rows of x [T,d].
    - ``owners``: the expert of every row, E - 1 where there is none. ``Gather(table, owners)`` gives each row its
      expert's entry of a table [E,...]: a bias, a scale, the weights of a norm.

    ``GroupedMatMul`` multiplies the rows of each expert with its matrix; rows from ``offsets[E]`` on become zero.
    ``Combine`` adds up a token's rows, each times its weight, in the order of the slots; a position of -1 adds nothing.
    Operators between the three see each row alone. The contents of rows without an expert do not matter there.
    ``expert_count``: E.
    """

    expert_count: int


@dataclasses.dataclass(frozen=True)
class RanksSpec:
    """Experts on several ranks: a run has R processes, each with tokens of its own and some of the experts.

    ``SendRows`` begins to send the rows of this rank's tokens to the ranks that hold their experts; ``sent`` holds no
    data and orders the two operators, between which other work may stand. ``ReceiveRows`` returns the P rows that this
    rank computes, of all ranks, one for each pair of token and slot, with the expert and the weight of each (1 without
    ``weights``). ``ReturnRows`` returns the results for the pairs of this rank's tokens, in their order; ``positions``
    are the row of each pair, and -1 for a pair that is not dispatched, whose row is 0. Weights and sums stay with the
    rank that has the token, so that results do not depend on the number of ranks and on the placement.

    In the reference interpreter there is one rank: the P rows are those of its own pairs, in their order.

    ``layer``: the number of the layer in the placement (:mod:`moec.placing.placement`).
    """

    layer: int


EXPERT_WEIGHTS = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
INPUTS: dict[str, tuple[str, ...]] = {
    "Route": ("logits", "correction_bias", "tolerance"),
    "Experts": ("x", "weights", "experts", *EXPERT_WEIGHTS),
    "Dispatch": ("experts",),
    "GroupedMatMul": ("x", "weights", "offsets", "bias"),
    "Combine": ("rows", "weights", "positions"),
    "MoE": ("x", "logits", "correction_bias", *EXPERT_WEIGHTS),
    "Linear": ("x", "weight", "bias"),
    "Expect": ("x", "experts", "weights"),
    "Absent": ("logits", "weights"),
    "RoundRows": ("x",),
    "SendRows": ("x", "experts", "weights"),
    "ReceiveRows": ("sent", "x", "experts", "weights"),
    "ReturnRows": ("results", "experts"),
}
OPTIONAL_INPUTS = frozenset({"correction_bias", "tolerance", "gate", "up_bias", "down_bias", "gate_bias", "bias"})
OUTPUTS: dict[str, tuple[str, ...]] = {
    "Route": ("weights", "experts"),
    "Experts": ("y",),
    "Dispatch": ("offsets", "positions", "tokens", "owners"),
    "GroupedMatMul": ("y",),
    "Combine": ("y",),
    "MoE": ("y",),
    "Linear": ("y",),
    "Expect": ("y",),
    "Absent": ("tolerance",),
    "RoundRows": ("y",),
    "SendRows": ("sent",),
    "ReceiveRows": ("rows", "owners", "weights"),
    "ReturnRows": ("rows", "positions"),
}
SPECS: dict[str, tuple[type, ...]] = {
    "Route": (RouteSpec,),
    "Experts": (ExpertsSpec,),
    "Dispatch": (DispatchSpec,),
    "GroupedMatMul": (ProductSpec,),
    "Combine": (),
    "MoE": (RouteSpec, ExpertsSpec),
    "Linear": (LinearSpec,),
    "Expect": (),
    "Absent": (),
    "RoundRows": (),
    "SendRows": (RanksSpec,),
    "ReceiveRows": (RanksSpec,),
    "ReturnRows": (RanksSpec,),
}

AnySpec = RouteSpec | DispatchSpec | ProductSpec | RanksSpec
Spec = TypeVar("Spec", RouteSpec, DispatchSpec, ProductSpec, LinearSpec, ExpertsSpec, RanksSpec)


def attributes_of(*specs: AnySpec) -> dict[str, Any]:
    """The node attributes that say these specs; defaults are left out so that printed IR stays short."""
    attributes: dict[str, Any] = {}
    for spec in specs:
        for field in dataclasses.fields(spec):
            value = getattr(spec, field.name)
            if value != field.default:
                attributes[field.name] = int(value) if isinstance(value, bool) else value
    return attributes


def defaults_of(op_type: str) -> dict[str, Any]:
    """The values of an operator's attributes that a node need not have."""
    fields = (field for kind in SPECS[op_type] for field in dataclasses.fields(kind))
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def spec_of(node: ir.Node, kind: type[Spec]) -> Spec:
    """Read a spec back from a node. Absent attributes take their defaults.

    Raises KeyError when an attribute without a default (``k``, ``expert_count``) is missing. Values are not judged
    here: that is the verifier's work, whose messages name node and rule.
    """
    hints = field_types(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        attribute = node.attributes.get(field.name)
        if attribute is not None:
            values[field.name] = _as_field(attribute.value, hints[field.name])
        elif field.default is dataclasses.MISSING:
            raise KeyError(field.name)
    return kind(**values)


def _as_field(value: Any, hint: Any) -> Any:
    """An attribute's value as the Python type of its field."""
    if get_origin(hint) is tuple:
        return tuple(value)
    return bool(value) if hint is bool else value


def inputs_of(node: ir.Node) -> dict[str, ir.Value | None]:
    """Inputs of a moec node by name; optional inputs that are absent map to None."""
    names = INPUTS[node.op_type]
    values = [*node.inputs, *[None] * (len(names) - len(node.inputs))]
    return dict(zip(names, values, strict=True))


def make_node(op_type: str, inputs: dict[str, ir.Value | None], *specs: AnySpec, name: str | None = None) -> ir.Node:
    """A moec node from named inputs; trailing absent inputs are left out.

    Raises KeyError for an unknown operator and ValueError for an input name the operator does not have.
    """
    names = INPUTS[op_type]
    unknown = set(inputs) - set(names)
    if unknown:
        raise ValueError(f"moec.{op_type} has no input {sorted(unknown)}; its inputs are {list(names)}")
    values = [inputs.get(name) for name in names]
    while values and values[-1] is None:
        values.pop()
    return ir.node(
        op_type, values, attributes=attributes_of(*specs), domain=DOMAIN, num_outputs=len(OUTPUTS[op_type]), name=name
    )


def is_moec(node: ir.Node, op_type: str | None = None) -> bool:
    return node.domain == DOMAIN and (op_type is None or node.op_type == op_type)


def has_experts(node: ir.Node) -> bool:
    """Whether a node is a layer of experts, with its routing (``MoE``) or behind it (``Experts``)."""
    return is_moec(node, "MoE") or is_moec(node, "Experts")


def choices(kind: type, field: str) -> tuple[str, ...]:
    """The allowed values of an enumerated attribute, e.g. ``choices(RouteSpec, "score")``."""
    return get_args(field_types(kind)[field])
