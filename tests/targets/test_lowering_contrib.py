"""com.microsoft operators against moec's interpreter, with the dynamic size T at 0, 1 and more."""

from __future__ import annotations

import re

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from moec.errors import UnsupportedError
from moec.ir import interpreter

HEADER = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>\n'
CASES = {
    "BiasGelu": ("float[T,8] x, float[8] b", "float[T,8] y", "y = com.microsoft.BiasGelu(x, b)"),
    "FastGelu": ("float[T,8] x, float[8] b", "float[T,8] y", "y = com.microsoft.FastGelu(x, b)"),
    "QuickGelu": ("float[T,8] x", "float[T,8] y", "y = com.microsoft.QuickGelu<alpha = 1.5>(x)"),
    "FusedMatMul": (
        "float[T,8] x, float[6,8] w",
        "float[T,6] y",
        "y = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(x, w)",
    ),
    "SkipLayerNormalization": (
        "float[1,T,8] x, float[1,T,8] s, float[8] g, float[8] h, float[8] b",
        "float[1,T,8] y, float[1,T,8] z",
        'y, "", "", z = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(x, s, g, h, b)',
    ),
    "SkipSimplifiedLayerNormalization": (
        "float[1,T,8] x, float[1,T,8] s, float[8] g",
        "float[1,T,8] y, float[1,T,8] z",
        'y, "", "", z = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.001>(x, s, g)',
    ),
}


def _random(declaration: str, tokens: int, generator: np.random.Generator) -> tuple[str, np.ndarray]:
    sizes, name = re.fullmatch(r"float\[(.*)\] (\w+)", declaration).groups()
    return name, generator.standard_normal([tokens if s == "T" else int(s) for s in sizes.split(",")]).astype("float32")


@pytest.mark.parametrize("case", CASES)
def test_equals_the_interpreter(case, program_of, runner_of):
    inputs, outputs, body = CASES[case]
    text = f"agraph ({inputs}) => ({outputs}) {{\n {body}\n}}"
    run = runner_of(program_of(text))
    for tokens in (0, 1, 5):
        generator = np.random.default_rng(tokens)
        values = dict(_random(one, tokens, generator) for one in re.split(r", (?=[a-z])", inputs))
        expected = interpreter.run(ir.from_proto(onnx.parser.parse_model(HEADER + text)), values)
        result = run(values)
        for name, array in expected.items():
            np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-5, err_msg=f"{name}, {tokens} tokens")


def test_a_used_mean_is_refused(program_of):
    text = """agraph (float[1,T,8] x, float[8] g) => (float[1,T,8] y, float[1,T,1] m) {
        y, m = com.microsoft.SkipSimplifiedLayerNormalization(x, x, g)
    }"""
    with pytest.raises(UnsupportedError, match="mean or inverse deviation"):
        program_of(text)
