"""Equal layers: their kernels are built once, and programs that differ in their weights alone share their code."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tvm.script.ir_builder import IRBuilder

from moec import targets
from moec.targets.base import Program, Target
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.target import converters
from moec.targets.tvm.lowering.lowering import lower
from moec.targets.tvm.onnx.converters import all_converters

EXPERTS, HIDDEN = 4, 24


def layers(*widths: int, seed: int = 0, activation: str = "silu") -> ir.Model:
    """Layers of experts one after the other, of rows of 16 numbers; ``widths``: of the hidden rows of each."""
    random, constants, lines = np.random.default_rng(seed), {}, []
    for at, width in enumerate(widths):
        shapes = {"up": (EXPERTS, width, 16), "down": (EXPERTS, 16, width), "router": (16, EXPERTS)}
        constants |= {f"{name}{at}": random.normal(size=shape).astype("f") for name, shape in shapes.items()}
        lines.append(f"logits{at} = MatMul (x{at}, router{at})")
        options = f'<k = 2, gate_layout = "none", activation = "{activation}">'
        lines.append(f"x{at + 1} = moec.MoE {options} (x{at}, logits{at}, , up{at}, down{at})")
    header = '<ir_version: 10, opset_import: ["" : 21, "moec" : 1]>'
    body = "\n".join(lines)
    proto = onnx.parser.parse_model(f"{header} g (float[T,16] x0) => (float[T,16] x{len(widths)}) {{ {body} }}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(proto)


@pytest.fixture(scope="module")
def target() -> Target:
    return targets.get_all("cpu:avx2")[0]


@pytest.fixture(scope="module")
def program(target) -> Program:
    return compiled(target, layers(HIDDEN))


def compiled(target: Target, model: ir.Model) -> Program:
    program = target.compile(model)
    assert isinstance(program, Program) and program.host is not None
    return program


def test_kernels_of_equal_layers_are_built_once(monkeypatch):
    count, begin = [0], IRBuilder.__init__
    table = all_converters(converters(Machine.for_name("avx2")))

    def counted(builder: IRBuilder) -> None:
        count[0] += 1
        begin(builder)

    def built(*widths: int) -> int:
        before = count[0]
        lower(layers(*widths), table)
        return count[0] - before

    monkeypatch.setattr(IRBuilder, "__init__", counted)
    built(8)  # also what does not depend on the width
    assert built(56, 56, 56) == built(72) > 0
    assert built(88, 104) == 2 * built(120)


def test_programs_that_differ_in_their_weights_share_their_code(target, program):
    other = compiled(target, layers(HIDDEN, seed=1))
    assert other.host() is program.host()
    assert other.objects == program.objects
    pairs = zip(program.weights, other.weights, strict=True)
    assert any(not np.array_equal(first.array(), second.array()) for first, second in pairs)


def test_programs_of_another_formula_have_code_of_their_own(target, program):
    other = compiled(target, layers(HIDDEN, activation="gelu"))
    assert other.host() is not program.host()
    assert other.objects != program.objects
