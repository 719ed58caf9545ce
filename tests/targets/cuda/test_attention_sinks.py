"""Attention sinks written as a further key of zeros: kernels initialise with them instead, and cached keys are not
copied."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.ir import interpreter
from moec.passes import pipeline

TEXT = """<ir_version: 10, opset_import: ["" : 24]>
g (float[B,4,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, float[B,2,P,8] pk, float[B,2,P,8] pv, float[S,N] mask,
   float[1,4,1,1] sinks) => (float[B,4,S,8] y, float[B,2,N,8] nk, float[B,2,N,8] nv)
    <int64[2] front = {1, 0}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] last = {-1}, float fill = {0.0}> {
    nk = Concat <axis = 2> (pk, k)
    nv = Concat <axis = 2> (pv, v)
    keys = Pad (nk, front, fill, two)
    values = Pad (nv, front, fill, two)
    count = Shape <start = 2, end = 3> (nk)
    behind = Concat <axis = 0> (zero, count)
    logits = Pad (sinks, behind, , last)
    rest = Pad (mask, front, , last)
    biases = Add (rest, logits)
    y = Attention (q, keys, values, biases)
}"""


def _model(text: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def feeds(new: int, past: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(past)
    shapes = {"q": (2, 4, new, 8), "k": (2, 2, new, 8), "v": (2, 2, new, 8), "pk": (2, 2, past, 8)}
    shapes |= {"pv": (2, 2, past, 8), "mask": (new, past + new), "sinks": (1, 4, 1, 1)}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def test_kernels_begin_with_them(program_of):
    program = program_of(_model(TEXT))
    kernels = {kernel.name: kernel for kernel in program.kernels}
    assert [state.input for state in program.held] == ["pk", "pv"]
    assert kernels["attention_few"].attributes["has_sinks"] and kernels["attention_tiled"].attributes["has_sinks"]
    assert not any("pad" in name or "gather" in name for name in kernels)


def test_equals_the_interpreter(emulated):
    model = _model(TEXT)
    run = emulated(model)
    for new, past in ((1, 0), (1, 300), (20, 5)):
        values = feeds(new, past)
        expected, actual = interpreter.run(model, values, dtype=np.float64), run(values)
        np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-4, atol=1e-4)


CAUSAL = """
    <int64 none = {0}, int64 one = {1}, int64 size = {SIZE}, float shown = {0.0}, float hidden = {HIDDEN}> {
    news = Shape <start = 2, end = 3> (q)
    olds = Shape <start = 2, end = 3> (pk)
    s = Squeeze (news)
    p = Squeeze (olds)
    t = Add (p, s)
    columns = Range (none, t, one)
    numbers = Range (none, s, one)
    places = Add (numbers, p)
    row = Unsqueeze (places, last)
    before = LessOrEqual (columns, row)
    far = Sub (row, size)
    inside = Greater (columns, far)
    visible = And (before, inside)
    mask = Where (visible, shown, hidden)
"""
"""The mask of a window, in the place of the input with any mask."""


def causal_model(hidden: str, size: int, logit: float = 0.5) -> ir.Model:
    """The model with a causal mask, and sinks that are constants."""
    made = CAUSAL.replace("HIDDEN", hidden).replace("SIZE", str(size))
    constants, nodes = made.split("> {", 1)
    sinks = f"float[1,4,1,1] sinks = {{{logit}, -1.0, 2.0, 0.0}}"
    text = TEXT.replace(", float[S,N] mask,\n   float[1,4,1,1] sinks)", ")")
    declared = f"float fill = {{0.0}}, {sinks},{constants.split('<', 1)[1]}"
    model = _model(text.replace("float fill = {0.0}> {", f"{declared}> {{{nodes}"))
    pipeline.run(model, pipeline.parse("fold-shapes"))
    return model


@pytest.mark.parametrize(("hidden", "size"), [("-3.4e38", 3), ("-65504.0", 2000)])
def test_a_causal_order_needs_no_mask_beside_sinks(hidden, size, emulated, program_of):
    """Whatever number hides keys: a sink has weight where all keys are hidden."""
    model = causal_model(hidden, size)
    kernels = {kernel.name: kernel for kernel in program_of(model).kernels}
    found = [kernels["attention_few"].attributes[name] for name in ("has_sinks", "causal", "window", "mask")]
    assert found == [True, "lengths", size, ""]
    run = emulated(model)
    for new, past in ((1, 300), (20, 5)):
        values = {name: value for name, value in feeds(new, past).items() if name not in ("mask", "sinks")}
        expected, actual = interpreter.run(model, values, dtype=np.float64), run(values)
        np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("hidden", "logit"), [("-3.4e38", -3.4e38), ("-100.0", 0.5)])
def test_numbers_that_leave_hidden_keys_weight_stay_in_the_mask(hidden, logit, program_of):
    model = causal_model(hidden, 3, logit)
    kernels = {kernel.name: kernel for kernel in program_of(model).kernels}
    assert (kernels["attention_few"].attributes["causal"], kernels["attention_few"].attributes["mask"]) == (
        "",
        "float32",
    )


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("fill = {0.0}", "fill = {0.5}"),
        ("front = {1, 0}", "front = {0, 1}"),
        ("float[1,4,1,1] sinks", "float[B,4,1,1] sinks"),
        ("Attention (q, keys, values, biases)", "Attention <is_causal = 1> (q, keys, values, biases)"),
    ],
)
def test_keys_that_are_no_sinks_stay(what, other, program_of):
    program = program_of(_model(TEXT.replace(what, other)))
    assert not any(kernel.attributes.get("has_sinks") for kernel in program.kernels)
