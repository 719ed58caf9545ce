"""Choices for fused activations, products, normalisations and convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .configurations import Choices, Configuration
from .one_node import Fill, Input, Node, Sizes, element_type, normal

_FLOATS = ("float32", "float64")
_TOLERANCES = {"float32": 2e-5, "float64": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
_TOKENS: tuple[tuple[Sizes, ...], ...] = (
    ({"B": 1, "T": 1},),
    ({"B": 2, "T": 3}, {"B": 1, "T": 0}, {"B": 3, "T": 17}),
    ({"B": 0, "T": 2}, {"B": 1, "T": 64}),
)
_VALUES = ("normal", "zero", "large", "special")


def tolerance(dtype: str) -> float:
    return _TOLERANCES[dtype]


def values(kind: str, dtype: str) -> Fill:
    """Numbers of one kind; "special" are numbers with infinities and what is not a number among them."""

    def fill(generator: np.random.Generator, shape: tuple[int, ...], _: Sizes) -> np.ndarray:
        array = generator.standard_normal(shape)
        if kind == "zero":
            array = np.zeros(shape)
        elif kind == "large":
            array *= 100
        elif kind == "special":
            chosen = generator.random(shape)
            for limit, value in ((0.1, np.inf), (0.2, -np.inf), (0.3, np.nan)):
                array = np.where((chosen < limit) & (chosen >= limit - 0.1), value, array)
        return array.astype(element_type(dtype))

    return fill


_ACTIVATION: Choices = {"dtype": _FLOATS, "sizes": _TOKENS, "width": (4, 1, 0, 33), "values": _VALUES}


def _activated(c: Configuration, name: str) -> dict[str, Input | None]:
    return {name: Input(("B", "T", c["width"]), values(c["values"], c["dtype"]))}


def _bias(c: Configuration) -> Input | None:
    fill = normal(c["dtype"])
    return Input((c["width"],), fill, constant=c["constant"]) if c.get("bias", True) else None


QUICK_GELU: Choices = {**_ACTIVATION, "alpha": (None, 1.0, 0.0, -2.0)}


def quick_gelu(c: Configuration) -> Node:
    return Node("QuickGelu", _activated(c, "X"), ["Y"], attributes(c, "alpha"), c["sizes"], tolerance=_within(c))


def gelu(c: Configuration) -> Node:
    return Node("Gelu", _activated(c, "X"), ["Y"], {}, c["sizes"], tolerance=_within(c))


BIAS_GELU: Choices = {**_ACTIVATION, "dtype": ("float32", "float16"), "constant": (True, False)}


def bias_gelu(c: Configuration) -> Node:
    inputs = _activated(c, "A") | {"B": _bias(c)}
    return Node("BiasGelu", inputs, ["C"], {}, c["sizes"], tolerance=_within(c))


FAST_GELU: Choices = {**BIAS_GELU, "bias": (False, True)}


def fast_gelu(c: Configuration) -> Node:
    inputs = _activated(c, "X") | {"bias": _bias(c)}
    return Node("FastGelu", inputs, ["Y"], {}, c["sizes"], tolerance=_within(c))


BATCHES: tuple[tuple[int | str, ...], ...] = ((), ("B",), (2,), (1,), ("B", 2), ("B", 1), (2, 3))
FUSED_MATMUL: Choices = {
    "dtype": _FLOATS,
    "sizes": _TOKENS,
    "batch_a": BATCHES,
    "batch_b": BATCHES,
    "inner": (4, 1, 0, 33),
    "width": (3, 1, 0, 65),
    "transA": (None, 1),
    "transB": (None, 1),
    "transBatchA": (None, 1),
    "transBatchB": (None, 1),
    "alpha": (None, 0.5, 0.0),
    "constant": (True, False),
}


def fused_matmul(c: Configuration) -> Node:
    a = _stored(c["batch_a"], ("T", c["inner"]), c["transA"], c["transBatchA"])
    b = _stored(c["batch_b"], (c["inner"], c["width"]), c["transB"], c["transBatchB"])
    fill = normal(c["dtype"])
    inputs: dict[str, Input | None] = {
        "A": Input(a, fill),
        "B": Input(b, fill, constant=c["constant"] and "B" not in b),
    }
    settings = attributes(c, "transA", "transB", "transBatchA", "transBatchB", "alpha")
    return Node("FusedMatMul", inputs, ["Y"], settings, c["sizes"], tolerance=_within(c))


def _stored(batch: tuple, matrix: tuple, swapped: Any, moved: Any) -> tuple:
    """The shape of an operand that becomes ``(*batch, *matrix)`` once its axes are moved as the attributes say."""
    shape = (*batch, *(reversed(matrix) if swapped else matrix))
    return (*shape[1:-1], shape[0], shape[-1]) if moved and batch and len(batch) == 1 else shape


FUSED_GEMM: Choices = {
    "dtype": _FLOATS,
    "sizes": _TOKENS,
    "inner": (4, 1, 0, 33),
    "width": (3, 1, 0, 65),
    "c": (None, "row", "column", "full", "one", "scalar"),
    "activation": ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Elu", "Softplus", "Celu"),
    "activation_alpha": (None, 0.3),
    "activation_beta": (None, 0.4),
    "alpha": (None, 0.5, 0.0),
    "beta": (None, 2.0, 0.0),
    "transA": (None, 1),
    "transB": (None, 1),
    "constant": (True, False),
}


def fused_gemm(c: Configuration) -> Node:
    fill, inner, width = normal(c["dtype"]), c["inner"], c["width"]
    shapes = {"row": (width,), "column": ("T", 1), "full": ("T", width), "one": (1,), "scalar": (1, 1)}
    added = shapes.get(c["c"])
    inputs: dict[str, Input | None] = {
        "A": Input((inner, "T") if c["transA"] else ("T", inner), fill),
        "B": Input((width, inner) if c["transB"] else (inner, width), fill, constant=c["constant"]),
        "C": None if added is None else Input(added, fill, constant=c["constant"] and "T" not in added),
    }
    names = ("alpha", "beta", "transA", "transB", "activation", "activation_alpha", "activation_beta")
    return Node("FusedGemm", inputs, ["Y"], attributes(c, *names), c["sizes"], tolerance=_within(c))


SKIP_LAYER_NORMALIZATION: Choices = {
    "dtype": ("float32", "float16"),
    "sizes": _TOKENS,
    "rank": (3, 2),
    "width": (4, 1, 33),
    "skip": ("full", "one batch", "no batch"),
    "beta": (False, True),
    "bias": (False, True),
    "mean": (False, True),
    "deviation": (False, True),
    "sum": (False, True),
    "epsilon": (None, 1e-5, 0.1),
    "values": ("normal", "zero", "large"),
    "constant": (True, False),
}


def skip_layer_normalization(c: Configuration) -> Node:
    return _skip(c, "SkipLayerNormalization", ("beta", "bias"))


def skip_simplified_layer_normalization(c: Configuration) -> Node:
    return _skip(c, "SkipSimplifiedLayerNormalization", ("bias",))


def _skip(c: Configuration, op_type: str, optional: tuple[str, ...]) -> Node:
    fill, width = values(c["values"], c["dtype"]), c["width"]
    rows = ("B", "T", width) if c["rank"] == 3 else ("T", width)
    skips = {"full": rows, "one batch": (1, "T", width), "no batch": ("T", width)}
    vector = Input((width,), normal(c["dtype"]), constant=c["constant"])
    inputs: dict[str, Input | None] = {
        "input": Input(rows, fill),
        "skip": Input(skips[c["skip"]], fill),
        "gamma": vector,
        **{name: vector if c[name] else None for name in optional},
    }
    outputs = ["output", *(name if c[name] else "" for name in ("mean", "deviation", "sum"))]
    types = {"mean": "float32", "deviation": "float32"}
    settings = attributes(c, "epsilon")
    return Node(op_type, inputs, outputs, settings, c["sizes"], output_types=types, tolerance=_within(c))


SIMPLIFIED_LAYER_NORMALIZATION: Choices = {
    "dtype": _FLOATS,
    "sizes": _TOKENS,
    "width": (4, 1, 33),
    "axis": (None, -1, 2, 1),
    "epsilon": (None, 0.1),
    "deviation": (False, True),
    "values": ("normal", "zero", "large"),
    "constant": (True, False),
}


def simplified_layer_normalization(c: Configuration) -> Node:
    rows = ("B", "T", c["width"]) if c["axis"] != 1 else ("B", "T", 3, c["width"])
    scale = (c["width"],) if c["axis"] != 1 else (1, 3, c["width"])
    inputs: dict[str, Input | None] = {
        "X": Input(rows, values(c["values"], c["dtype"])),
        "scale": Input(scale, normal(c["dtype"]), constant=c["constant"]),
    }
    outputs = ["Y", "deviation" if c["deviation"] else ""]
    given, within = attributes(c, "axis", "epsilon"), _within(c)
    types = {"deviation": "float64" if c["dtype"] == "float64" else "float32"}
    return Node("SimplifiedLayerNormalization", inputs, outputs, given, c["sizes"], "", types, within)


CAUSAL_CONV: Choices = {
    "dtype": ("float32", "float16"),
    "sizes": _TOKENS,
    "channels": (4, 1, 17),
    "taps": (3, 1, 2, 4),
    "bias": (False, True),
    "state": (False, True),
    "activation": (None, "none", "silu", "swish", "relu"),
    "dilation": (None, 2),
    "channels_last": (None, 1),
    "constant": (True, False),
}


def causal_conv_with_state(c: Configuration) -> Node:
    fill, channels = normal(c["dtype"]), c["channels"]
    past = (c["taps"] - 1) * (c["dilation"] or 1)
    stored = ("B", past, channels) if c["channels_last"] else ("B", channels, past)
    inputs: dict[str, Input | None] = {
        "input": Input(("B", "T", channels) if c["channels_last"] else ("B", channels, "T"), fill),
        "weight": Input((channels, 1, c["taps"]), fill, constant=c["constant"]),
        "bias": Input((channels,), fill, constant=c["constant"]) if c["bias"] else None,
        "past_state": Input(stored, fill) if c["state"] else None,
    }
    settings = attributes(c, "activation", "dilation", "channels_last")
    return Node("CausalConvWithState", inputs, ["output", "state"], settings, c["sizes"], tolerance=_within(c))


def attributes(c: Configuration, *names: str) -> dict[str, Any]:
    return {name: c[name] for name in names if c[name] is not None}


def _within(c: Configuration) -> float:
    return _TOLERANCES[c["dtype"]]


ACTIVATION = _ACTIVATION
