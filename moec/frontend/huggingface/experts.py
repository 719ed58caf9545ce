"""Graph of one ``moec.Experts`` node for an experts module of transformers, without a router and without tracing.

transformers calls an implementation, registered by name, instead of the forward of every module that is decorated with
``use_experts_implementation`` (``transformers/integrations/moe.py``, version 5). Such a module has stacked weights
``gate_up_proj`` (``up_proj`` where it has no gate) and ``down_proj``, and biases of these names with ``_bias``. Its
flags ``has_gate``, ``has_bias``, ``is_transposed`` and ``has_post_expert_norm`` say how they are used.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, GateLayout
from moec.ir.graphs import add_constant
from moec.ir.semantics import activated

if TYPE_CHECKING:
    import torch

    Weights = dict[str, torch.nn.Parameter]

Array = np.ndarray[Any, Any]

CURE = 'leave the model at set_experts_implementation("eager")'
_LAYOUTS: tuple[GateLayout, ...] = ("gate_up", "interleaved", "up_gate")
_SIGMOID_GELU = 1.702
_SAMPLES = 2048


def is_experts(module: torch.nn.Module) -> bool:
    """Whether transformers dispatches the module's forward."""
    return hasattr(module, "_is_expert_parallel") and hasattr(module, "is_transposed")


def experts_model(module: Any, k: int, where: str) -> ir.Model:
    """Build the graph of an experts module: ``x`` [T,d] and ``weights`` [T,k], ``experts`` [T,k] (int64) → ``y`` [T,d],
    floats in float32.

    Weights in float32 share the parameters' memory, those in 16 bits are cast where they are used. Ids from the number
    of experts on are not dispatched. Raises UnsupportedError, which names the module ``where``, for one whose
    computation the dialect cannot express.
    """
    weights, spec = expert_weights(module, where), experts_spec(module, where)
    E, d = weights["down"].shape[0], weights["down"].shape[2 if spec.down_transposed else 1]
    x, shares, ids = _value("x", "FLOAT", d), _value("weights", "FLOAT", k), _value("experts", "INT64", k)
    graph = ir.Graph([x, shares, ids], [], nodes=[], opset_imports={"": 24, dialect.DOMAIN: 1}, name="experts")
    operands = {name: _operand(graph, name, parameter.detach()) for name, parameter in weights.items()}
    count, none = (add_constant(graph, ir.tensor(np.int64(n)), name) for name, n in (("E", E), ("none", -1)))
    stored = _computed(graph, "stored", "Where", _computed(graph, "is_stored", "Less", ids, count), ids, none)
    dispatched = _computed(graph, "dispatched", "Cast", stored, to=ir.DataType.INT32)
    inputs = {"x": x, "weights": shares, "experts": dispatched}
    node = dialect.make_node("Experts", {**inputs, **operands}, spec, name="experts")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "y", ir.Shape(["T", d]), x.type
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    return ir.Model(graph, ir_version=10)


def _value(name: str, dtype: str, size: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(["T", size]), type=ir.TensorType(ir.DataType[dtype]))


def _operand(graph: ir.Graph, name: str, parameter: torch.Tensor) -> ir.Value:
    value = add_constant(graph, ir.tensor(parameter), name)
    if value.dtype == ir.DataType.FLOAT:
        return value
    return _computed(graph, f"{name}_as_float", "Cast", value, to=ir.DataType.FLOAT)


def _computed(graph: ir.Graph, name: str, op_type: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
    node = ir.node(op_type, operands, attributes, name=name)
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]


def expert_weights(module: Any, where: str) -> Weights:
    """Collect the module's parameters by the names of the operator's inputs. Raises UnsupportedError for a parameter
    that is missing, of a type other than floats of 16 or 32 bits, or not in the processor's memory."""
    import torch

    names = {"up": "gate_up_proj" if module.has_gate else "up_proj", "down": "down_proj"}
    if module.has_bias:
        names |= {f"{name}_bias": f"{parameter}_bias" for name, parameter in names.items()}
    weights: Weights = {}
    for name, own in names.items():
        parameter = dict(module.named_parameters(recurse=False)).get(own)
        if parameter is None:
            raise UnsupportedError(f"{where}: it has no parameter {own}; expected its experts' weights there: {CURE}")
        if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UnsupportedError(
                f"{where}: {own} is {parameter.dtype}; expected float32, bfloat16 or float16: {CURE}"
            )
        if parameter.device.type != "cpu":
            raise UnsupportedError(f"{where}: {own} is on {parameter.device}; expected the processor's memory: {CURE}")
        weights[name] = parameter
    return weights


def experts_spec(module: Any, where: str) -> ExpertsSpec:
    """Find the specification of the module's experts by trying candidates.

    Layout, activation, alpha, limit and offset are those that reproduce the module's results on sampled numbers,
    whatever it calls them. Raises UnsupportedError where none do.
    """
    if module.has_post_expert_norm:
        raise UnsupportedError(
            f"{where}: it normalises the result of every expert, which moec's experts cannot do: {CURE}"
        )
    transposed = bool(module.is_transposed)
    base = ExpertsSpec(up_transposed=transposed, down_transposed=transposed)
    numbers = _numbers(module)
    f = module.down_proj.shape[1 if transposed else 2]
    if module.has_gate:
        samples = _sample_rows(2 * f, numbers)
        expected = _called(module._apply_gate, samples, where)
    else:
        samples = _sample_rows(f, numbers)
        expected = _called(module.act_fn, samples, where)
    for spec in _candidates(base, bool(module.has_gate), numbers):
        gate, up = spec.gate_and_up(samples) if spec.gated else (None, samples)
        if expected.shape == up.shape and np.allclose(activated(spec, gate, up), expected, rtol=1e-5, atol=1e-6):
            return spec
    raise UnsupportedError(f"{where}: its activation is not one of moec's experts: {CURE}")


def _candidates(base: ExpertsSpec, gated: bool, numbers: set[float]) -> Iterator[ExpertsSpec]:
    layouts: tuple[GateLayout, ...] = _LAYOUTS if gated else ("none",)
    limits, offsets = (sorted({0.0, *numbers}), (0.0, 1.0)) if gated else ([0.0], (0.0,))
    alphas = sorted({1.0, _SIGMOID_GELU, *numbers})
    for layout, limit, offset in itertools.product(layouts, limits, offsets):
        for name in dialect.choices(ExpertsSpec, "activation"):
            for alpha in alphas if name == "silu" else [1.0]:
                changes: dict[str, Any] = {"activation": name, "gate_layout": layout, "limit": limit}
                yield dataclasses.replace(base, **changes, up_offset=offset, alpha=alpha)


def _numbers(module: torch.nn.Module) -> set[float]:
    """Collect the positive floats among the attributes of the module and its parts: alpha and limit are among them."""
    attributes = (value for part in module.modules() for value in vars(part).values())
    return {value for value in attributes if isinstance(value, float) and value > 0}


def _sample_rows(width: int, numbers: set[float]) -> Array:
    """Sample rows [n,width] of both signs and many magnitudes, up to twice the largest of ``numbers``, such as a
    limit."""
    random = np.random.default_rng(0)
    rows = max(2, -(-_SAMPLES // max(width, 1)))
    reach = max(12.0, *(2 * number for number in numbers if number < 1e4), 0.0)
    scale = np.geomspace(1e-3, reach, rows * width)
    return random.permutation(scale).reshape(rows, width) * random.choice([-1.0, 1.0], (rows, width))


def _called(function: Callable[[Any], Any], samples: Array, where: str) -> Array:
    import torch

    try:
        with torch.no_grad():
            return function(torch.from_numpy(samples)).double().numpy()
    except Exception as error:  # the module's own code may raise anything for float64
        raise UnsupportedError(
            f"{where}: its activation could not be tried ({type(error).__name__}): {CURE}"
        ) from error
