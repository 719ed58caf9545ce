"""Evaluation of computations that do not depend on the inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from moec.ir.movement import moving
from moec.ir.weight_operands import decoding_nodes
from moec.ir.weights.stored import widens_halves
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import is_op, replace_by_tensors
from moec.passes.graph.folded import FoldedTensor

if TYPE_CHECKING:
    from moec.ir.interpreter import Evaluator

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_KEPT = ("DequantizeLinear", "QuantizeLinear", "Dropout", "BatchNormalization")
"""Quantised weights are wanted quantised; the other two have a meaning of their own in training."""
_BOUNDED_BY_INPUTS = ("Compress", "NonZero", "Unique")
"""Operators whose results have sizes that depend on data, but at most as many elements as their inputs."""
_NEVER_LARGER = moving(repeats=False) - {*_BOUNDED_BY_INPUTS}


@dataclasses.dataclass(frozen=True)
class FoldConstants:
    """Replaces nodes whose inputs are all constant by constants.

    1. Outputs of at most ``limit`` elements are computed now.
    2. A larger result of an operator that makes nothing larger than its input (Transpose, Reshape, Slice, ...) becomes
       a constant that computes itself when it is read: a weight stays in its file.
    3. Everything else stays: large results are cheaper to compute than to store. So do random operators,
       (de)quantisation, large floats in 16 bits that are cast to float32, and the nodes that say in which format a
       weight of a moec operator is stored (:mod:`moec.ir.weights.stored`).

    ::

        (float[T] x) => (float[T] y) <float two = {2}, float three = {3}> {
           six = Mul (two, three)
           y = Add (x, six)
        }
            fold-constants,remove-dead-nodes ->
        (float[T] x) => (float[T] y) <float six = {6.0}> {
           y = Add (x, six)
        }
    """

    name: ClassVar[str] = "fold-constants"
    exactness: ClassVar[Exactness] = "exact"

    limit: int = 65536

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        version = model.graph.opset_imports[""]
        decoding = decoding_nodes(model.graph)
        operators: dict[Hashable, _FoldingOperator] = {}
        for node in list(model.graph):
            if node in decoding or not _is_constant_computation(node):
                continue
            types = _output_types(node, version)
            if types is None:
                continue
            operator = operators.setdefault(_kind(node), _FoldingOperator.of(node, version))
            tensors = self._fold(node, types, operator)
            if tensors is not None:
                replace_by_tensors(node, tensors)
                changed = True
        return changed

    def _fold(self, node: ir.Node, types: list[_Type], operator: _FoldingOperator) -> list[ir.TensorProtocol] | None:
        inputs = [None if value is None else value.const_value for value in node.inputs]
        if _elements(node, types) <= self.limit and all(array is None or array.size <= self.limit for array in inputs):
            arrays = operator.results(inputs)
            return None if arrays is None else [ir.tensor(array) for array in arrays]
        narrow = is_op(node, *_NEVER_LARGER) and not widens_halves(node)
        lazy = narrow or (is_op(node, "Gather") and inputs[1].size == 1)  # type: ignore[union-attr]
        if not lazy or any(shape is None for _, shape in types):
            return None
        frozen = _Computation(operator, inputs)
        return [
            FoldedTensor(functools.partial(frozen.output, index), dtype, shape or (), operator.node, inputs, index)
            for index, (dtype, shape) in enumerate(types)
        ]


_Type = tuple[ir.DataType, "tuple[int, ...] | None"]


@dataclasses.dataclass(frozen=True)
class _FoldingOperator:
    """A node by itself, prepared once for all nodes that differ only in their inputs: preparing takes longer than
    transposing a weight, which stays a view."""

    node: ir.Node
    version: int

    @staticmethod
    def of(node: ir.Node, version: int) -> _FoldingOperator:
        inputs = [None if value is None else ir.Value(name=f"input_{i}") for i, value in enumerate(node.inputs)]
        outputs = [ir.Value(name=f"output_{index}") for index in range(len(node.outputs))]
        alone = ir.Node("", node.op_type, inputs, attributes=node.attributes.values(), outputs=outputs)
        return _FoldingOperator(alone, version)

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        from moec.ir.interpreter import Evaluator

        inputs = [value for value in self.node.inputs if value is not None]
        return Evaluator([self.node], inputs, self.node.outputs, {"": self.version})

    def results(self, inputs: Sequence[ir.TensorProtocol | None]) -> list[np.ndarray] | None:
        """The outputs; None for an operator without a reference, or one that lacks it for these types."""
        from moec.ir.interpreter import EvaluationError

        pairs = zip(self.node.inputs, inputs, strict=True)
        try:
            feeds = {value: tensor.numpy() for value, tensor in pairs if value is not None and tensor is not None}
            return self._evaluator.run(feeds)
        except (EvaluationError, AttributeError, RuntimeError, TypeError, ValueError):
            return None


@dataclasses.dataclass(frozen=True)
class _Computation:
    """A folded node as it was: its operator and constant inputs."""

    operator: _FoldingOperator
    inputs: list[ir.TensorProtocol | None]

    def output(self, index: int) -> ir.TensorProtocol:
        arrays = self.operator.results(self.inputs)
        if arrays is None:
            raise RuntimeError(f"{self.operator.node.op_type} could be folded but not computed")
        return ir.Tensor(arrays[index])


def _kind(node: ir.Node) -> Hashable:
    """Key that is equal for nodes that differ only in their inputs; each tensor attribute counts as different."""
    attributes = (
        (name, id(attribute) if attribute.type == ir.AttributeType.TENSOR else repr(attribute.value))
        for name, attribute in sorted(node.attributes.items())
    )
    return node.op_type, tuple(value is None for value in node.inputs), len(node.outputs), tuple(attributes)


def _is_constant_computation(node: ir.Node) -> bool:
    """Whether all inputs are constants. A node of a graph output does not count, so that the output keeps its name."""
    if node.domain != "" or node.op_type in (*_RANDOM, *_KEPT) or not any(value is not None for value in node.inputs):
        return False
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False
    return all(value is None or (value.const_value is not None and not value.is_graph_input()) for value in node.inputs)


def _output_types(node: ir.Node, version: int) -> list[_Type] | None:
    """Element types and, where they are known without computing, shapes; None when ONNX cannot tell the types."""
    inputs = [value for value in node.inputs if value is not None]
    types = {str(value.name): ir.serde.serialize_type(ir.TensorType(value.const_value.dtype)) for value in inputs}  # type: ignore[union-attr]
    for value in inputs:
        ir.serde.serialize_shape_into(types[str(value.name)], ir.Shape(value.const_value.shape))  # type: ignore[union-attr]
    data = {
        str(value.name): ir.serde.serialize_tensor(ir.tensor(value.const_value.numpy(), name=value.name))  # type: ignore[union-attr]
        for value in inputs
        if value.const_value.size <= 64 and value.const_value.dtype.is_integer()  # type: ignore[union-attr]
    }
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        inferred = onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, data)
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return None
    if any(output.name not in inferred for output in node.outputs):
        return None
    result: list[_Type] = []
    for output in node.outputs:
        tensor_type = inferred[str(output.name)].tensor_type
        dims = tensor_type.shape.dim
        is_fixed = tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
        result.append((ir.DataType(tensor_type.elem_type), tuple(dim.dim_value for dim in dims) if is_fixed else None))
    return result


def _elements(node: ir.Node, types: list[_Type]) -> float:
    """An upper bound of the elements of all outputs together."""
    if all(shape is not None for _, shape in types):
        return sum(float(np.prod(shape, dtype=float)) for _, shape in types if shape is not None)
    if is_op(node, *_BOUNDED_BY_INPUTS):
        constants = [value.const_value for value in node.inputs if value is not None]
        return sum(constant.size * max(1, len(constant.shape)) for constant in constants if constant is not None)
    return float("inf")
