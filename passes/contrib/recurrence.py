"""Recurrences over tokens."""

from __future__ import annotations

import onnx_ir as ir

from moec.passes.graph.writer import NotDecomposableError, Writer, width_of


def linear_attention(write: Writer) -> list[ir.Value | None]:
    """Decompose LinearAttention into ONNX's operator of the same name, which exists since opset 27.

    onnxruntime's operator also allows fewer heads of queries or of keys than of values: neighbouring heads of values
    then share one, which is repeated here.
    """
    write.refuse_attributes(state_window=0)
    attributes = {name: attribute for name, attribute in write.node.attributes.items() if name != "state_window"}
    inputs, queries, values = (
        list(write.node.inputs),
        write.attribute("q_num_heads", 0),
        write.attribute("kv_num_heads", 0),
    )
    query, key = write.required(0, "query"), write.required(1, "key")
    if queries < 1 or values < 1 or width_of(query, "query") % queries:
        raise NotDecomposableError(f"{queries} heads of queries and {values} of values; expected them to divide query")
    size = width_of(query, "query") // queries
    if queries < values:
        inputs[0] = _repeated(write, query, queries, values, size)
        attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", values)
    if width_of(key, "key") < values * size:
        inputs[1] = _repeated(write, key, width_of(key, "key") // size, values, size)
    same = ir.Node("", "LinearAttention", inputs, list(attributes.values()), num_outputs=2)
    write.insert(same, "output", "present_state")
    return list(same.outputs[: len(write.node.outputs)])


def _repeated(write: Writer, rows: ir.Value, heads: int, count: int, size: int) -> ir.Value:
    """Repeat each head of [B,T,heads*size] several times in a row: [B,T,count*size]."""
    if heads < 1 or count % heads or heads * size != width_of(rows, "query or key"):
        raise NotDecomposableError(f"{heads} heads of {size} for {count} heads of values; expected a divisor of these")
    apart = write.add("Reshape", rows, write.numbers(0, 0, heads, 1, size))
    expanded = write.add("Expand", apart, write.numbers(1, 1, 1, count // heads, 1))
    return write.add("Reshape", expanded, write.numbers(0, 0, count * size), label="repeated")
