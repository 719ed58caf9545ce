"""Nodes before the logits of a language model that only have to compute the last tokens, if no other logits are needed.

The logits after the last token select the next one. Some nodes can compute only a few of the last tokens: the product
with the vocabulary, and nodes before it, as long as they treat each token alone and nothing else uses their results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from moec.ir.dialect import INPUTS, is_moec
from moec.ir.graphs import is_op
from moec.ir.states import states_of

# fmt: off
ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu",
    "Where", "Xor",
})
# fmt: on
NORMALIZING = frozenset({"LayerNormalization", "RMSNormalization"})
ALONG = frozenset({"LogSoftmax", "LpNormalization", "Softmax"})
"""Operators that treat each row along their axis alone."""
_FLAT = ("Reshape", "Squeeze", "Unsqueeze")
"""Operators that leave all elements in their order."""
_ALONE = (*ELEMENTWISE, "Identity")
TokenWise = Mapping[ir.Node, Sequence[ir.Value]]
"""Nodes that can compute some of the last tokens alone, from the logits up, each with the values of which it then reads
these tokens alone."""


def logits_of(model: ir.Model) -> list[tuple[ir.Value, ir.Node]]:
    """The outputs of floats [batch, length, vocabulary] that could be logits, each with its product: outputs that are
    not states, and that are a product or follow from one by functions of single elements."""
    kept = {state.output for state in states_of(model)}
    return [(value, node) for value in model.graph.outputs for node in _product(value) if value.name not in kept]


def _product(value: ir.Value) -> Iterator[ir.Node]:
    """The product that logits [batch, length, vocabulary] are, or follow from by functions of single elements."""
    if not _is_tokens(value) or value.dtype is None or not value.dtype.is_floating_point():
        return
    assert value.shape is not None
    node = value.producer()
    while node is not None and len(operands := _operands(node, value.shape[1])) == 1:
        if is_op(node, "MatMul", "Gemm") or is_moec(node, "Linear"):
            yield node
            return
        node = operands[0].producer() if is_op(node, *_ALONE, "Reshape") else None


def _is_tokens(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 3


def named_length(graph: ir.Graph, logits: ir.Value) -> ir.Value | None:
    """The input of integers [batch, length], such as token ids, that says how many tokens ``logits`` are of."""
    assert logits.shape is not None
    length = logits.shape[1]
    if not isinstance(length, int) and length.value is None:
        return None
    of_tokens = (value for value in graph.inputs if value.shape is not None and len(value.shape) == 2)
    whole = (value for value in of_tokens if value.dtype is not None and value.dtype.is_integer())
    return next((value for value in whole if value.shape is not None and value.shape[1] == length), None)


def token_wise(graph: ir.Graph, logits: ir.Value) -> TokenWise:
    """The nodes before ``logits`` that can compute only the last position. If the node that computes rows
    [batch * length, width] is not one of them, the last position cannot be taken from the rows, and their users stay,
    too."""
    stopped: set[ir.Node] = set()
    while True:
        moved = _sweep(graph, logits, stopped)
        rows = {value for value in frontier(moved) if not _is_tokens(value)}
        stuck = {node for node, operands in moved.items() if not rows.isdisjoint(operands)}
        if not stuck:
            return moved
        stopped |= stuck


def _sweep(graph: ir.Graph, logits: ir.Value, stopped: set[ir.Node]) -> TokenWise:
    assert logits.shape is not None
    moved: dict[ir.Node, list[ir.Value]] = {}
    needed = {logits}
    for node in reversed(graph):
        value = node.outputs[0]
        if value not in needed or node in stopped or (value is not logits and value.is_graph_output()):
            continue
        operands = _operands(node, logits.shape[1]) if _is_read_by(value, value, moved) else []
        if operands:
            moved[node] = operands
            needed.update(operands)
    return moved


def frontier(moved: TokenWise) -> list[ir.Value]:
    """Values that moved nodes read and no moved node makes, without repetitions."""
    read = dict.fromkeys(value for operands in moved.values() for value in operands)
    return [value for value in read if value.producer() not in moved]


def passed_by(moved: TokenWise) -> set[ir.Node]:
    """Nodes that only give tokens of moved nodes another shape on their way to a Reshape, which takes them itself."""
    passed: set[ir.Node] = set()
    for node, operands in moved.items():
        if is_op(node, "Reshape") and operands[0].producer() in moved:
            value = node.inputs[0]
            while value is not None and value is not operands[0]:
                before = value.producer()
                assert before is not None, "a Reshape has its tokens from other shapes of them"
                passed.add(before)
                value = before.inputs[0]
    return passed


def _is_read_by(value: ir.Value, tokens: ir.Value, moved: TokenWise) -> bool:
    """Whether no other node reads the value, which is the tokens or their elements in another shape."""
    return all(
        tokens in moved.get(node, ())
        or (is_op(node, *_FLAT) and _is_hidden(node.outputs[0]) and _is_read_by(node.outputs[0], tokens, moved))
        for node, _ in value.uses()
    )


def _is_hidden(value: ir.Value) -> bool:
    return not value.is_graph_output()


def _operands(node: ir.Node, length: int | ir.SymbolicDim) -> list[ir.Value]:
    """The values of which the node reads the same token for each token that it makes: [batch, length, width], or rows
    [batch * length, width]. None of them for a node that does not treat each token alone."""
    shape = node.outputs[0].shape
    if len(node.outputs) != 1 or shape is None or len(shape) not in (2, 3):
        return []
    if is_op(node, "Reshape"):
        return _reshaped(node, shape[-1], length)
    if is_op(node, *_ALONE):
        operands, others = [value for value in node.inputs if not _is_broadcast(value)], []
    else:
        count = _token_wise_inputs(node, len(shape))
        operands, others = node.inputs[:count], node.inputs[count:]
    alike = [value for value in operands if value is not None and _is_like(value, shape) and value not in others]
    return alike if len(alike) == len(operands) else []


def _token_wise_inputs(node: ir.Node, rank: int) -> int:
    """The number of its first inputs that a node reads token by token."""
    if is_op(node, *ALONG, *NORMALIZING):
        is_last = node.attributes.get_int("axis", -1) in (-1, rank - 1)
        return int(is_last and all(_rank(value) <= 1 for value in node.inputs[1:]))
    if is_op(node, "MatMul"):
        return int(_rank(node.inputs[1]) == 2)
    if is_op(node, "Gemm"):
        return int(not node.attributes.get_int("transA", 0) and all(_rank(value) <= 1 for value in node.inputs[2:]))
    if is_moec(node, "MoE"):
        return INPUTS["MoE"].index("logits") + 1
    return int(is_moec(node, "Linear"))


def _rank(value: ir.Value | None) -> int:
    """-1 for an absent value; more than any for one whose shape is unknown."""
    if value is None:
        return -1
    return 99 if value.shape is None else len(value.shape)


def _is_like(value: ir.Value, shape: ir.Shape) -> bool:
    """Whether the value has as many tokens."""
    if value.shape is None or len(value.shape) != len(shape):
        return False
    size = value.shape[-2]
    return size == shape[-2] and (isinstance(size, int) or size.value is not None)


def _is_broadcast(value: ir.Value | None) -> bool:
    """Whether all tokens meet the same of the value in a function of single elements."""
    return _rank(value) < 2 or (value is not None and value.shape is not None and value.shape[-2] == 1)


def _reshaped(reshape: ir.Node, width: int | ir.SymbolicDim, length: int | ir.SymbolicDim) -> list[ir.Value]:
    """The tokens that a Reshape, and others before it, have in another shape."""
    value = reshape.inputs[0]
    while value is not None and isinstance(width, int) and width > 0:
        shape = [] if value.shape is None else list(value.shape)
        if shape[-1:] == [width] and (len(shape) == 2 or (len(shape) == 3 and shape[1] == length)):
            return [value]
        before = value.producer()
        value = before.inputs[0] if is_op(before, *_FLAT) else None
    return []
