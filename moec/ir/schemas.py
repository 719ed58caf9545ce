"""Type and shape inference for operators that ONNX does not define: the moec dialect and onnxruntime's own.

ONNX's inference stops at operators without a schema. Here are schemas for them, registered only while
:func:`registered` is entered: ``onnx.reference`` refuses to start when two domains have an operator of the same name.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
from onnx.defs import OpSchema

from moec.ir import dialect

Type = onnx.TypeProto
Dimension = onnx.TensorShapeProto.Dimension
Inference = Callable[[Sequence["Type | None"], dict[str, Any]], list["Type | None"]]
"""A function from the types of the inputs (None if unknown or absent) and the attributes to the types of the
outputs."""


def _tensor(element_type_of: Type | int | None, dimensions: list[Dimension]) -> Type | None:
    if element_type_of is None:
        return None
    result = Type()
    if isinstance(element_type_of, Type):
        element_type_of = element_type_of.tensor_type.elem_type
    result.tensor_type.elem_type = element_type_of
    result.tensor_type.shape.dim.extend(dimensions)
    return result


def _size(value: int) -> Dimension:
    return Dimension(dim_value=value)


def _dimensions(kind: Type | None, rank: int | None = None) -> list[Dimension] | None:
    """The dimensions of a tensor type; None when they are not known or not as many as expected."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dimensions = list(kind.tensor_type.shape.dim)
    return dimensions if rank is None or len(dimensions) == rank else None


def _like_first(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    return [inputs[0]]


def _residual(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    return [inputs[0], None, None, inputs[0]]


def _route(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    logits = _dimensions(inputs[0], 2)
    if logits is None or "k" not in attributes:
        return []
    pairs = [logits[0], _size(attributes["k"])]
    return [_tensor(inputs[0], pairs), _tensor(onnx.TensorProto.INT32, pairs)]


def _product(left: Dimension, right: Dimension) -> Dimension:
    """One size times another, of which at most one is a name; nothing is known about the product of two names."""
    if left.HasField("dim_value") and right.HasField("dim_value"):
        return _size(left.dim_value * right.dim_value)
    for named, number in ((left, right), (right, left)):
        if named.dim_param and number.HasField("dim_value"):
            name = named.dim_param if named.dim_param.isidentifier() else f"({named.dim_param})"
            return Dimension(dim_param=name if number.dim_value == 1 else f"{number.dim_value}*{name}")
    return Dimension()


def _dispatch(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    pairs = _dimensions(inputs[0], 2)
    if pairs is None or "expert_count" not in attributes:
        return []
    rows = [_product(*pairs)]
    shapes = [[_size(attributes["expert_count"] + 1)], pairs, rows, rows]
    return [_tensor(onnx.TensorProto.INT32, shape) for shape in shapes]


def _grouped_matmul(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    x, weights = _dimensions(inputs[0], 2), _dimensions(inputs[1], 3)
    return [] if x is None or weights is None else [_tensor(inputs[0], [x[0], weights[2]])]


def _combine(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    rows, weights = _dimensions(inputs[0], 2), _dimensions(inputs[1], 2)
    return [] if rows is None or weights is None else [_tensor(inputs[0], [weights[0], rows[1]])]


def _linear(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    x, weight = _dimensions(inputs[0]), _dimensions(inputs[1], 2)
    if not x or weight is None:
        return []
    return [_tensor(inputs[0], [*x[:-1], weight[1 if attributes.get("transposed") else 0]])]


def _matmul_n_bits(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    x = _dimensions(inputs[0])
    return [_tensor(inputs[0], [*x[:-1], _size(attributes["N"])])] if x else []


def _fused_matmul(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    """Schema for equal ranks and batches in place, the form to which onnxruntime's optimiser fuses exported models."""
    a, b = _dimensions(inputs[0]), _dimensions(inputs[1])
    batches_move = attributes.get("transBatchA") or attributes.get("transBatchB")
    if not a or not b or batches_move or len(a) != len(b) or len(a) < 2:
        return []
    batch = [x if x == y else Dimension() for x, y in zip(a[:-2], b[:-2], strict=True)]
    rows, columns = a[-1 if attributes.get("transA") else -2], b[-2 if attributes.get("transB") else -1]
    return [_tensor(inputs[0], [*batch, rows, columns])]


def _fused_gemm(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    a, b = _dimensions(inputs[0], 2), _dimensions(inputs[1], 2)
    if a is None or b is None:
        return []
    return [_tensor(inputs[0], [a[1 if attributes.get("transA") else 0], b[0 if attributes.get("transB") else 1]])]


def _linear_attention(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    rows, value = (_dimensions(inputs[position], 3) for position in (0, 2))
    if rows is None or value is None or not {"q_num_heads", "kv_num_heads"} <= attributes.keys():
        return []
    queries, heads = attributes["q_num_heads"], attributes["kv_num_heads"]
    if queries < 1 or heads < 1 or not (rows[2].HasField("dim_value") and value[2].HasField("dim_value")):
        return []
    sizes = [_size(rows[2].dim_value // queries), _size(value[2].dim_value // heads)]
    result = _tensor(inputs[0], [*rows[:2], _size(max(queries, heads) * sizes[1].dim_value)])
    state = inputs[3] if len(inputs) > 3 and inputs[3] is not None else inputs[0]
    return [result, _tensor(state, [rows[0], _size(heads), *sizes])]


def _absent(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    logits = _dimensions(inputs[0], 2)
    return [] if logits is None else [_tensor(onnx.TensorProto.FLOAT, logits[1:])]


def _send_rows(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    return [_tensor(onnx.TensorProto.INT32, [_size(1)])]


def _receive_rows(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    _, x, _, *weights = inputs
    sizes = _dimensions(x, 2)
    if sizes is None:
        return []
    received, owners = [Dimension(), sizes[1]], [Dimension(), _size(1)]
    kind = weights[0] if weights and weights[0] is not None else onnx.TensorProto.FLOAT
    return [_tensor(x, received), _tensor(onnx.TensorProto.INT32, owners), _tensor(kind, owners)]


def _return_rows(inputs: Sequence[Type | None], attributes: dict[str, Any]) -> list[Type | None]:
    results, pairs = _dimensions(inputs[0], 2), _dimensions(inputs[1], 2)
    if results is None or pairs is None:
        return []
    rows = [_product(*pairs), results[1]]
    return [_tensor(inputs[0], rows), _tensor(onnx.TensorProto.INT32, pairs)]


INFERENCE: dict[tuple[str, str], Inference] = {
    (dialect.DOMAIN, "Route"): _route,
    (dialect.DOMAIN, "Experts"): _like_first,
    (dialect.DOMAIN, "Dispatch"): _dispatch,
    (dialect.DOMAIN, "GroupedMatMul"): _grouped_matmul,
    (dialect.DOMAIN, "Combine"): _combine,
    (dialect.DOMAIN, "MoE"): _like_first,
    (dialect.DOMAIN, "Linear"): _linear,
    (dialect.DOMAIN, "Expect"): _like_first,
    (dialect.DOMAIN, "Absent"): _absent,
    (dialect.DOMAIN, "RoundRows"): _like_first,
    (dialect.DOMAIN, "SendRows"): _send_rows,
    (dialect.DOMAIN, "ReceiveRows"): _receive_rows,
    (dialect.DOMAIN, "ReturnRows"): _return_rows,
    ("com.microsoft", "BiasGelu"): _like_first,
    ("com.microsoft", "FastGelu"): _like_first,
    ("com.microsoft", "FusedGemm"): _fused_gemm,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "Gelu"): _like_first,
    ("com.microsoft", "LinearAttention"): _linear_attention,
    ("com.microsoft", "MatMulNBits"): _matmul_n_bits,
    ("com.microsoft", "MoE"): _like_first,
    ("com.microsoft", "QMoE"): _like_first,
    ("com.microsoft", "QuickGelu"): _like_first,
    ("com.microsoft", "RotaryEmbedding"): _like_first,
    ("com.microsoft", "SkipLayerNormalization"): _residual,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _residual,
    ("", "SimplifiedLayerNormalization"): _like_first,
}

_ATTRIBUTES = {
    (dialect.DOMAIN, "Route"): ("k",),
    (dialect.DOMAIN, "Dispatch"): ("expert_count",),
    (dialect.DOMAIN, "Linear"): ("transposed",),
    ("com.microsoft", "LinearAttention"): ("q_num_heads", "kv_num_heads"),
    ("com.microsoft", "MatMulNBits"): ("N",),
    ("com.microsoft", "FusedGemm"): ("transA", "transB"),
    ("com.microsoft", "FusedMatMul"): ("transA", "transB", "transBatchA", "transBatchB"),
}
"""The attributes that inference reads; all are integers."""

_ELEMENT_TYPES = ("float", "double", "float16", "bfloat16", "int32", "int64", "uint8", "int8", "bool")


@functools.cache
def _schema(domain: str, name: str, infer: Inference) -> OpSchema:
    def infer_in_context(context: onnx.shape_inference.InferenceContext) -> None:
        protos = {key: context.get_attribute(key) for key in _ATTRIBUTES.get((domain, name), ())}
        attributes = {key: attribute.i for key, attribute in protos.items() if attribute is not None}
        inputs = [context.get_input_type(index) for index in range(context.get_num_inputs())]
        outputs = infer(inputs, attributes)
        for index, kind in enumerate(outputs[: context.get_num_outputs()]):
            if kind is not None:
                context.set_output_type(index, kind)

    anything = OpSchema.FormalParameterOption.Variadic
    schema = OpSchema(
        name,
        domain,
        1,
        inputs=[OpSchema.FormalParameter("inputs", "T", param_option=anything, is_homogeneous=False, min_arity=0)],
        outputs=[OpSchema.FormalParameter("outputs", "T", param_option=anything, is_homogeneous=False, min_arity=0)],
        type_constraints=[("T", [f"tensor({kind})" for kind in _ELEMENT_TYPES], "any tensor")],
    )
    schema.set_type_and_shape_inference_function(infer_in_context)
    return schema


_lock = threading.Lock()


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Make ONNX's shape inference know the operators of :data:`INFERENCE` for a while."""
    with _lock:
        added = [key for key in INFERENCE if not onnx.defs.has(key[1], 1, key[0])]
        for domain, name in added:
            onnx.defs.register_schema(_schema(domain, name, INFERENCE[domain, name]))
        try:
            yield
        finally:
            for domain, name in added:
                onnx.defs.deregister_schema(name, 1, domain)
