"""Products of the same rows give the same bits as one product and apart: each column is summed in the same order."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx.parser
import pytest

import moec
from moec.runtime.artifact import open_artifact

pytestmark = pytest.mark.nightly

RANDOM = np.random.default_rng(0)
TOKENS = (0, 1, 3, 64)
WEIGHTS = {"q": (64, 64), "k": (64, 32), "v": (64, 32), "gate": (64, 96), "up": (64, 96)}
BODY = """
    q = MatMul (x, {q}) k = MatMul (x, {k}) v = MatMul (x, {v})
    qr = Reshape (q, heads) kr = Reshape (k, heads) vr = Reshape (v, heads)
    qt = Transpose <perm = [1, 0, 2]> (qr) kt = Transpose <perm = [1, 0, 2]> (kr) vt = Transpose <perm = [1, 0, 2]> (vr)
    g = MatMul (x, {gate}) u = MatMul (x, {up}) s = Sigmoid (g) h = Mul (s, u)
"""


def model(dtype: str, *, in_bytes: bool) -> onnx.ModelProto:
    """Queries, keys and values in heads, and gate times up, of rows [T, 64]."""
    declared, made = [], ""
    for name, (rows, columns) in WEIGHTS.items():
        if in_bytes:
            declared += [f"int8[{rows},{columns}] {name}c", f"{dtype}[{rows // 32},{columns}] {name}s"]
            made += f"{name}w = DequantizeLinear <axis = 0, block_size = 32> ({name}c, {name}s) "
        else:
            declared.append(f"{dtype}[{rows},{columns}] {name}w")
    body = made + BODY.format(**{name: f"{name}w" for name in WEIGHTS})
    results = ", ".join(f"{dtype}[H{name},T,16] {name}t" for name in "qkv")
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 24]> g ({dtype}[T,64] x) => ({results}, {dtype}[T,96] h)'
        f" <int64[3] heads = {{0, -1, 16}}, {', '.join(declared)}> {{ {body} }}"
    )
    for value in [each for each in proto.graph.value_info if each.name[:-1] in WEIGHTS]:
        kind = value.type.tensor_type
        numpy_type = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [size.dim_value for size in kind.shape.dim]
        numbers = RANDOM.integers(-99, 99, shape) if numpy_type == np.int8 else RANDOM.normal(0, 0.1, shape)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(numbers.astype(numpy_type), value.name))
    return proto


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90a"])
@pytest.mark.parametrize(("dtype", "in_bytes"), [("float", False), ("float16", False), ("float16", True)])
def test_joined_products_keep_their_bits(
    without_nvcc: None, tmp_path: pathlib.Path, target: str, dtype: str, in_bytes: bool
):
    proto, results, counts = model(dtype, in_bytes=in_bytes), [], []
    for passes in ("O2", "O2,join-products"):
        path = tmp_path / str(len(counts))
        moec.compile(proto, target=target, passes=passes, output=path, emulate=True)
        kernels = open_artifact(path).program().kernels
        counts.append(
            sum(kernel["calls"] for kernel in kernels if "MatMul" in kernel["op"] or "Linear" in kernel["op"])
        )
        run = moec.load(path, emulate=True).run
        results.append([run({"x": _rows(T, dtype)}) for T in TOKENS])
    assert counts[1] < counts[0]
    for apart, joined in zip(*results, strict=True):
        assert apart.keys() == joined.keys()
        for name, values in apart.items():
            assert values.tobytes() == joined[name].tobytes(), name


def _rows(T: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(T).normal(size=(T, 64)).astype({"float": np.float32}.get(dtype, np.float16))
