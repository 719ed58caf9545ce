"""GroupQueryAttention against onnxruntime: prompt and decoding, packed inputs, rotation, window, sinks."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.ir.contrib_attention import group_query_attention
from moec.ir.interpreter import run

B, H, KV, h, LIMIT = 2, 4, 2, 16, 16
TYPES = {np.dtype(np.float32): "float", np.dtype(np.int32): "int32"}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32)


def inputs_for(new: int, past: int, packed: bool, rotary: bool, sink: bool) -> dict[str, np.ndarray]:
    angles = np.arange(LIMIT)[:, None] / 10.0 ** np.arange(h // 2)[None, :]
    inputs = {"q": normal(B, new, (H + 2 * KV) * h)} if packed else {"q": normal(B, new, H * h)}
    if not packed:
        inputs |= {"k": normal(B, new, KV * h), "v": normal(B, new, KV * h) * 2}
    inputs |= {"pk": normal(B, KV, past, h), "pv": normal(B, KV, past, h) * 2}
    inputs |= {"last": np.full(B, new + past - 1, np.int32), "total": np.array(new + past, np.int32)}
    if rotary:
        inputs |= {"c": np.cos(angles).astype(np.float32), "s": np.sin(angles).astype(np.float32)}
    if sink:
        inputs["sink"] = normal(H)
    return inputs


@pytest.mark.parametrize("new, past", [(5, 0), (1, 4)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "attributes, rotary, sink",
    [
        ("", False, False),
        (", scale = 0.3, local_window_size = 3", False, False),
        (", do_rotary = 1", True, False),
        (", do_rotary = 1, rotary_interleaved = 1, local_window_size = 2", True, True),
    ],
)
def test_against_onnxruntime(new: int, past: int, packed: bool, attributes: str, rotary: bool, sink: bool) -> None:
    import onnxruntime

    inputs = inputs_for(new, past, packed, rotary, sink)
    slots = ["q", "k", "v", "pk", "pv", "last", "total", "c", "s", "", "", "sink"]
    names = ", ".join(name if name in inputs else '""' for name in slots)
    arguments = ", ".join(
        TYPES[array.dtype] + (f"[{','.join(str(size) for size in array.shape)}]" if array.ndim else "") + f" {name}"
        for name, array in inputs.items()
    )
    header = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
    operator = f"com.microsoft.GroupQueryAttention <num_heads = {H}, kv_num_heads = {KV}{attributes}>"
    text = f"{header}\ng ({arguments}) => (float[] y, float[] nk, float[] nv)\n{{ y, nk, nv = {operator} ({names}) }}"
    proto = onnx.parser.parse_model(text)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(["y", "nk", "nv"], inputs)
    actual = run(ir.from_proto(proto), inputs)
    for name, array in zip(("y", "nk", "nv"), expected, strict=True):
        np.testing.assert_allclose(actual[name], array, atol=1e-5)


def test_what_is_not_supported_is_refused() -> None:
    q, none, ones = normal(B, 1, (H + 2 * KV) * h), None, np.zeros(B, np.int32)
    with pytest.raises(NotImplementedError, match="softcap"):
        group_query_attention(q, none, none, none, none, ones, np.array(1), num_heads=H, kv_num_heads=KV, softcap=1.0)
