"""Attentions for tests of targets: problems, operands, and the results of the standard operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from moec.ir import interpreter
from moec.targets.tvm.heavy.attention import AttentionProblem

RANDOM = np.random.default_rng(0)
PROBLEM = AttentionProblem(20, 24, 0.3, heads_per_group=2)
ON_NONE = (True, True, True)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def operands(problem: AttentionProblem, queries: int, keys: int, batch: int = 2, groups: int = 2) -> dict:
    """Random query, key and value, and mask and lengths if the problem has them. The numbers do not depend on earlier
    calls, because rounding decides the result if a mask hides all keys."""
    random = np.random.default_rng([queries, keys, batch, groups])
    heads = groups * problem.heads_per_group
    arrays = {
        "query": random.standard_normal(
            (
                batch,
                heads,
                queries,
                problem.head_size,
            ),
            np.float32,
        ),
        "key": random.standard_normal(
            (
                batch,
                groups,
                keys,
                problem.head_size,
            ),
            np.float32,
        ),
        "value": random.standard_normal(
            (
                batch,
                groups,
                keys,
                problem.value_size,
            ),
            np.float32,
        ),
    }
    if problem.mask:
        sizes = [
            1 if first else size for first, size in zip(problem.mask_broadcast, (batch, heads, queries), strict=True)
        ]
        mask = random.standard_normal(
            (
                *sizes,
                keys,
            ),
            np.float32,
        )
        arrays["mask"] = mask > -1 if problem.mask == "bool" else np.where(mask > -1, mask, -np.inf)
        arrays["mask"] = arrays["mask"].astype(problem.mask)
    if problem.has_lengths:
        arrays["lengths"] = random.integers(0, keys + 1, batch)
    return arrays


def with_values_in_keys(problem: AttentionProblem, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The operands with the first columns of the keys as values; kernels get the keys in their place."""
    return {**arrays, "value": np.ascontiguousarray(arrays["key"][..., : problem.value_size])}


def room(problem: AttentionProblem, query: np.ndarray) -> np.ndarray:
    """An array for the result of a problem, of sevens."""
    batch, heads, queries, _ = query.shape
    places = (queries, heads) if problem.query_major else (heads, queries)
    return np.full((batch, *places, problem.value_size), 7, query.dtype)


def expected(problem: AttentionProblem, arrays: dict[str, np.ndarray], dtype: type | None = np.float64) -> np.ndarray:
    """The result of the standard operator, its axes in the problem's order. If the causal mask is aligned to the last
    query, the first keys are passed as the operator's cache."""
    inputs = {name: arrays[name] for name in ("query", "key", "value")}
    inputs |= {name: arrays[name] for name in ("mask", "lengths") if name in arrays}
    if problem.causal == "last":
        past = inputs["key"].shape[2] - inputs["query"].shape[2]
        for name in ("key", "value"):
            inputs[f"past_{name}"], inputs[name] = inputs[name][:, :, :past], inputs[name][:, :, past:]
    if problem.window:
        inputs["mask"] = inside_windows(problem, arrays)
    names = [name if name in inputs else "" for name in ("query", "key", "value", "mask", "past_key", "past_value")]
    names.append("lengths" if "lengths" in inputs else "")
    kinds = {"bool": "bool", "int64": "int64"}
    declared = [
        f"{kinds.get(array.dtype.name, 'float')}[{','.join(map(str, array.shape))}] {name}"
        for name, array in inputs.items()
    ]
    attributes = f"scale = {problem.scale}, is_causal = {int(problem.causal != '')}, softcap = {problem.softcap}"
    outputs = "y, present_key, present_value" if problem.causal == "last" else "y"
    text = f"""<ir_version: 10, opset_import: ["" : 24]> g ({", ".join(declared)}) => (float[] y) {{
        {outputs} = Attention <{attributes}> ({", ".join(names).rstrip(", ")}) }}"""
    floats = {name: a if a.dtype.kind in "bi" else a.astype(np.float32) for name, a in inputs.items()}
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    result = interpreter.run(model, floats, dtype=dtype)["y"]
    return result.transpose(0, 2, 1, 3) if problem.query_major else result


def inside_windows(problem: AttentionProblem, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The mask of a problem with a window: its own one, without keys before the window of each query."""
    batch, _, queries, _ = arrays["query"].shape
    keys = arrays["key"].shape[2]
    own = {"first": np.zeros(batch, int), "last": np.full(batch, keys - queries)}
    first = arrays["lengths"] - queries if problem.causal == "lengths" else own[problem.causal]
    place = first[:, None, None, None] + np.arange(queries)[:, None]
    inside = np.arange(keys) > place - problem.window
    mask = arrays.get("mask", np.ones((1, 1), bool))
    return mask & inside if mask.dtype == bool else np.where(inside, mask, -np.inf).astype(mask.dtype)


def windows() -> Iterator[AttentionProblem]:
    for causal, window in (("first", 1), ("last", 5), ("lengths", 70), ("last", 300)):
        yield dataclasses.replace(PROBLEM, causal=causal, window=window, has_lengths=causal == "lengths")
    padded = dataclasses.replace(PROBLEM, mask="bool", mask_broadcast=(False, True, True))
    yield dataclasses.replace(padded, causal="last", window=40)
    yield dataclasses.replace(padded, causal="first", window=3, mask="float32", softcap=2.0)


def variants() -> Iterator[AttentionProblem]:
    for causal in ("first", "last", "lengths"):
        is_turned = causal == "last"
        yield dataclasses.replace(PROBLEM, causal=causal, has_lengths=causal == "lengths", query_major=is_turned)
    yield dataclasses.replace(PROBLEM, has_lengths=True)
    yield dataclasses.replace(PROBLEM, softcap=2.0, causal="first")
    for mask, broadcast in (
        ("float32", ON_NONE),
        ("float32", (True, True, False)),
        ("float16", (False, False, False)),
        ("bool", (False, True, False)),
        ("bool", (True, False, True)),
    ):
        yield dataclasses.replace(PROBLEM, mask=mask, mask_broadcast=broadcast)
    yield dataclasses.replace(
        PROBLEM, mask="bool", mask_broadcast=(False, True, False), causal="lengths", has_lengths=True
    )
