"""Experts in forms that ``moec.Experts`` cannot express, as graphs over dispatched rows, and each in plain numpy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.text import parse_model

Array = np.ndarray[Any, Any]
E, k, d, f, rank = 5, 3, 24, 20, 4


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of experts. ``body``: the nodes that compute y from x, w (weights) and e (ids), and from the results of
    the common first line: the rows r, o (offsets), p (positions), t (tokens) and n (owners). ``expert``: the function
    of expert e on rows, in float64."""

    body: str
    shapes: Mapping[str, tuple[int, ...]]
    expert: Callable[[Mapping[str, Array], int, Array], Array]

    def constants(self, dtype: Any = np.float32) -> dict[str, Array]:
        random = np.random.default_rng(0)
        return {
            name: (random.standard_normal(shape) / np.sqrt(shape[1] if len(shape) == 3 else 1)).astype(dtype)
            for name, shape in self.shapes.items()
        }


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def _three_layers(c: Mapping[str, Array], e: int, x: Array) -> Array:
    first = silu(x @ c["a"][e] + c["a_bias"][e])
    return np.maximum(first @ c["b"][e] + c["b_bias"][e], 0) @ c["c"][e]


def _lora(c: Mapping[str, Array], e: int, x: Array) -> Array:
    def product(name: str, rows: Array) -> Array:
        return rows @ c[f"{name}_base"].T + rows @ c[f"{name}_v"][e] @ c[f"{name}_u"][e]

    return product("down", silu(product("up", x)))


def _normalized(c: Mapping[str, Array], e: int, x: Array) -> Array:
    h = x @ c["up"][e]
    h = h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + 1e-5) * c["norm"][e]
    return np.maximum(h, 0) @ c["down"][e]


def _mixed_kinds(c: Mapping[str, Array], e: int, x: Array) -> Array:
    """The result of an expert: experts 0 and 1 are products, 2 is zero, 3 a copy and 4 a constant."""
    kinds = [lambda: x @ c["up"][e]] * 2 + [lambda: 0 * x, lambda: x, lambda: np.broadcast_to(c["fixed"][e], x.shape)]
    return kinds[e]()


def _kinds() -> dict[str, Array]:
    """Factors [E,1] of product, copy and constant: 1 for the kind of each expert, else 0."""
    factors = np.zeros((3, E, 1), np.float32)
    factors[0, :2] = factors[1, 3] = factors[2, 4] = 1
    return dict(zip(("is_product", "is_copy", "is_constant"), factors, strict=True))


FORMS = {
    "three layers": Form(
        """g = moec.GroupedMatMul (r, a, o, a_bias)
           s = Sigmoid (g)
           h = Mul (g, s)
           m = moec.GroupedMatMul (h, b, o, b_bias)
           q = Relu (m)
           z = moec.GroupedMatMul (q, c, o)
           y = moec.Combine (z, w, p)""",
        {"a": (E, d, f), "a_bias": (E, f), "b": (E, f, f), "b_bias": (E, f), "c": (E, f, d)},
        _three_layers,
    ),
    "shared base with low rank": Form(
        """base = moec.Linear (x, up_base)
           base_rows = Gather (base, t)
           narrow = moec.GroupedMatMul (r, up_v, o)
           own = moec.GroupedMatMul (narrow, up_u, o)
           g = Add (base_rows, own)
           s = Sigmoid (g)
           h = Mul (g, s)
           narrow_down = moec.GroupedMatMul (h, down_v, o)
           own_down = moec.GroupedMatMul (narrow_down, down_u, o)
           base_down = moec.Linear (h, down_base)
           z = Add (base_down, own_down)
           y = moec.Combine (z, w, p)""",
        {
            "up_base": (f, d),
            "up_v": (E, d, rank),
            "up_u": (E, rank, f),
            "down_base": (d, f),
            "down_v": (E, f, rank),
            "down_u": (E, rank, d),
        },
        _lora,
    ),
    "a norm of its own": Form(
        """g = moec.GroupedMatMul (r, up, o)
           plain = RMSNormalization <epsilon = 1e-5> (g, ones)
           own = Gather (norm, n)
           h = Mul (plain, own)
           q = Relu (h)
           z = moec.GroupedMatMul (q, down, o)
           y = moec.Combine (z, w, p)""",
        {"up": (E, d, f), "norm": (E, f), "down": (E, f, d)},
        _normalized,
    ),
    "zero, copy and constant": Form(
        """g = moec.GroupedMatMul (r, up, o)
           by_product = Gather (is_product, n)
           by_copy = Gather (is_copy, n)
           by_constant = Gather (is_constant, n)
           own = Gather (fixed, n)
           product = Mul (g, by_product)
           copy = Mul (r, by_copy)
           constant = Mul (own, by_constant)
           z = Sum (product, copy, constant)
           y = moec.Combine (z, w, p)""",
        {"up": (E, d, d), "fixed": (E, d)},
        _mixed_kinds,
    ),
}


def model_of(form: Form, dtype: Any = np.float32) -> ir.Model:
    """The model of float inputs x [T,d] and w [T,k] and ids e [T,k]."""
    constants = {**form.constants(dtype), "ones": np.ones(f, dtype)}
    constants |= {name: array.astype(dtype) for name, array in _kinds().items()}
    used = {name: array for name, array in constants.items() if re.search(rf"\b{name}\b", form.body)}
    element = str(ir.DataType.from_numpy(np.dtype(dtype))).lower()
    declared = ", ".join(
        f'{element}[{",".join(map(str, array.shape))}] {name} = ["location": "sha256:{"0" * 16}"]'
        for name, array in used.items()
    )
    model = parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24, "moec" : 1]>
        g ({element}[T,{d}] x, {element}[T,{k}] w, int32[T,{k}] e) => ({element}[T,{d}] y) <{declared}> {{
           o, p, t, n = moec.Dispatch <expert_count = {E}> (e)
           r = Gather (x, t)
           {form.body}
        }}"""
    )
    for name, array in used.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def inputs(tokens: int, ids: Array, dtype: Any = np.float32) -> dict[str, Array]:
    random = np.random.default_rng(tokens)
    x, weights = random.standard_normal((tokens, d)), random.random((tokens, k))
    return {"x": x.astype(dtype), "w": weights.astype(dtype), "e": ids.astype(np.int32)}


def choices(tokens: int) -> Iterator[Array]:
    """Arrays of ids: any experts, one expert for all, two experts only, and none at all."""
    random = np.random.default_rng(tokens)
    yield random.integers(-1, E, (tokens, k))
    yield np.full((tokens, k), 3)
    yield random.choice([0, 4], (tokens, k))
    yield np.full((tokens, k), -1)


def expected(form: Form, given: Mapping[str, Array]) -> Array:
    """The expected result: every expert computes every token, and the selected ones are summed."""
    constants = {name: array.astype(np.float64) for name, array in form.constants(given["x"].dtype).items()}
    x, y = given["x"].astype(np.float64), np.zeros(given["x"].shape)
    for e in range(E):
        shares = np.where(given["e"] == e, given["w"].astype(np.float64), 0).sum(axis=1, keepdims=True)
        y += shares * form.expert(constants, e, x)
    return y
