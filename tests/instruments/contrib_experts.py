"""Choices for experts and for packed weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from .configurations import Choices, Configuration
from .contrib_arithmetic import attributes, tolerance
from .one_node import Fill, Input, Node, Sizes, element_type, normal

_TOKENS: tuple[tuple[Sizes, ...], ...] = (
    ({"B": 1, "T": 3},),
    ({"B": 2, "T": 3}, {"B": 1, "T": 0}, {"B": 1, "T": 33}),
    ({"B": 3, "T": 1}, {"B": 1, "T": 1}, {"B": 0, "T": 2}),
)
_ACTIVATIONS = ("swiglu", None, "relu", "gelu", "silu", "identity")
_EXPERTS: Choices = {
    "sizes": _TOKENS,
    "rank": (2, 3),
    "E": (4, 1, 3, 17),
    "k": (None, 2, 3, 4),
    "activation_type": _ACTIVATIONS,
    "swiglu_fusion": (1, None, 2),
    "biases": ((), ("fc1",), ("fc1", "fc2")),
    "normalize_routing_weights": (None, 1),
    "activation_alpha": (None, 1.702, 0.0),
    "activation_beta": (None, 1.0),
    "swiglu_limit": (None, 0.5, 0.0),
}
_ATTRIBUTES = (
    "k",
    "activation_type",
    "normalize_routing_weights",
    "activation_alpha",
    "activation_beta",
    "swiglu_limit",
)
MOE: Choices = {**_EXPERTS, "dtype": ("float32", "float16"), "d": (8, 1, 33), "f": (16, 1, 7)}


def _attributes(c: Configuration) -> dict[str, Any]:
    """swiglu_fusion only where it means something: onnxruntime reads past its weights otherwise."""
    return attributes(c, *_ATTRIBUTES, *(["swiglu_fusion"] if c["activation_type"] == "swiglu" else []))


def _rows(c: Configuration, width: int, fill: Fill) -> Input:
    return Input(("T", width) if c["rank"] == 2 else ("B", "T", width), fill)


def _logits(c: Configuration) -> Input:
    """Draw logits of B*T rows, because the router's inputs always have two axes."""
    return Input(("T" if c["rank"] == 2 else "BT", c["E"]), _apart(c["dtype"]))


def _apart(dtype: str) -> Fill:
    """Rows of numbers that differ by 0.1 at least: of equal scores onnxruntime takes the higher expert, moec the lower
    one."""

    def fill(generator: np.random.Generator, shape: tuple[int, ...], _: Sizes) -> np.ndarray:
        ranks = generator.permuted(np.broadcast_to(np.arange(shape[1]), shape), axis=1)
        return (0.3 * (ranks - shape[1] / 2) + generator.uniform(0, 0.2, shape)).astype(element_type(dtype))

    return fill


def _sizes(c: Configuration) -> list[dict[str, int]]:
    return [{**sizes, "BT": sizes["B"] * sizes["T"]} for sizes in c["sizes"]]


def _layers(c: Configuration) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each projection that is there."""
    d, f = c["d"], c["f"]
    fused = c["activation_type"] == "swiglu" and c["swiglu_fusion"]
    return {"fc1": (2 * f if fused else f, d), "fc2": (d, f)}


def moe(c: Configuration) -> Node:
    fill = normal(c["dtype"])
    inputs: dict[str, Input | None] = {"x": _rows(c, c["d"], fill), "logits": _logits(c)}
    for name, shape in _layers(c).items():
        inputs[name] = Input((c["E"], *shape), normal(c["dtype"], 0.5), constant=True)
        inputs[f"{name}_bias"] = Input((c["E"], shape[0]), fill, constant=True) if name in c["biases"] else None
    return Node("MoE", inputs, ["y"], _attributes(c), _sizes(c), tolerance=tolerance(c["dtype"]))


QMOE: Choices = {
    **_EXPERTS,
    "dtype": ("float32", "float16"),
    "d": (64, 32, 128),
    "f": (32, 64),
    "expert_weight_bits": (None, 8, 2),
    "block_size": (None, 32, 16, 64),
    "zeros": (False, True),
    "router_weights": (False, True),
    "accuracy_level": (None, 4),
}
_LEVELS = {None: 4, 4: 4, 8: 8, 2: 2}


def qmoe(c: Configuration) -> Node:
    bits, fill = _LEVELS[c["expert_weight_bits"]], normal(c["dtype"])
    stored: dict[str, Input | None] = {}
    zeros: dict[str, Input | None] = {}
    for name, (out, length) in _layers(c).items():
        blocks = -(-length // c["block_size"]) if c["block_size"] else 0
        leading = (c["E"], out)
        packed = (*leading, -(-blocks * bits // 8)) if blocks else (c["E"], -(-out * bits // 8))
        stored[name] = Input((*leading, length * bits // 8), _bytes, constant=True)
        stored[f"{name}_scales"] = Input((*leading, blocks) if blocks else leading, _scales(bits, c["dtype"]), True)
        stored[f"{name}_bias"] = Input(leading, fill, constant=True) if name in c["biases"] else None
        zeros[f"{name}_zeros"] = Input(packed, _bytes, constant=True) if c["zeros"] else None
    absent = dict.fromkeys(("fc3", "fc3_scales", "fc3_bias"))
    inputs = {"x": _rows(c, c["d"], fill), "logits": _logits(c), **stored, **absent, **zeros, "fc3_zeros": None}
    inputs["router_weights"] = _logits(c) if c["router_weights"] else None
    settings = _attributes(c) | attributes(c, "expert_weight_bits", "block_size", "accuracy_level")
    is_rounded = c["block_size"] and (bits == 8 or c["accuracy_level"] == 4)
    within = max(tolerance(c["dtype"]), 2e-2 if is_rounded else 0)
    return Node("QMoE", inputs, ["y"], settings, _sizes(c), tolerance=within)


def _bytes(generator: np.random.Generator, shape: tuple[int, ...], _: Sizes) -> np.ndarray:
    return generator.integers(0, 256, shape, dtype=np.uint8)


def _scales(bits: int, dtype: str) -> Fill:
    """Such that weights are about as large as their inputs are small."""

    def fill(generator: np.random.Generator, shape: tuple[int, ...], _: Sizes) -> np.ndarray:
        return (generator.uniform(0.5, 1, shape) / 2 ** (bits + 1)).astype(element_type(dtype))

    return fill


MATMUL_N_BITS: Choices = {
    "dtype": ("float32", "float16"),
    "sizes": _TOKENS,
    "rank": (2, 3),
    "K": (32, 64, 16, 33, 100, 1),
    "N": (8, 1, 7, 64),
    "bits": (None, 8, 2),
    "block_size": (32, 16, 64, 128),
    "zeros": (None, "bytes", "floats"),
    "scales": ("flat", "blocks"),
    "g_idx": (False, True),
    "bias": (False, True),
    "accuracy_level": (None, 1, 4),
    "constant": (True, False),
}


def matmul_n_bits(c: Configuration) -> Node:
    bits, N, fill = _LEVELS[c["bits"]], c["N"], normal(c["dtype"])
    blocks = -(-c["K"] // c["block_size"])
    zeros = {
        "bytes": Input((N * -(-blocks * bits // 8),), _bytes, constant=True),
        "floats": Input((N * blocks,), _zeros(bits, c["dtype"]), constant=True),
    }
    groups = np.arange(blocks * c["block_size"], dtype=np.int32) // c["block_size"]
    inputs: dict[str, Input | None] = {
        "A": _rows(c, c["K"], fill),
        "B": Input((N, blocks, c["block_size"] * bits // 8), _bytes, constant=c["constant"]),
        "scales": Input((N * blocks,) if c["scales"] == "flat" else (N, blocks), _scales(bits, c["dtype"]), True),
        "zero_points": zeros[c["zeros"]] if c["zeros"] else None,
        "g_idx": Input(groups.shape, lambda *_: groups, constant=True) if c["g_idx"] else None,
        "bias": Input((N,), fill, constant=True) if c["bias"] else None,
    }
    settings = attributes(c, "bits", "block_size", "accuracy_level") | {"K": c["K"], "N": N}
    within = max(tolerance(c["dtype"]), 2e-2 if c["accuracy_level"] == 4 else 0)
    return Node("MatMulNBits", inputs, ["Y"], settings, c["sizes"], tolerance=within)


def _zeros(bits: int, dtype: str) -> Fill:
    def fill(generator: np.random.Generator, shape: tuple[int, ...], _: Sizes) -> np.ndarray:
        return generator.uniform(0, 2**bits - 1, shape).round(1).astype(element_type(dtype))

    return fill
