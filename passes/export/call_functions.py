"""Operators of the moec dialect as calls of functions that the model brings along."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import ClassVar

import onnx_ir as ir

from moec.common.names import node_name
from moec.passes.export.function_bodies import Signature, function_of, has_function, signature
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.writer import NotDecomposableError


@dataclasses.dataclass(frozen=True)
class CallFunctions:
    """Gives nodes of the moec dialect functions in ONNX operators, for programs that do not know the dialect.

    1. The node stays what it is, and calls the function of its name. Nodes with the same attributes and types share
       one; further functions of a name are overloads, "2" and so on.
    2. Dense products whose rows are not rounded get none: ONNX has operators for them.
    3. A node that ONNX cannot spell stays without a function; a warning says so.

    ::

        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           w, e = moec.Route <k = 2, score = "softmax_topk"> (logits)
        }
            ->
        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           w, e = moec.Route <k = 2, score = "softmax_topk"> (logits)
        }
    """

    name: ClassVar[str] = "call-functions"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        functions: dict[Signature, ir.Function] = {}
        overloads: Counter[str] = Counter()
        for node in [node for node in model.graph.all_nodes() if has_function(node)]:
            key = signature(node)
            if key not in functions:
                count = overloads[node.op_type] + 1
                try:
                    functions[key] = function_of(node, str(count) if count > 1 else "")
                except NotDecomposableError as error:
                    report.warn(self.name, node_name(node), f"has no function: {error}")
                    continue
                overloads[node.op_type] = count
            node.overload = functions[key].overload
        for function in functions.values():
            model.functions[function.identifier()] = function
        return bool(functions)
