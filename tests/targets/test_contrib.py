"""onnxruntime's own operators, compiled, against onnxruntime. Variants share a model: compiling takes seconds."""

from __future__ import annotations

import numpy as np
import onnx

import moec

from ..products import thinned

HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>\ng '
E, D, F = 4, 64, 32
Arrays = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32)


def check(text: str, constants: Arrays, *cases: Arrays, tolerance: float = 2e-5) -> None:
    """Compile and compare, as a share of the largest result, for each case."""
    import onnxruntime

    proto = onnx.parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in proto.graph.output]
    model = moec.compile(proto)
    for inputs in cases:
        actual = model.run(inputs)
        for name, expected in zip(names, session.run(names, inputs), strict=True):
            scale = max(1.0, float(np.abs(expected).max(initial=0)))
            np.testing.assert_allclose(actual[name], expected, rtol=0, atol=tolerance * scale, err_msg=name)


def packed(name: str, bits: int, leading: tuple[int, ...], length: int, blocks: int, zeros: bool) -> Arrays:
    """``name_w``, ``name_s`` and ``name_z``: bytes, scales and zero points."""
    generator = np.random.default_rng(length)
    results = {
        f"{name}_w": generator.integers(0, 256, (*leading, length * bits // 8), dtype=np.uint8),
        f"{name}_s": generator.uniform(0.002, 0.004, (*leading, blocks)).astype(np.float32) * 2 ** (8 - bits),
    }
    if zeros:
        results[f"{name}_z"] = generator.integers(0, 256, (*leading, -(-blocks * bits // 8)), dtype=np.uint8)
    return results


def test_matmul_n_bits() -> None:
    """Weights of 4 and 8 bits, with and without zero points, and activations of 32 and 8 bits: any two of these."""
    constants, nodes, outputs = {}, [], []
    for bits, level, zeros in ((4, 0, False), (4, 4, True), (8, 0, True), (8, 4, False)):
        output = f"bits{bits}_level{level}_{'zeros' if zeros else 'symmetric'}"
        stored = packed(output, bits, (8,), D, 2, zeros)
        stored[f"{output}_w"] = stored[f"{output}_w"].reshape(8, 2, -1)
        attributes = f"K = {D}, N = 8, bits = {bits}, block_size = 32, accuracy_level = {level}"
        nodes.append(f"{output} = com.microsoft.MatMulNBits <{attributes}> (x, {', '.join(stored)})")
        outputs.append(f"float[B,T,8] {output}")
        constants |= stored
    text = f"(float[B,T,{D}] x) => ({', '.join(outputs)}) {{ {' '.join(nodes)} }}"
    check(text, constants, {"x": normal(1, 1, D)}, {"x": normal(2, 9, D)})


def qmoe(output: str, bits: int, block_size: int, zeros: bool) -> tuple[str, Arrays]:
    """A QMoE node and its weights; ``block_size`` 0: a scale for each row."""
    blocks = {size: size // block_size if block_size else 1 for size in (D, F)}
    up, down = f"{output}_up", f"{output}_down"
    constants = packed(up, bits, (E, 2 * F), D, blocks[D], zeros) | packed(down, bits, (E, D), F, blocks[F], zeros)
    if not block_size:  # scales of whole rows have two axes, and two of their 4-bit zero points share a byte
        for name in (up, down):
            constants[f"{name}_s"] = constants[f"{name}_s"][..., 0]
            if zeros:
                constants[f"{name}_z"] = constants[f"{name}_z"][:, :: 8 // bits, 0]
    slots = [f"{up}_w", f"{up}_s", "", f"{down}_w", f"{down}_s", "", "", "", "", f"{up}_z", f"{down}_z"]
    arguments = ", ".join(slot if slot in constants else '""' for slot in slots)
    attributes = f'k = 2, activation_type = "swiglu", swiglu_fusion = 1, expert_weight_bits = {bits}'
    attributes += f", block_size = {block_size}" if block_size else ""
    return f"{output} = com.microsoft.QMoE <{attributes}> (x, r, {arguments})", constants


def test_qmoe() -> None:
    """Weights in 4 and 8 bits, scales per row and per block, with and without zero points: every pair occurs."""
    constants, nodes, outputs = {}, [], []
    for bits, block_size, zeros in ((4, 0, True), (4, 32, False), (8, 0, False), (8, 32, True)):
        output = f"bits{bits}_blocks{block_size}_{'zeros' if zeros else 'symmetric'}"
        node, stored = qmoe(output, bits, block_size, zeros)
        nodes.append(node)
        outputs.append(f"float[T,{D}] {output}")
        constants |= stored
    text = f"(float[T,{D}] x, float[T,{E}] r) => ({', '.join(outputs)}) {{ {' '.join(nodes)} }}"
    check(text, constants, *({"x": normal(T, D), "r": normal(T, E)} for T in (1, 7, 40)))


def test_causal_convolution() -> None:
    text = "(float[B,4,L] x, float[B,4,2] past) => (float[B,4,L] y, float[B,4,2] state) { y, state = "
    text += 'com.microsoft.CausalConvWithState <activation = "silu"> (x, w, b, past) }'
    cases = [{"x": normal(2, 4, length), "past": normal(2, 4, 2)} for length in (1, 7)]
    check(text, {"w": normal(4, 1, 3), "b": normal(4)}, *cases)


@thinned("attributes", [", local_window_size = 3", "", ", softcap = 2.0"], 3)
def test_group_query_attention(attributes: str) -> None:
    """With and without sinks: a prompt, the next token, and several more."""
    operator = f"com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, do_rotary = 1{attributes}>"
    arguments = 'q, "", "", past_keys, past_values, last, total, c, s, "", ""'
    body = f"""lengths = ReduceSum <keepdims = 0> (mask, one) last = Sub (lengths, one32)
        size = Shape (mask) length = Gather <axis = 0> (size, axis) total = Cast <to = 6> (length)
        y, keys, values = {operator} ({arguments})
        with_sinks, sink_keys, sink_values = {operator} ({arguments}, sink)"""
    inputs = "float[B,S,128] q, float[B,2,P,h] past_keys, float[B,2,P,h] past_values, int32[B,T] mask"
    outputs = "float[B,S,64] y, float[B,S,64] with_sinks, float[B,2,T,h] keys, float[B,2,T,h] values"
    angles = np.arange(16)[:, None] / 10.0 ** np.arange(8)[None, :]
    constants = {"c": np.cos(angles).astype(np.float32), "s": np.sin(angles).astype(np.float32), "sink": normal(4)}
    constants |= {"one": np.array([1]), "one32": np.array(1, np.int32), "axis": np.array(1)}
    cases = [
        {
            "q": normal(B, new, 128),
            "past_keys": normal(B, 2, past, 16),
            "past_values": normal(B, 2, past, 16),
            "mask": np.ones((B, past + new), np.int32),
        }
        for B, new, past in ((2, 5, 0), (2, 1, 4), (1, 3, 4))
    ]
    check(f"({inputs}) => ({outputs}) {{ {body} }}", constants, *cases)
