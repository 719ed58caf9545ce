"""The parts of experts, whichever operand holds them, in every layout and in several formats."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, GateLayout
from moec.ir.expert_weights import ExpertWeights
from moec.ir.weights import stored as stored_module
from moec.ir.weights.encode import decode, encode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stacks import expert_data
from moec.ir.weights.stored import decoding_node

E, D, F, OUT = 3, 6, 4, 5
FORMATS = [WeightFormat("float32"), WeightFormat("int8"), WeightFormat("int4", 2), WeightFormat("int4", 4, True)]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape).astype(np.float32)


PARTS = {"gate": numbers(E, D, F), "up": numbers(E, D, F) + 3, "down": numbers(E, F, OUT)}
BIASES = {"gate": numbers(E, F), "up": numbers(E, F) + 3, "down": numbers(E, OUT)}


def both(layout: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Gate and up along the last axis."""
    if layout == "interleaved":
        return np.stack([gate, up], axis=-1).reshape(*gate.shape[:-1], -1)
    return np.concatenate([gate, up] if layout == "gate_up" else [up, gate], axis=-1)


def stored(array: np.ndarray, form: WeightFormat, transposed: bool) -> ir.Value:
    """The operand of matrices [E, in, out], which stay so where ``transposed``."""
    array = array if transposed else np.ascontiguousarray(array.swapaxes(1, 2))
    axis = 1 if transposed else 2
    if not form.quantized:
        return constant(array)
    data, scale, zero_point = (part if part is None else constant(part) for part in encode(array, form, axis)[:3])
    return decoding_node(form, data, scale, zero_point, axis, ir.DataType.FLOAT).outputs[0]


def constant(array: np.ndarray) -> ir.Value:
    value = ir.Value(name="w", shape=ir.Shape(array.shape), const_value=ir.tensor(array, name="w"))
    value.dtype = value.const_value.dtype
    return value


def experts_node(spec: ExpertsSpec, form: WeightFormat, **inputs: ir.Value) -> ir.Node:
    layout = spec.gate_layout
    operands = {"up": PARTS["up"], "up_bias": BIASES["up"]}
    if layout == "separate":
        operands |= {"gate": PARTS["gate"], "gate_bias": BIASES["gate"]}
    elif spec.gated:
        operands = {"up": both(layout, PARTS["gate"], PARTS["up"])}
        operands["up_bias"] = both(layout, BIASES["gate"], BIASES["up"])
    feeds = {
        name: constant(array) if name.endswith("bias") else stored(array, form, spec.up_transposed)
        for name, array in operands.items()
    }
    feeds["down"] = stored(PARTS["down"], form, spec.down_transposed)
    feeds["down_bias"] = constant(BIASES["down"])
    tokens = {name: ir.Value(name=name) for name in ("x", "weights", "experts")}
    return dialect.make_node("Experts", {**tokens, **feeds, **inputs}, spec)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["out_in", "in_out"])
@pytest.mark.parametrize("layout", get_args(GateLayout))
def test_parts_are_the_same_in_every_layout(layout, transposed, form):
    spec = ExpertsSpec(gate_layout=layout, up_transposed=transposed, down_transposed=not transposed)
    weights = ExpertWeights(experts_node(spec, form))
    assert (weights.experts, weights.inner, weights.hidden, weights.width) == (E, D, F, OUT)
    assert weights.parts == (("up", "down") if layout == "none" else ("gate", "up", "down"))
    for part in weights.parts:
        for expert in (1, 0, 2):
            expected = PARTS[part][expert]
            rounded = decode(encode(expected, form, 0), form, 0) if form.quantized else expected
            np.testing.assert_array_equal(weights.decoded(part, expert), rounded)
            np.testing.assert_array_equal(weights.encoded(part, expert).data, encode(expected, form, 0).data)
        np.testing.assert_array_equal(weights.bias(part), BIASES[part])


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("layout", ["none", "separate", "interleaved"])
def test_units_that_an_expert_does_not_have_are_zeros(layout, form):
    sizes = (2, 4, 1)
    weights = ExpertWeights(experts_node(ExpertsSpec(gate_layout=layout, hidden_sizes=sizes), form))
    assert weights.sizes == sizes
    for part in weights.parts:
        for expert, size in enumerate(sizes):
            own, whole = weights.decoded(part, expert), decode(weights.encoded(part, expert), form, 0)
            if part != "down":
                own, whole = own.T, whole.T
            np.testing.assert_array_equal(own[:size], whole[:size])
            assert not own[size:].any() and whole[size:].any() == (size < F)


def test_experts_of_several_formats_are_read_each_in_its_own():
    runs = [stored(PARTS["down"][e : e + 1], form, False) for e, form in enumerate(FORMATS[:E])]
    down = ir.node("Concat", runs, {"axis": 0}).outputs[0]
    weights = ExpertWeights(experts_node(ExpertsSpec(gate_layout="none"), FORMATS[0], down=down))
    assert weights.operand("down").formats == FORMATS[:E]
    for expert, form in enumerate(FORMATS[:E]):
        expected = encode(PARTS["down"][expert], form, 0)
        np.testing.assert_array_equal(weights.decoded("down", expert), decode(expected, form, 0))


@pytest.mark.parametrize("layout", ["separate", "gate_up"])
def test_each_table_of_an_operand_is_read_once_for_all_parts_of_an_expert(layout, monkeypatch):
    weights = ExpertWeights(experts_node(ExpertsSpec(gate_layout=layout), FORMATS[3]))
    read: list[tuple[str | None, int]] = []
    monkeypatch.setattr(stored_module, "expert_data", lambda v, e: read.append((v.name, e)) or expert_data(v, e))
    for expert in range(E):
        for part in weights.parts:
            weights.decoded(part, expert)
            weights.encoded(part, expert).scale, weights.encoded(part, expert).scale
    assert len(read) == 3 * E * len(weights.operands)  # data, scales and zero points


def test_threads_that_read_different_experts_do_not_mix_them_up(monkeypatch):
    """A second thread reads expert 2 while the first is about to keep the matrix of expert 1."""
    weights = ExpertWeights(experts_node(ExpertsSpec(gate_layout="none"), FORMATS[0]))
    read, others = type(weights.operands["down"]).encoded, []

    def interrupted(operand, expert, transposed):
        matrix = read(operand, expert, transposed)
        if expert == 1:
            others.append(weights.decoded("down", 2))
        return matrix

    monkeypatch.setattr(type(weights.operands["down"]), "encoded", interrupted)
    first, second = (weights.decoded("down", expert) for expert in (1, 2))
    for actual, expert in ((first, 1), (others[0], 2), (second, 2)):
        np.testing.assert_array_equal(actual, PARTS["down"][expert])


def test_what_is_computed_when_the_model_runs_cannot_be_read():
    spec = ExpertsSpec(gate_layout="none")
    with pytest.raises(UnsupportedError, match="expected a constant"):
        ExpertWeights(experts_node(spec, FORMATS[0], up=ir.Value(name="computed")))
    weights = ExpertWeights(experts_node(spec, FORMATS[0], up_bias=ir.Value(name="computed")))
    with pytest.raises(UnsupportedError, match="up_bias is computed at run time"):
        weights.bias("up")


def test_no_kernel_computes_in_float64():
    node = experts_node(
        ExpertsSpec(gate_layout="none"), FORMATS[0], down=constant(numbers(E, OUT, F).astype(np.float64))
    )
    with pytest.raises(UnsupportedError, match="weights are float64; expected"):
        ExpertWeights(node).decoded("down", 0)
