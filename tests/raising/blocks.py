"""Small MoE layers in the forms in which exporters write them, with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir

from .edit import Array, Operand, Writer, ints, with_types

Formulation = Literal["batched", "loop", "loop of additions", "dense", "dense unrolled", "slots unrolled"]
Router = Literal["softmax", "normalised softmax", "softmax of chosen", "sigmoid with bias", "groups", "switch"]
FORMULATIONS: tuple[Formulation, ...] = (
    "batched",
    "loop",
    "loop of additions",
    "dense",
    "dense unrolled",
    "slots unrolled",
)
ROUTERS: tuple[Router, ...] = (
    "softmax",
    "normalised softmax",
    "softmax of chosen",
    "sigmoid with bias",
    "groups",
    "switch",
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Properties of a layer: E experts of hidden size f for rows of d numbers, k for each token.

    ``gate``: experts have no gate, one in the same weight as up, or a separate one. ``shared``: a shared expert is
    added to the routed ones' sum, or comes first, so that loops add to its result.
    ``sequences``: x is [B,S,d], not [T,d].
    """

    formulation: Formulation = "batched"
    router: Router = "normalised softmax"
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gate: Literal["none", "merged", "separate"] = "merged"
    bias: bool = False
    shared: Literal["none", "first", "last"] = "none"
    E: int = 4
    d: int = 6
    f: int = 5
    k: int = 2
    sequences: bool = False
    seed: int = 0

    @property
    def leading(self) -> list[str]:
        return ["B", "S"] if self.sequences else ["T"]

    def __str__(self) -> str:
        return (
            f"{self.formulation}, {self.router} router, {self.activation}, gate {self.gate}"
            f"{', biases' if self.bias else ''}{f', shared expert {self.shared}' if self.shared != 'none' else ''}, "
            f"E={self.E} d={self.d} f={self.f} k={self.k}{' sequences' if self.sequences else ''} (seed {self.seed})"
        )


def draw_layer(random: np.random.Generator) -> Layer:
    def one(*choices):
        return choices[random.integers(len(choices))]

    router = one(*ROUTERS)
    return Layer(
        formulation=one(*FORMULATIONS),
        router=router,
        activation=one("silu", "gelu", "gelu_tanh", "relu"),
        gate=one("none", "merged", "separate"),
        bias=one(False, True),
        shared=one("none", "none", "first", "last"),
        E=one(4, 6, 8),
        d=int(random.integers(6, 17)),
        f=int(random.integers(5, 13)),
        k=1 if router == "switch" else one(1, 2, 2) if router != "groups" else 2,
        sequences=one(False, True),
        seed=int(random.integers(1000)),
    )


def model_of(layer: Layer) -> ir.Model:
    """A model from x to y, both [T,d] or [B,S,d], at opset 21."""
    shape, float32 = ir.Shape([*layer.leading, layer.d]), ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=shape, type=float32)
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="layer")
    model = ir.Model(graph, ir_version=10)
    write = Writer(model)
    maker = _Maker(write, np.random.default_rng(layer.seed), layer)
    rows = write.op("Reshape", x, ints(-1, layer.d)) if layer.sequences else x
    weights, ids = maker.route(rows)
    first = maker.expert(rows, maker.matrices()) if layer.shared == "first" else None
    y = maker.routed(rows, weights, ids, first)
    if layer.shared == "last":
        y = write.op("Add", y, maker.expert(rows, maker.matrices()))
    y = write.op("Reshape", y, write.op("Shape", x)) if layer.sequences else write.op("Identity", y)
    y.name, y.shape, y.type = "y", shape, float32
    graph.outputs.append(y)
    return with_types(model)


def feeds_for(layer: Layer) -> list[dict[str, Array]]:
    """One token, few, and some more."""
    random = np.random.default_rng(layer.seed + 1)
    leading = [(1, 1), (2, 3), (3, 11)] if layer.sequences else [(1,), (6,), (33,)]
    return [{"x": random.standard_normal((*sizes, layer.d)).astype(np.float32)} for sizes in leading]


@dataclasses.dataclass
class _Maker:
    """Writes the parts of a layer."""

    write: Writer
    random: np.random.Generator
    layer: Layer

    def normal(self, *shape: int) -> Array:
        scale = np.sqrt(shape[-1]) if len(shape) > 1 else 2
        return (self.random.standard_normal(shape) / scale).astype(np.float32)

    def matrices(self, *leading: int) -> dict[str, Array]:
        """Weights [...,out,in] and biases [...,out] of one expert, or of several."""
        d, f, gate = self.layer.d, self.layer.f, self.layer.gate
        sizes = {"up": (2 * f if gate == "merged" else f, d), "down": (d, f)}
        if gate == "separate":
            sizes["gate"] = (f, d)
        built = {name: self.normal(*leading, *size) for name, size in sizes.items()}
        if self.layer.bias:
            built |= {f"{name}_bias": self.normal(*leading, size[0]) for name, size in sizes.items()}
        return built

    def route(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Weights [T,k] and ids [T,k]."""
        op, layer = self.write.op, self.layer
        logits = op("MatMul", x, self.normal(layer.E, layer.d).T.copy() * 2)
        if layer.router == "softmax of chosen":
            top, ids = self.top(logits)
            return op("Softmax", top, axis=-1), ids
        if layer.router == "switch":
            scores = op("Softmax", logits, axis=-1)
            return op("ReduceMax", scores, ints(-1), keepdims=1), op("ArgMax", scores, axis=-1, keepdims=1)
        if layer.router == "softmax":
            return self.top(op("Softmax", logits, axis=-1))
        if layer.router == "normalised softmax":
            return self.normalised(*self.top(op("Softmax", logits, axis=-1)))
        scores = op("Sigmoid", logits)
        choice = op("Add", scores, self.normal(layer.E) / 10)
        if layer.router == "groups":
            choice = self.in_groups(choice)
        _, ids = self.top(choice)
        weights, ids = self.normalised(op("GatherElements", scores, ids, axis=1), ids)
        return op("Mul", weights, 2.5), ids

    def top(self, scores: ir.Value) -> tuple[ir.Value, ir.Value]:
        top, ids = self.write.ops("TopK", 2, scores, ints(self.layer.k), axis=-1)
        return top, ids

    def normalised(self, weights: ir.Value, ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        return self.write.op("Div", weights, self.write.op("ReduceSum", weights, ints(-1), keepdims=1)), ids

    def in_groups(self, choice: ir.Value) -> ir.Value:
        """Scores of experts outside of the better of two groups are zero."""
        op, E = self.write.op, self.layer.E
        grouped = op("Reshape", choice, ints(-1, 2, E // 2))
        best, _ = self.write.ops("TopK", 2, grouped, ints(2), axis=-1)
        _, chosen = self.write.ops("TopK", 2, op("ReduceSum", best, ints(-1), keepdims=0), ints(1), axis=-1)
        zeros = op("ConstantOfShape", op("Concat", op("Shape", choice, end=1), ints(2), axis=0))
        ones = op("Expand", 1.0, op("Shape", chosen))
        mask = op("ScatterElements", zeros, chosen, ones, axis=1)
        wide = op("Reshape", op("Expand", op("Unsqueeze", mask, ints(-1)), ints(1, 1, E // 2)), ints(-1, E))
        return op("Where", op("Cast", wide, to=ir.DataType.BOOL), choice, float("-inf"))

    def activated(self, gate: ir.Value) -> ir.Value:
        op = self.write.op
        if self.layer.activation == "silu":
            return op("Mul", gate, op("Sigmoid", gate))
        if self.layer.activation == "relu":
            return op("Relu", gate)
        return op("Gelu", gate, approximate="tanh" if self.layer.activation == "gelu_tanh" else "none")

    def hidden(self, parts: dict[str, ir.Value]) -> ir.Value:
        """Hidden units from the projections "up" and "gate"."""
        if self.layer.gate == "none":
            return self.activated(parts["up"])
        if self.layer.gate == "merged":
            gate, up = self.write.ops("Split", 2, parts["up"], axis=-1, num_outputs=2)
        else:
            gate, up = parts["gate"], parts["up"]
        return self.write.op("Mul", self.activated(gate), up)

    def expert(self, x: ir.Value, weights: dict[str, Array]) -> ir.Value:
        """One expert on rows x."""

        def project(rows: ir.Value, name: str) -> ir.Value:
            bias = [weights[f"{name}_bias"]] if self.layer.bias else []
            if self.layer.formulation != "loop of additions":
                return self.write.op("Gemm", rows, weights[name], *bias, transB=1)
            product = self.write.op("MatMul", rows, weights[name].T.copy())
            return self.write.op("Add", product, *bias) if bias else product

        hidden = self.hidden({name: project(x, name) for name in ("gate", "up") if name in weights})
        return project(hidden, "down")

    def routed(self, x: ir.Value, weights: ir.Value, ids: ir.Value, first: ir.Value | None) -> ir.Value:
        start = first if first is not None else self.write.op("ConstantOfShape", self.write.op("Shape", x))
        if self.layer.formulation in ("loop", "loop of additions"):
            return self.loop(x, weights, ids, start)
        built = {
            "batched": self.batched,
            "dense": self.dense,
            "dense unrolled": self.dense_unrolled,
            "slots unrolled": self.slots_unrolled,
        }[self.layer.formulation](x, weights, ids)
        return built if first is None else self.write.op("Add", first, built)

    def batched(self, x: ir.Value, weights: ir.Value, ids: ir.Value) -> ir.Value:
        """Every pair of token and expert with its own copy of the weights."""
        op, d, k = self.write.op, self.layer.d, self.layer.k
        rows = op("Reshape", op("Expand", op("Unsqueeze", x, ints(1)), ints(1, k, 1)), ints(-1, d))
        pairs = op(
            "Reshape",
            op("Mul", self.gathered(rows, op("Reshape", ids, ints(-1))), self.column(weights)),
            ints(-1, k, d),
        )
        return op("ReduceSum", pairs, ints(1), keepdims=0)

    def column(self, weights: ir.Value) -> ir.Value:
        return self.write.op("Reshape", weights, ints(-1, 1))

    def gathered(self, rows: ir.Value, ids: ir.Value, stacks: Mapping[str, Operand] | None = None) -> ir.Value:
        """Each row of [P,d] through the expert with its id in ids [P]."""
        op = self.write.op
        stacks = stacks or self.matrices(self.layer.E)

        def project(rows: ir.Value, name: str) -> ir.Value:
            product = op("MatMul", op("Gather", stacks[name], ids, axis=0), op("Unsqueeze", rows, ints(-1)))
            result = op("Squeeze", product, ints(-1))
            return op("Add", result, op("Gather", stacks[f"{name}_bias"], ids, axis=0)) if self.layer.bias else result

        hidden = self.hidden({name: project(rows, name) for name in ("gate", "up") if name in stacks})
        return project(hidden, "down")

    def slots_unrolled(self, x: ir.Value, weights: ir.Value, ids: ir.Value) -> ir.Value:
        """The first, second, ... slots of all tokens, one after another."""
        op, y = self.write.op, None
        stacks = {name: self.write.constant(array) for name, array in self.matrices(self.layer.E).items()}
        for slot in range(self.layer.k):
            chosen = op("Gather", ids, np.array(slot), axis=1)
            weight = op("Gather", weights, ints(slot), axis=1)
            part = op("Mul", self.gathered(x, chosen, stacks), weight)
            y = part if y is None else op("Add", y, part)
        assert y is not None
        return y

    def mixture(self, weights: ir.Value, ids: ir.Value) -> ir.Value:
        """Weights [T,E] of all experts."""
        op, E = self.write.op, self.layer.E
        zeros = op("ConstantOfShape", op("Concat", op("Shape", ids, end=1), ints(E), axis=0))
        return op("ScatterElements", zeros, ids, weights, axis=1)

    def dense(self, x: ir.Value, weights: ir.Value, ids: ir.Value) -> ir.Value:
        op, stacks = self.write.op, self.matrices(self.layer.E)

        def project(rows: ir.Value, name: str, equation: str) -> ir.Value:
            product = op("Einsum", rows, np.swapaxes(stacks[name], 1, 2).copy(), equation=equation)
            return op("Add", product, stacks[f"{name}_bias"]) if self.layer.bias else product

        hidden = self.hidden({name: project(x, name, "td,edf->tef") for name in ("gate", "up") if name in stacks})
        return op("Einsum", project(hidden, "down", "tef,efd->ted"), self.mixture(weights, ids), equation="ted,te->td")

    def dense_unrolled(self, x: ir.Value, weights: ir.Value, ids: ir.Value) -> ir.Value:
        op, y = self.write.op, None
        for expert in range(self.layer.E):
            hit = op("Cast", op("Equal", ids, np.array(expert)), to=ir.DataType.FLOAT)
            weight = op("ReduceSum", op("Mul", weights, hit), ints(-1), keepdims=1)
            part = op("Mul", self.expert(x, self.matrices()), weight)
            y = part if y is None else op("Add", y, part)
        assert y is not None
        return y

    def loop(self, x: ir.Value, weights: ir.Value, ids: ir.Value, y: ir.Value) -> ir.Value:
        """Every expert with its own tokens, of which each has one at most."""
        op = self.write.op
        for expert in range(self.layer.E):
            where = op("NonZero", op("Equal", ids, np.array(expert)))
            tokens = op("Gather", where, np.array(0), axis=0)
            weight = op("Unsqueeze", op("GatherND", weights, op("Transpose", where, perm=[1, 0])), ints(-1))
            part = op("Mul", self.expert(op("Gather", x, tokens, axis=0), self.matrices()), weight)
            column = op("Unsqueeze", tokens, ints(-1))
            if self.layer.formulation == "loop":
                y = op("ScatterND", y, column, part, reduction="add")
            else:
                zeros = op("ConstantOfShape", op("Shape", y))
                y = op("Add", y, op("ScatterElements", zeros, op("Expand", column, op("Shape", part)), part, axis=0))
        return y
