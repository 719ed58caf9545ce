"""Experts as a shared part and, for each, two thin matrices per projection."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import DispatchSpec, LinearSpec
from moec.ir.expert_weights import ExpertWeights, Part, readable_weights
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import remove_unused, replace_node, value_names
from moec.passes.graph.expert_body import activated, clamped
from moec.passes.graph.unfused import with_route
from moec.passes.graph.writer import Writer
from moec.passes.weights.calibration import profile_reading
from moec.passes.weights.low_rank import Factors, factors, with_ridge
from moec.profiles import Profile
from moec.profiles.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class LowRankExperts:
    """Spells the experts of ``moec.Experts`` and ``moec.MoE`` as a graph over dispatched rows, in which a projection W
    of an expert is ``base + V U``, V [in,rank] and U [rank,out].

    1. ``base=shared``: the mean of W over the experts of the layer, weighted by how many tokens came to each on the
       data of ``profile``, a file that ``moec profile`` makes. Of gate and up it is one dense product per token. With
       ``base=none`` there is none.
    2. V U is the best of its rank for W - base on the inputs that the expert saw (:mod:`moec.passes.weights.low_rank`;
       D2-MoE, arXiv 2502.17298): their second moment says how much an error counts, and 1% of its mean is added for
       directions that they do not have. For an expert that saw no token all directions count the same.
    3. Biases and the activation stay. With as high a rank as the smaller side of W, results stay, up to rounding.
    4. Left alone are layers whose weights or products are rounded already (this pass comes before quantize-experts,
       which then rounds U and V), whose weights are computed when the model runs, whose experts differ in size or
       return their input, and whose routing weights multiply the input.
    5. The error of the products on the profile's inputs, ridge included, goes into the report: what is dropped, as a
       share of what the projections make, over all experts and projections.

    ::

        (float[T,8] x, float[T,3] logits) => (float[T,8] y) <float[3,6,8] up, float[3,8,6] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, , up, down)
        }
            low-rank-experts{rank=2,profile=PROFILE} ->
        (float[T,8] x, float[T,3] logits) => (float[T,8] y) <float[3,8,2] "y.up_v", float[3,2,6] "y.up_u",
           float[8,6] "y.up_base", float[3,6,2] "y.down_v", float[3,2,8] "y.down_u", float[6,8] "y.down_base"> {
           y_weights, y_experts = moec.Route <k = 2> (logits)
           "y.offsets", "y.positions", "y.tokens", "y.owners" = moec.Dispatch <expert_count = 3> (y_experts)
           "y.rows" = Gather <axis = 0> (x, "y.tokens")
           "y.up_narrow" = moec.GroupedMatMul ("y.rows", "y.up_v", "y.offsets")
           "y.up_own" = moec.GroupedMatMul ("y.up_narrow", "y.up_u", "y.offsets")
           "y.up_of_base" = moec.Linear <transposed = 1> (x, "y.up_base")
           "y.up_shared" = Gather <axis = 0> ("y.up_of_base", "y.tokens")
           "y.up" = Add ("y.up_shared", "y.up_own")
           "y.Relu" = Relu ("y.up")
           "y.down_narrow" = moec.GroupedMatMul ("y.Relu", "y.down_v", "y.offsets")
           "y.down_own" = moec.GroupedMatMul ("y.down_narrow", "y.down_u", "y.offsets")
           "y.down_shared" = moec.Linear <transposed = 1> ("y.Relu", "y.down_base")
           "y.down" = Add ("y.down_shared", "y.down_own")
           y = moec.Combine ("y.down", y_weights, "y.positions")
        }
    """

    name: ClassVar[str] = "low-rank-experts"
    exactness: ClassVar[Exactness] = "lossy"

    rank: int
    profile: str
    base: Literal["shared", "none"] = "shared"

    def apply(self, model: ir.Model, report: Report) -> bool:
        if self.rank < 1:
            raise MoecError(f"{self.name}: rank is {self.rank}; expected 1 or more")
        nodes = [node for node in model.graph if dialect.has_experts(node)]
        if not nodes:
            report.warn(self.name, "model", "nothing to split: no MoE block was raised before this pass")
        with contextlib.closing(Profile.read(self.profile)) as profile:
            return any([self._split(model.graph, node, profile, report) for node in nodes])

    def _split(self, graph: ir.Graph, node: ir.Node, profile: Profile, report: Report) -> bool:
        where = node_name(node)
        weights = _splittable(node)
        if isinstance(weights, str):
            report.warn(self.name, where, f"left as it is: {weights}")
            return False
        most = min(weights.inner, weights.hidden, weights.width)
        if self.rank > most:
            raise MoecError(
                f"{self.name}: node {where}: rank is {self.rank}; its weights, of {weights.inner} inputs and "
                f"{weights.hidden} hidden units, have a rank of at most {most}"
            )
        measures = profile.experts(node)
        with profile_reading(f"{profile.path}: node {where}"):
            parts: dict[Part, _LowRankProjection] = {
                part: self._projection(weights, measures, part) for part in weights.parts
            }
        before = weights.experts * weights.hidden * (weights.inner * len(weights.before) + weights.width)
        dropped, size = (
            sum(getattr(projection, what) for projection in parts.values()) for what in ("dropped", "size")
        )
        _Spelling(graph, with_route(graph, node), weights, parts).write()
        after = sum(projection.elements for projection in parts.values())
        report.note(
            self.name,
            where,
            f"rank {self.rank} of {most}, {'with' if self.base == 'shared' else 'without'} a shared base: "
            f"{after / before:.0%} of the weights; the products change by {(dropped / size) ** 0.5 if size else 0:.2%}",
        )
        return True

    def _projection(self, weights: ExpertWeights, measures: ExpertsMeasures, part: Part) -> _LowRankProjection:
        base = _mean(weights, measures.count, part) if self.base == "shared" else None
        split = []
        for expert in range(weights.experts):
            moment = measures.moment_hidden(expert) if part == "down" else measures.moment_in(expert)
            split.append(factors(weights.decoded(part, expert), base, self.rank, with_ridge(moment)))
            release_pages()
        return _LowRankProjection(split, base)


@dataclasses.dataclass(frozen=True)
class _LowRankProjection:
    """One part of all experts of a layer; ``base`` [in,out] in float64, if there is one."""

    own: list[Factors]
    base: Array | None

    @property
    def into(self) -> Array:
        return np.stack([factor.into for factor in self.own])

    @property
    def out(self) -> Array:
        return np.stack([factor.out for factor in self.own])

    @property
    def dropped(self) -> float:
        return sum(factor.dropped for factor in self.own)

    @property
    def size(self) -> float:
        return sum(factor.size for factor in self.own)

    @property
    def elements(self) -> int:
        """Number of stored elements."""
        own = sum(factor.into.size + factor.out.size for factor in self.own)
        return own + (0 if self.base is None else self.base.size)


def _mean(weights: ExpertWeights, count: Array, part: Part) -> Array:
    """The mean of a part over experts, weighted by their tokens; unweighted if there were none."""
    shares = count / count.sum() if count.any() else np.full(weights.experts, 1 / weights.experts)
    total = np.zeros_like(weights.decoded(part, 0), np.float64)
    for expert in np.flatnonzero(shares):
        total += shares[expert] * weights.decoded(part, int(expert))
        release_pages()
    return total


def _splittable(node: ir.Node) -> ExpertWeights | str:
    """The node's weights, or the reason why they cannot be split."""
    weights = readable_weights(node)
    if isinstance(weights, str):
        return weights
    spec = weights.spec
    if spec.arithmetic != "float32" or any(
        run.format.quantized for weight in weights.operands.values() for run in weight.runs
    ):
        return "its weights or products are rounded; run this pass before those that round them"
    if spec.hidden_sizes:
        return "its experts differ in size; expected equally many hidden units"
    if spec.identity_experts:
        return f"{spec.identity_experts} of its experts return their input"
    if spec.weight_on_input:
        return "its routing weights multiply the input; expected the output"
    return weights


class _Spelling:
    """The graph over dispatched rows in the place of one ``moec.Experts`` node."""

    def __init__(
        self, graph: ir.Graph, node: ir.Node, weights: ExpertWeights, parts: dict[Part, _LowRankProjection]
    ) -> None:
        self._graph, self._node, self._weights, self._parts = graph, node, weights, parts
        self._write = Writer(node, value_names(graph))
        self._inputs = dialect.inputs_of(node)
        dtype = self._inputs["down"].dtype if self._inputs["down"] is not None else None
        assert dtype is not None, "a stored weight has a type"
        self._dtype = dtype

    def write(self) -> None:
        """Put it there."""
        write, spec, x = self._write, self._weights.spec, self._inputs["x"]
        assert x is not None
        routed = dialect.make_node(
            "Dispatch", {"experts": self._inputs["experts"]}, DispatchSpec(self._weights.experts)
        )
        write.insert(routed, "offsets", "positions", "tokens", "owners")
        self._offsets, positions, tokens, _ = routed.outputs
        rows = write.add("Gather", x, tokens, label="rows", axis=0)
        before = {part: self._project(part, rows, x, tokens) for part in self._weights.before}
        hidden = activated(write, spec, before.get("gate"), before["up"], self._dtype)
        y = self._project("down", hidden, hidden, None)
        y = clamped(write, y, spec.output_limit, self._dtype) if spec.output_limit > 0 else y
        combined: dict[str, ir.Value | None] = {"rows": y, "weights": self._inputs["weights"], "positions": positions}
        replaced = [value for value in self._node.inputs if value is not None]
        replace_node(self._node, [self._moec("Combine", "combined", combined)])
        for value in replaced:
            remove_unused(self._graph, value)

    def _project(self, part: Part, rows: ir.Value, dense: ir.Value, tokens: ir.Value | None) -> ir.Value:
        """A projection of the rows; the base is multiplied with ``dense``, whose rows are those of ``tokens``, if
        they are not the same."""
        write, projection, bias = self._write, self._parts[part], self._weights.bias(part)
        narrow = self._grouped(f"{part}_narrow", rows, self._constant(projection.into, f"{part}_v"))
        own_bias = None if bias is None else self._constant(np.ascontiguousarray(bias), f"{part}_bias")
        label = part if projection.base is None else f"{part}_own"
        own = self._grouped(label, narrow, self._constant(projection.out, f"{part}_u"), own_bias)
        if projection.base is None:
            return own
        operands: dict[str, ir.Value | None] = {"x": dense, "weight": self._constant(projection.base, f"{part}_base")}
        spec = LinearSpec(transposed=True)
        shared = self._moec("Linear", f"{part}_shared" if tokens is None else f"{part}_of_base", operands, spec)
        if tokens is not None:
            shared = write.add("Gather", shared, tokens, label=f"{part}_shared", axis=0)
        return write.add("Add", shared, own, label=part)

    def _grouped(self, label: str, rows: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        operands: dict[str, ir.Value | None] = {"x": rows, "weights": weight, "offsets": self._offsets, "bias": bias}
        return self._moec("GroupedMatMul", label, operands, dialect.ProductSpec())

    def _moec(self, op_type: str, label: str, inputs: dict[str, ir.Value | None], *specs: Any) -> ir.Value:
        return self._write.insert(dialect.make_node(op_type, inputs, *specs), label)

    def _constant(self, numbers: Array, label: str) -> ir.Value:
        return self._write.weight(ir.tensor(numbers.astype(self._dtype.numpy()), dtype=self._dtype), label)
