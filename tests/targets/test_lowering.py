"""Lowering of whole models: sizes, constants, kernels, refusals."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from moec import targets
from moec.common.errors import InputError, MoecError, UnsupportedError
from moec.targets.tvm.lowering.lowering import Lowering
from moec.targets.tvm.onnx.converters import all_converters

HEADER = '<ir_version: 10, opset_import: ["" : 24, "custom" : 3]>\n'


def model_of(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HEADER + text))


def lowered(text: str):
    return Lowering(model_of(text), all_converters({})).run()


def calls(module) -> list[str]:
    return [line.split("=")[1].strip() for line in module["main"].script().splitlines() if "call_tir" in line]


def test_all_unknown_operators_are_listed_with_node_domain_and_opset():
    text = """agraph (float[T,4] x) => (float[T,4] y) {
        [first] a = custom.Strange(x)
        [second] b = custom.Strange(a)
        [third] c = Unique(b)
        [last] y = Neg(c)
    }"""
    with pytest.raises(UnsupportedError) as caught:
        lowered(text)
    message = str(caught.value)
    assert "3 node(s)" in message
    assert "Strange (domain 'custom', opset 3, first at node 'first')" in message
    assert "Unique (domain 'ai.onnx', opset 24, first at node 'third')" in message
    assert "Neg" not in message


def test_a_refused_node_is_named():
    text = """agraph (float[T,4] x) => (float[T,4] y) {
        p = Constant<value_ints = [1, 0, 1, 0]>()
        [padding] y = Pad<mode = "mirror">(x, p)
    }"""
    with pytest.raises(UnsupportedError, match=r"node 'padding' \(Pad\): Pad mode 'mirror'"):
        lowered(text)


def test_shape_arithmetic_makes_no_kernels():
    text = """agraph (float[B,S,6] x) => (float[B,S,2,3] y) {
        s = Shape<start = 0, end = 2>(x)
        h = Constant<value_ints = [2, -1]>()
        t = Concat<axis = 0>(s, h)
        minus = Constant<value_ints = [-1]>()
        one = Constant<value_ints = [1]>()
        absent = Equal(t, minus)
        u = Where(absent, minus, t)
        r = Reshape(x, u)
        y = Neg(r)
    }"""
    result = lowered(text)
    assert len(calls(result.module)) == 1
    assert result.outputs[0].shape == ("B", "S", 2, 3)


def test_equal_kernels_are_generated_once():
    text = """agraph (float[T,4] x) => (float[T,4] y) {
        a = Neg(x)
        b = Neg(a)
        y = Neg(b)
    }"""
    module = lowered(text).module
    assert len(calls(module)) == 3
    assert len(module.functions) == 2


def test_a_large_constant_is_one_weight_and_a_small_one_is_none():
    numbers = ", ".join(["1.5"] * 40)
    text = f"""agraph (float[T,40] x) => (float[T,40] y) <float[40] big = {{{numbers}}}, float[1] small = {{2.0}}> {{
        a = Add(x, big)
        b = Mul(a, small)
        y = Add(b, big)
    }}"""
    result = lowered(text)
    assert [(weight.name, weight.shape, weight.dtype) for weight in result.weights] == [("big", (40,), "float32")]
    np.testing.assert_array_equal(result.weights[0].array(), np.full(40, 1.5, np.float32))


def test_sizes_that_differ_at_run_time_are_an_error(program_of, runner_of):
    run = runner_of(program_of("agraph (float[A,4] x, float[B,4] w) => (float[A,4] y) { y = Add(x, w) }"))
    three, two = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run({"x": three, "w": three})["y"], three + three)
    with pytest.raises(InputError):
        run({"x": three, "w": two})


def test_outputs_share_no_memory_with_inputs(program_of, runner_of):
    text = """agraph (float[T,4] x) => (float[T,4] same, float[T,2,2] view) {
        same = Identity(x)
        s = Constant<value_ints = [-1, 2, 2]>()
        view = Reshape(x, s)
    }"""
    run = runner_of(program_of(text))
    x = np.ones((64, 4), np.float32)
    outputs = run({"x": x})
    for output in outputs.values():
        assert not np.shares_memory(output, x)


def test_indices_out_of_range_touch_no_foreign_memory(program_of, runner_of):
    text = """agraph (float[5,4] x, int64[T] i, float[T,4] u) => (float[T,4] read, float[5,4] written) {
        read = Gather(x, i)
        a = Constant<value_ints = [1]>()
        r = Unsqueeze(i, a)
        written = ScatterND(x, r, u)
    }"""
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    indices = np.array([10**12, -(10**12), 4])
    outputs = runner_of(program_of(text))({"x": x, "i": indices, "u": np.full((3, 4), -1, np.float32)})
    np.testing.assert_array_equal(outputs["read"], x[[4, 0, 4]])
    np.testing.assert_array_equal(outputs["written"], [*x[:4], np.full(4, -1)])


def test_kernels_carry_their_sources(program_of):
    program = program_of("agraph (float[T,40] x) => (float[T,40] y) { a = Exp(x) y = Neg(a) }")
    (kernel,) = program.kernels
    assert "T.exp" in kernel.sources["tir"]
    assert kernel.sources["tir"].startswith("# exp_neg: Exp, Neg in one loop nest\n")
    assert "\n\ndefine" in kernel.sources["llvm"]
    assert ".size" in kernel.sources["asm"]
    assert sum(candidate.chosen for candidate in kernel.candidates) == 1
    assert program.inputs[0].shape == ("T", 40)


def test_target_names():
    assert targets.get("cpu:avx2").machine.name == "avx2"
    with pytest.raises(UnsupportedError, match="avx512"):
        targets.get("cpu:mmx")
    with pytest.raises(MoecError, match="use one of cpu"):
        targets.get("abacus")


def test_requirements_are_the_features_of_the_instruction_set():
    model = model_of("agraph (float[T,4] x) => (float[T,4] y) { y = Neg(x) }")
    assert "avx2" in targets.get("cpu:avx2").compile(model).requirements
    assert targets.get("cpu:neon").compile(model).requirements == ["neon"]


def test_kernels_that_are_used_add_the_features_they_ask_for():
    import tvm
    from tvm import relax

    from moec.targets.base import Candidate, KernelRecord
    from moec.targets.cpu.hardware.machine import Machine
    from moec.targets.cpu.kernels.softmax import softmax
    from moec.targets.tvm.program import compile_program

    machine = Machine.for_name("avx2")

    def convert(lowering, node):
        chosen = [Candidate("softmax", True, "", chosen=True)]
        record = KernelRecord("softmax", "Softmax", ["node"], chosen, requirements=("amx-tile",))
        (x,) = node.inputs
        output = relax.TensorType(lowering.shape(x), lowering.dtype(x))
        return lowering.call_kernel(softmax(machine), [lowering.tensor(x)], [output], record)[0]

    def requirements(operator: str) -> list[str]:
        model = model_of(f"agraph (float[T,4] x) => (float[T,4] y) {{ y = {operator}(x) }}")
        target = tvm.target.Target(machine.llvm)
        return compile_program(model, {"Softmax": convert}, target, "cpu", ["avx2"]).requirements

    assert requirements("Softmax") == ["avx2", "amx-tile"]
    assert requirements("Neg") == ["avx2"]


def test_matrix_tiles_are_no_requirement_by_themselves(monkeypatch):
    from moec.targets.cpu.hardware import machine

    monkeypatch.setattr(machine, "host_has", lambda features: True)
    host = machine.Machine.host()
    assert "amx-tile" in host.features
    assert "amx-tile" not in host.requirements
    monkeypatch.undo()
    monkeypatch.setattr(machine, "refusal_of_matrix_tiles", lambda: "not permitted")
    assert not machine.host_has(["amx-tile"])


def test_sizes_in_a_matrix_are_refused():
    text = """agraph (float[T,6] x, int64[1,2] parts) => (float[T,A] y, float[T,B] z) {
        [cut] y, z = Split<axis = 1>(x, parts)
    }"""
    with pytest.raises(UnsupportedError, match=r"node 'cut'.*'parts' holds integers in 2 dimensions"):
        lowered(text)


def test_a_gpu_converts_all_heavy_operators_of_a_cpu():
    from moec.targets.cpu.hardware.machine import Machine
    from moec.targets.cpu.target import converters as on_cpu
    from moec.targets.cuda.target import converters as on_cuda

    assert on_cpu(Machine.for_name("avx2")).keys() <= on_cuda("sm_80").keys()
