"""The smallest model of tokens that has what profiles, plans and sweeps are about."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import onnx.parser

WIDTH, UNITS, VOCABULARY = 64, 48, 96
MODEL = f"""<ir_version: 10, opset_import: ["" : 21, "moec" : 1]>
model (int64[batch,seq] ids) => (float[batch,seq,{VOCABULARY}] y) {{
    embedded = Gather (table, ids)
    width = Constant <value_ints = [-1, {WIDTH}]> ()
    x0 = Reshape (embedded, width)
    logits0 = MatMul (x0, router0)
    m0 = moec.MoE <k = 2, gate_layout = "separate"> (x0, logits0, , up0, down0, gate0)
    x1 = Add (x0, m0)
    logits1 = MatMul (x1, router1)
    m1 = moec.MoE <k = 2, gate_layout = "separate"> (x1, logits1, , up1, down1, gate1)
    x2 = Add (x1, m1)
    shape = Shape (embedded)
    last = Reshape (x2, shape)
    y = MatMul (last, head)
}}"""


def language_model(path: pathlib.Path, width: int = WIDTH, units: int = UNITS, rows: int = VOCABULARY) -> pathlib.Path:
    """Writes a model of tokens without attention: two layers of eight experts, of which each token takes two. ``rows``:
    of the table of embeddings."""
    text = MODEL.replace(f"-1, {WIDTH}]", f"-1, {width}]")
    proto, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {"table": (rows, width), "head": (width, VOCABULARY)}
    for layer in "01":
        shapes |= {f"router{layer}": (width, 8), f"down{layer}": (8, width, units)}
        shapes |= {f"{name}{layer}": (8, units, width) for name in ("gate", "up")}
    for name, shape in shapes.items():
        array = random.normal(size=shape, scale=2 / np.sqrt(shape[-1])).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return path


def some_tokens(path: pathlib.Path) -> pathlib.Path:
    """Writes data for it: four texts of 97 tokens."""
    np.savez(path, ids=np.random.default_rng(0).integers(0, VOCABULARY, (4, 97)))
    return path
