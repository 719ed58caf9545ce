"""Profiles of layers for tests, as if every expert had seen inputs of its own."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir import dialect, semantics
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.ir.expert_weights import ExpertWeights
from moec.ir.weight_operands import weight_inputs
from moec.passes.framework.shorthand import parse_format
from moec.passes.graph.router_product import router_product
from moec.passes.weights.expert_set import expert_sets
from moec.profiles.file import Head, LayerEntry, Profile, held_arrays, write_profile
from moec.profiles.keys import key_of, measurable
from moec.profiles.measures import packed
from moec.tools.profiling.sums import ExpertsSums

from .stored_weights import last_moec_node

Array = np.ndarray[Any, Any]


def rows_of(inputs: int, count: int, seed: int = 1) -> Array:
    """Inputs [count,in] in float32 as layers have them: of few directions, in channels of different sizes."""
    random, channels = np.random.default_rng(seed), np.random.default_rng(2)
    mixing, sizes = channels.normal(size=(inputs // 8, inputs)), np.exp(0.5 * channels.normal(size=inputs))
    hidden = random.normal(size=(count, inputs // 8)) @ mixing / np.sqrt(inputs // 8)
    return ((hidden + 0.3 * random.normal(size=(count, inputs))) * sizes).astype(np.float32)


def hidden_of(node: ir.Node, expert: int, rows: Array) -> Array:
    """The hidden units [n,f] of an expert for given rows; zeros for units that it does not have."""
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    own = {
        name: None if value is None or value.const_value is None else value.const_value.numpy()[expert]
        for name, value in inputs.items()
        if name in dialect.EXPERT_WEIGHTS
    }
    hidden = semantics.activated(spec, *semantics.projections_in(spec, rows, own))
    if spec.hidden_sizes:
        hidden[:, spec.hidden_sizes[expert] :] = 0
    return hidden


def write_experts(
    path: pathlib.Path,
    model: ir.Model,
    counts: list[int],
    moments: bool = True,
    sampled: int = 0,
    counted: bool = False,
) -> pathlib.Path:
    """The profile of the last node, whose expert e saw ``counts[e]`` rows, made with seed e. ``sampled``: tokens of the
    layer that are known beside them; ``counted``: whether it says how many tokens came to each expert."""
    node = last_moec_node(model)
    weights, key, arrays = ExpertWeights(node), key_of(node), []
    sizes = {"inner": weights.inner, "experts": weights.experts, "hidden": weights.hidden, "k": 1}
    for expert, count in enumerate(counts):
        rows = rows_of(weights.inner, count, expert)
        hidden = hidden_of(node, expert, rows)
        arrays.append((f"rows/{expert}", rows[:64]))
        if moments:
            arrays.append((f"moment_in/{expert}", packed(rows.T @ rows)))
            arrays.append((f"moment_hidden/{expert}", packed(hidden.T @ hidden)))
    arrays += [("measured", np.array(counts)), *([("count", np.array(counts))] if counted else [])]
    arrays.append(("sample", rows_of(weights.inner, sampled, len(counts))))
    arrays.append(("sample_gates", np.ones((sampled, len(counts)), np.float32)))
    layer = LayerEntry(key, "experts", "layer", tokens=sum(counts), parts=weights.parts, **sizes)
    return _written(path, layer, [(f"{key}/{name}", array) for name, array in arrays])


def write_linear(path: pathlib.Path, model: ir.Model, count: int) -> pathlib.Path:
    """The profile of the last node, a Linear of 128 inputs that saw ``count`` rows."""
    node = last_moec_node(model)
    inner = 128
    assert inner in weight_inputs(node)["weight"].shape  # type: ignore[operator]
    rows = rows_of(inner, count)
    arrays = {"rows": rows[:256], "moment_in": packed(rows.T @ rows), "measured": np.array(count)}
    layer = LayerEntry(key_of(node), "linear", "layer", inner=inner, tokens=count, input=0)
    return _written(path, layer, [(f"input0/{name}", array) for name, array in arrays.items()])


def write_gates(
    path: pathlib.Path,
    model: ir.Model,
    gates: Sequence[Array],
    norms: Sequence[float] | None = None,
    k: int = 2,
    tokens: Sequence[int] | None = None,
) -> pathlib.Path:
    """The profile of all layers of experts as far as routing goes. Of each layer: ``gates`` [n,E] of a sample, the mean
    norm of what its experts return, by default 1, and the tokens that there were, by default n."""
    layers, arrays = [], []
    reported = zip(gates, norms or [1.0] * len(gates), tokens or [len(own) for own in gates], strict=True)
    for node, (own, norm, count) in zip(measurable(model.graph), reported, strict=True):
        key, weights = key_of(node), ExpertWeights(node)
        measured = np.full(weights.experts, len(own))
        results = {"measured": measured, "output_norm": norm * measured, "sample_gates": own.astype(np.float32)}
        arrays += [(f"{key}/{name}", array) for name, array in results.items()]
        sizes = (count, weights.experts, k, weights.hidden, weights.parts)
        layers.append(LayerEntry(key, "experts", "layer", weights.inner, *sizes))
    write_profile(path, Head({"name": "m.onnx", "sha256": "00"}, [], "O2", [], layers), arrays)
    return path


def _written(path: pathlib.Path, layer: LayerEntry, arrays: list[tuple[str, Array]]) -> pathlib.Path:
    write_profile(path, Head({"name": "m.onnx", "sha256": "00"}, [], "O2", [], [layer]), arrays)
    return path


def write_measured(
    path: pathlib.Path, model: ir.Model, formats: str, tokens: int = 96, moments: bool = True
) -> pathlib.Path:
    """The profile of all layers of experts, as if random tokens had come to each; the last expert sees none."""
    forms = [parse_format("formats", part) for part in formats.split("+")]
    layers, arrays = [], []
    with tempfile.TemporaryDirectory() as folder:
        for node in measurable(model.graph):
            key, weights = key_of(node), ExpertWeights(node)
            sums = ExpertsSums(node, 2, pathlib.Path(folder), key, moments)
            logits = np.random.default_rng(0).normal(size=(tokens, weights.experts - 1)).astype(np.float32)
            sums.add(rows_of(weights.inner, tokens), *semantics.route(RouteSpec(2), logits))
            arrays += [(f"{key}/{name}", array) for name, array in sums.arrays(forms)]
            sizes = (weights.inner, tokens, weights.experts, 2, weights.hidden, weights.parts)
            layers.append(LayerEntry(key, "experts", "layer", *sizes))
        write_profile(path, Head({"name": "m.onnx", "sha256": "00"}, [], "O2", formats.split("+"), layers), arrays)
    return path


def write_routed(path: pathlib.Path, model: ir.Model, tokens: int = 512) -> pathlib.Path:
    """The profile of all layers of experts whose logits are a product of their tokens, which go where these say."""
    layers, arrays = [], []
    with tempfile.TemporaryDirectory() as folder:
        for experts in expert_sets(model.graph):
            node, spec, weights, key = experts.node, experts.routing, experts.weights, key_of(experts.node)
            x = dialect.inputs_of(node)["x"]
            router = None if x is None else router_product(experts.logits, x)
            assert router is not None
            sums, rows = (
                ExpertsSums(node, spec.k, pathlib.Path(folder), key, moments=True),
                rows_of(weights.inner, tokens),
            )
            sums.add(rows, *semantics.route(spec, router(rows)))
            arrays += [(f"{key}/{name}", array) for name, array in sums.arrays([])]
            sizes = (weights.inner, tokens, weights.experts, spec.k, weights.hidden, weights.parts)
            layers.append(LayerEntry(key, "experts", "layer", *sizes))
        write_profile(path, Head({"name": "m.onnx", "sha256": "00"}, [], "O2", [], layers), arrays)
    return path


def with_held_back(path: pathlib.Path, batches: Sequence[dict[str, Array]], output: str) -> pathlib.Path:
    """The same profile with data that was held back, to judge by an output."""
    profile = Profile.read(path)
    arrays = {name: profile.array(name) for name in profile.names()}
    head = dataclasses.replace(profile.head, inputs=list(batches[0]), output=output)
    arrays |= dict(held_arrays(batches, head.inputs))
    write_profile(path, head, ((name, array) for name, array in arrays.items() if array is not None))
    return path


def with_measures(path: pathlib.Path, *layers: dict[str, Array]) -> pathlib.Path:
    """The same profile with other arrays, of each layer some."""
    profile = Profile.read(path)
    arrays = {name: profile.array(name) for name in profile.names()}
    for layer, others in zip(profile.all_experts(), layers, strict=True):
        arrays |= {f"{layer.key}/{name}": array for name, array in others.items()}
    write_profile(path, profile.head, ((name, array) for name, array in arrays.items() if array is not None))
    return path
