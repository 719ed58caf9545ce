"""A check of an operator with experts before it replaces a ``moec.Experts`` node: onnxruntime runs it.

The installed onnxruntime computes the operator with the first and the last expert, in the numbers and the layout that
would be written. The reference semantics computes the same experts from the weights as they are stored.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from moec.common.errors import one_line
from moec.ir import semantics
from moec.ir.contrib_quantized import uses_int8_activations
from moec.ir.expert_weights import ExpertWeights
from moec.ir.weights.stacks import expert_data

Array = np.ndarray[Any, Any]
_TOKENS = 3
_MOST_BYTES = 1 << 30
"""Bytes of decoded experts that are computed with."""
_FLOAT32, _FLOAT16, _ROUNDED = 1e-4, 1e-2, 5e-2
"""Tolerances, as shares of the largest output: of float32, of float16, and of rows that are rounded to 8 bits."""


def why_different(operator: ir.Node, weights: ExpertWeights) -> str | None:
    """Explain why onnxruntime does not compute ``operator`` as the experts of ``weights``; None where it does. The
    experts take no more memory than :func:`why_unchecked` allows."""
    chosen = sorted({0, weights.experts - 1})[: _MOST_BYTES // _decoded_bytes(weights)]
    dtype = operator.inputs[0].dtype if operator.inputs[0] is not None else None
    kind = (dtype or ir.DataType.FLOAT).numpy()
    random = np.random.default_rng(0)
    x = random.normal(size=(_TOKENS, weights.inner)).astype(kind)
    shares = random.dirichlet(np.ones(len(chosen)), _TOKENS).astype(np.float32)
    try:
        actual = _run(operator, chosen, {"x": x, "logits": np.log(shares).astype(kind)})
    except Exception as error:  # onnxruntime's exceptions share no base class
        return f"onnxruntime does not run com.microsoft.{operator.op_type} with its weights: {one_line(error)[:200]}"
    expected = _expected(weights, chosen, x.astype(np.float32), shares)
    largest = float(np.abs(expected).max(initial=0))
    gap = float(np.abs(actual.astype(np.float32) - expected).max(initial=0)) / (largest or 1.0)
    if gap <= _tolerance(operator, kind):
        return None
    return f"onnxruntime computes com.microsoft.{operator.op_type} otherwise: by {gap:.1e} of the largest output"


def why_unchecked(weights: ExpertWeights) -> str | None:
    """Explain why the experts of ``weights`` are not computed; None where they are."""
    size = _decoded_bytes(weights)
    if size <= _MOST_BYTES:
        return None
    return (
        f"onnxruntime was not asked to compute its experts: one takes {size / 1e9:.1f} GB, and the check 1 GB at most"
    )


def _decoded_bytes(weights: ExpertWeights) -> int:
    """Bytes of one expert in float32."""
    return 4 * weights.hidden * (weights.inner * len(weights.before) + weights.width)


def _tolerance(operator: ir.Node, kind: Any) -> float:
    names = ("expert_weight_bits", "block_size", "accuracy_level")
    bits, block, level = (operator.attributes.get_int(name, 0) for name in names)
    if uses_int8_activations(bits, block, level):
        return _ROUNDED
    return _FLOAT16 if np.dtype(kind).itemsize == 2 else _FLOAT32


def _expected(weights: ExpertWeights, chosen: list[int], x: Array, shares: Array) -> Array:
    layout = "separate" if weights.spec.gated else "none"
    spec = dataclasses.replace(
        weights.spec, gate_layout=layout, up_transposed=True, down_transposed=True, hidden_sizes=(),
        weight_on_input=False, identity_experts=0, arithmetic="float32", activation_group=0,
    )  # fmt: skip
    operands: dict[str, Array] = {}
    for part in weights.parts:
        operands[part] = np.stack([weights.decoded(part, expert) for expert in chosen])
        bias = weights.bias(part)
        if bias is not None:
            operands[f"{part}_bias"] = np.asarray(bias)[chosen].astype(np.float32)
    ids = np.broadcast_to(np.arange(len(chosen), dtype=np.int32), shares.shape)
    return semantics.experts(spec, x, shares, ids, **operands)


def _run(operator: ir.Node, chosen: list[int], feeds: dict[str, Array]) -> Array:
    """The output of the operator with some of its experts, on one thread of onnxruntime."""
    import onnxruntime

    attributes = {name: attribute.value for name, attribute in operator.attributes.items()}
    constants = [_of_experts(value, chosen) for value in operator.inputs[2:]]
    names = ["" if array is None else f"w{at}" for at, array in enumerate(constants)]
    node = onnx.helper.make_node(
        operator.op_type, ["x", "logits", *names], ["y"], domain=operator.domain, **attributes | {"k": len(chosen)}
    )
    kind = onnx.helper.np_dtype_to_tensor_dtype(feeds["x"].dtype)
    graph = onnx.helper.make_graph(
        [node],
        "experts",
        [onnx.helper.make_tensor_value_info(name, kind, array.shape) for name, array in feeds.items()],
        [onnx.helper.make_tensor_value_info("y", kind, feeds["x"].shape)],
        [onnx.numpy_helper.from_array(array, f"w{at}") for at, array in enumerate(constants) if array is not None],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(operator.domain, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


def _of_experts(value: ir.Value | None, chosen: list[int]) -> Array | None:
    """The entries of some experts of a constant [E,...], which a Cast may widen."""
    if value is None:
        return None
    cast = value.producer()
    stored = value if cast is None else cast.inputs[0]
    assert stored is not None and (cast is None or cast.op_type == "Cast")
    entries = np.stack([expert_data(stored, expert) for expert in chosen])
    return entries if cast is None else entries.astype(ir.DataType(cast.attributes.get_int("to", 1)).numpy())
