"""Resolution of a model's local functions: their calls become operators that moec knows, or the nodes of their bodies.

1. A function with the name of an operator of the moec dialect becomes that operator, and the call gets the attributes
   that the function has values for. The body is kept for the pass check-functions.
2. A function with the name of an onnxruntime operator that moec knows becomes that operator, because onnxruntime uses a
   body only where it has no kernel. The body is kept for calls that need more than moec has.
3. Any other call becomes the nodes of its function's body.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.contrib import OPERATOR_NAMES
from moec.ir.graphs import nested_graphs
from moec.ir.local_bodies import Bodies
from moec.ir.opsets import OPSET, since

_CONTRIB = "com.microsoft"


def resolve(model: ir.Model, where: str) -> Bodies:
    """Inline the functions of a model, in place. Returns the bodies that are kept.

    Raises UnsupportedError for a function that cannot be inlined.
    """
    from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

    _align_opsets(model, where)
    has_functions = bool(model.functions)
    try:
        InlinePass(criteria=lambda function: not _is_operator(function))(model)
        RemoveUnusedFunctionsPass()(model)
    except Exception as error:  # a pass manager wraps the reason: cyclic functions, graph attributes, arity
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise UnsupportedError(f"{where}: a local function cannot be inlined ({reason[:300]})") from error
    operators = {key: function for key, function in model.functions.items() if _is_operator(function)}
    for key in operators:
        del model.functions[key]
    _give_attributes(model, operators)
    if has_functions:
        _resolve_optional_inputs(model.graph)
        RemoveUnusedNodesPass()(model)  # the rest of a body may read an input that the call does not have
    return {key: function for key, function in operators.items() if _renumbered(function)}


def _align_opsets(model: ir.Model, where: str) -> None:
    imports = model.graph.opset_imports
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            if imports.setdefault(domain, version) != version:
                raise UnsupportedError(
                    f"{where}: local function {function.domain}.{function.name} uses opset {version} of domain "
                    f"{domain or 'ai.onnx'!r} but the model uses {imports[domain]}; export both with the same opset"
                )


def _is_operator(function: ir.Function) -> bool:
    if function.domain == dialect.DOMAIN:
        return function.name in dialect.INPUTS and _means_the_same(function)  # others cannot be compared later
    return (function.domain, function.overload) == (_CONTRIB, "") and function.name in OPERATOR_NAMES


def _give_attributes(model: ir.Model, operators: Bodies) -> None:
    """Give calls of the dialect's functions the attributes that they leave to their function, unless these are the
    operator's defaults."""
    for node in model.graph.all_nodes():
        function = operators.get(node.op_identifier())
        if function is None or node.domain != dialect.DOMAIN:
            continue
        defaults = dialect.defaults_of(node.op_type)
        for name, attribute in function.attributes.items():
            if attribute.value is not None and name not in node.attributes and defaults.get(name) != attribute.value:
                node.attributes.add(attribute)


def _means_the_same(function: ir.Function) -> bool:
    """Whether the body means the same at the working opset."""
    version = function.opset_imports.get("", OPSET)
    nodes = ir.traversal.RecursiveGraphIterator(function)
    return not any(node.domain == "" and since(node.op_type, version) != since(node.op_type) for node in nodes)


def _renumbered(function: ir.Function) -> bool:
    """Whether the body means the same at the working opset, whose number it then gets."""
    if not _means_the_same(function):
        return False
    function.opset_imports[""] = OPSET
    return True


def _resolve_optional_inputs(graph: ir.Graph) -> None:
    """Resolve OptionalHasElement, by which a body tests for an optional input, to a constant, and OptionalGetElement to
    the tensor."""
    for node in list(graph):
        for body in nested_graphs(node):
            _resolve_optional_inputs(body)
        if node.domain != "" or node.op_type not in ("OptionalHasElement", "OptionalGetElement"):
            continue
        source = node.inputs[0] if node.inputs else None
        if source is not None and _is_optional(source):
            continue
        if node.op_type == "OptionalHasElement":
            answer = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(source is not None))})
            graph.insert_before(node, answer)
            answer.outputs[0].name = node.outputs[0].name
            source = answer.outputs[0]
        if source is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _is_optional(value: ir.Value) -> bool:
    producer = value.producer()
    return isinstance(value.type, ir.OptionalType) or (producer is not None and producer.op_type == "Optional")
