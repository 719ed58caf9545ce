"""Export one block of a vision transformer with a Mixture of Experts, by default with the sizes of M3ViT's.

    python examples/vision_block/export.py vision_block.onnx

M3ViT (Liang et al., NeurIPS 2022) replaces the feed-forward part of every second block of a ViT by experts. The weights
are random, from a fixed seed: the file is for compiling and simulating, it recognises nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import numpy as np
import onnx
from onnx import numpy_helper


@dataclasses.dataclass(frozen=True)
class Sizes:
    """``slots`` of ``experts`` with ``hidden`` units work on each of ``tokens`` of ``width`` channels."""

    tokens: int = 197
    width: int = 192
    heads: int = 3
    hidden: int = 768
    experts: int = 16
    slots: int = 4


GRAPH = """
<ir_version: 10, opset_import: ["" : 23]>
vision_block (float[1,{tokens},{width}] x) => (float[1,{tokens},{width}] y) {{
    normal = LayerNormalization <axis = -1, epsilon = 1e-6> (x, norm_scale, norm_bias)
    projected = MatMul (normal, qkv)
    biased = Add (projected, qkv_bias)
    split = Reshape (biased, split_shape)
    by_part = Transpose <perm = [2, 0, 3, 1, 4]> (split)
    query = Gather <axis = 0> (by_part, first)
    key = Gather <axis = 0> (by_part, second)
    value = Gather <axis = 0> (by_part, third)
    heads = Attention (query, key, value)
    by_token = Transpose <perm = [0, 2, 1, 3]> (heads)
    attended = Reshape (by_token, token_shape)
    output = MatMul (attended, proj)
    output_biased = Add (output, proj_bias)
    stream = Add (x, output_biased)

    normal_2 = LayerNormalization <axis = -1, epsilon = 1e-6> (stream, norm_2_scale, norm_2_bias)
    tokens = Reshape (normal_2, flat_shape)
    logits = MatMul (tokens, router)
    values, ids = TopK <axis = -1> (logits, slots)
    gates = Softmax <axis = -1> (values)
    nothing = Mul (logits, zero)
    mixture = ScatterElements <axis = -1> (nothing, ids, gates)
    up = Einsum <equation = "td,edf->tef"> (tokens, up_weights)
    up_biased = Add (up, up_bias)
    hidden = Gelu (up_biased)
    down = Einsum <equation = "tef,efd->ted"> (hidden, down_weights)
    down_biased = Add (down, down_bias)
    experts = Einsum <equation = "ted,te->td"> (down_biased, mixture)
    experts_3d = Reshape (experts, token_shape)
    y = Add (stream, experts_3d)
}}
"""


def build(sizes: Sizes, seed: int = 0) -> onnx.ModelProto:
    """x[1, tokens, width] → y, of the same shape."""
    random = np.random.default_rng(seed)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return random.normal(0, scale, shape).astype(np.float32)

    d, f, E = sizes.width, sizes.hidden, sizes.experts
    weights = {
        "norm_scale": 1 + normal(d, scale=0.1),
        "norm_bias": normal(d, scale=0.1),
        "qkv": normal(d, 3 * d, scale=1.5 * d**-0.5),
        "qkv_bias": normal(3 * d, scale=0.1),
        "proj": normal(d, d, scale=d**-0.5),
        "proj_bias": normal(d, scale=0.1),
        "norm_2_scale": 1 + normal(d, scale=0.1),
        "norm_2_bias": normal(d, scale=0.1),
        "router": normal(d, E, scale=1.5 * d**-0.5),
        "up_weights": normal(E, d, f, scale=d**-0.5),
        "up_bias": normal(E, f, scale=0.1),
        "down_weights": normal(E, f, d, scale=f**-0.5),
        "down_bias": normal(E, d, scale=0.1),
        "zero": np.float32(0),
        "slots": np.array([sizes.slots]),
        "split_shape": np.array([1, sizes.tokens, 3, sizes.heads, d // sizes.heads]),
        "token_shape": np.array([1, sizes.tokens, d]),
        "flat_shape": np.array([sizes.tokens, d]),
        "first": np.array(0),
        "second": np.array(1),
        "third": np.array(2),
    }
    model = onnx.parser.parse_model(GRAPH.format(**dataclasses.asdict(sizes)))
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    onnx.checker.check_model(model)
    return model


def sample(sizes: Sizes, count: int = 1, seed: int = 1) -> np.ndarray:
    """Random tokens [count, tokens, width] for calibration."""
    return np.random.default_rng(seed).normal(size=(count, sizes.tokens, sizes.width)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "model", type=pathlib.Path, help="the ONNX file to write; x for calibration goes to FILE.npz beside it"
    )
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    arguments = vars(parser.parse_args())
    path = arguments.pop("model")
    sizes = Sizes(**arguments)
    onnx.save(build(sizes), path)
    np.savez(path.with_suffix(".npz"), x=sample(sizes))


if __name__ == "__main__":
    main()
