"""The MoE operator of onnxruntime (domain com.microsoft): a whole block in one node.

Its router is a softmax over all experts and a top-k, renormalised on request; fc1, fc2 and fc3 are [E, out, in].
"""

from __future__ import annotations

import onnx_ir as ir

from moec.ir.contrib import experts_spec
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.passes.raising.block import Block, width
from moec.passes.raising.check import Proposal
from moec.passes.raising.facts import Facts
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import Routing
from moec.passes.raising.weights import ExpertTensor

DOMAIN = "com.microsoft"
INPUTS = ("x", "logits", "fc1", "fc1_bias", "fc2", "fc2_bias", "fc3", "fc3_bias")
EXPERTS_ATTRIBUTES = ("activation_type", "swiglu_fusion", "activation_alpha", "activation_beta", "swiglu_limit")


def is_block(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "MoE"


def is_quantized(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "QMoE"


def propose(facts: Facts, node: ir.Node) -> tuple[Block, Proposal]:
    """The node as a block and as a proposal. Raises NotUnderstoodError for attributes or inputs beyond the dialect."""
    inputs = dict(zip(INPUTS, node.inputs, strict=False))
    x, logits = inputs["x"], inputs["logits"]
    d = None if x is None else width(x)
    if x is None or logits is None or d is None:
        raise NotUnderstoodError("the hidden size of com.microsoft.MoE is not known")
    if _number(node, "use_sparse_mixer", 0):
        raise NotUnderstoodError("com.microsoft.MoE with use_sparse_mixer=1 has no defined result on CPU")
    tensors = {name: _tensor(facts, name, inputs.get(name)) for name in INPUTS[2:]}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if not {"fc1", "fc2"} <= set(present):
        raise NotUnderstoodError("com.microsoft.MoE lacks fc1 or fc2")
    E = present["fc1"].shape[0]
    block = Block(facts, node, x, logits, node.outputs[0], [node], [], E, d)
    spec = _experts_spec(node, "fc3" in present)
    first, second = ("gate", "up") if spec.gate_layout == "separate" else ("up", "fc3")
    names = {"fc1": first, "fc1_bias": f"{first}_bias", "fc3": second, "fc3_bias": f"{second}_bias"}
    names |= {"fc2": "down", "fc2_bias": "down_bias"}
    route_spec = RouteSpec(int(_number(node, "k", 1)), normalize=bool(_number(node, "normalize_routing_weights", 0)))
    renamed = {names[name]: tensor for name, tensor in present.items()}
    return block, Proposal(Routing(route_spec), spec, renamed)


def _tensor(facts: Facts, name: str, value: ir.Value | None) -> ExpertTensor | None:
    if value is None:
        return None
    if not facts.constant(value):
        raise NotUnderstoodError(f"input {name} of com.microsoft.MoE is not constant")
    return ExpertTensor(facts, (value,), facts.shape(value))


def _experts_spec(node: ir.Node, has_fc3: bool) -> ExpertsSpec:
    given = {name: node.attributes[name].value for name in EXPERTS_ATTRIBUTES if name in node.attributes}
    try:
        return experts_spec(has_fc3, **given)
    except ValueError as error:
        raise NotUnderstoodError(str(error)) from error


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value
