"""Operators that round activations at run time, and the formats that they round to."""

import onnx
import onnx_ir as ir
import pytest

from moec.ir.rounding import arithmetics_of

DOMAINS = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "moec" : 1]>'
BITS = "com.microsoft.MatMulNBits <K = 32, N = 4, bits = 4, block_size = 32"
QMOE = "com.microsoft.QMoE <k = 1"
FOUND = {
    f"y = {BITS}, accuracy_level = 4> (x, bytes, scales)": {"int8"},
    f"y = {BITS}, accuracy_level = 4> (x, bytes, scales, bytes)": {"int8"},
    f"y = {BITS}, accuracy_level = 4> (x, bytes, scales, scales)": set(),
    f"y = {BITS}> (x, bytes, scales)": set(),
    f"y = {QMOE}, expert_weight_bits = 8, block_size = 32> (x, x, bytes, scales)": {"int8"},
    f"y = {QMOE}, expert_weight_bits = 8> (x, x, bytes, scales)": set(),
    f"y = {QMOE}, expert_weight_bits = 4, block_size = 32> (x, x, bytes, scales)": set(),
    'y = moec.Linear <arithmetic = "fp8", activation_group = 128> (x, x)': {"fp8"},
    'y = moec.MoE <arithmetic = "tf32", k = 1> (x, x, , x, x)': {"tf32"},
    "y = moec.Linear (x, x)": set(),
    "y = moec.RoundRows (x)": {"int8"},
    "q, step, zero = DynamicQuantizeLinear (x) y = DequantizeLinear (q, step, zero)": {"int8"},
    "q = QuantizeLinear (x, scale, point) y = DequantizeLinear (q, scale, point)": {"int8"},
    "q = QuantizeLinear (scales, scale, point) y = DequantizeLinear (q, scale, point)": set(),
    "q = Cast <to = 17> (x) y = Cast <to = 1> (q)": {"fp8"},
    "q = Cast <to = 10> (x) y = Cast <to = 1> (q)": set(),
    "q = Cast <to = 9> (x) y = Cast <to = 1> (q)": set(),
}
BYTES = ", ".join("0" * 64)
STORED = f"uint8[4,1,16] bytes = {{{BYTES}}}, float[4] scales = {{1, 2, 3, 4}}"
CONSTANTS = f"<{STORED}, float scale = {{2}}, uint8 point = {{0}}>"


@pytest.mark.parametrize("body", FOUND)
def test_what_rounds_activations(body):
    text = f"{DOMAINS} g (float[4,32] x) => (float[4,32] y) {CONSTANTS} {{ {body} }}"
    model = ir.from_proto(onnx.parser.parse_model(text))
    for node in model.graph:
        if "Quantize" in node.op_type or node.op_type == "Cast":
            node.outputs[0].dtype = ir.DataType(node.attributes.get_int("to", ir.DataType.UINT8))
    assert arithmetics_of(model) == FOUND[body]
