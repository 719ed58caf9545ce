"""Shapes, tensors and views are made once in a run, and die where memory may be wanted for others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.relax.op import vm

from moec.targets.tvm.phases.share_views import ShareViews

Value = relax.Expr


class Program:
    """Writes instructions as the phases before do."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.heap = relax.Var("heap", relax.TensorType(ndim=1, dtype="int64"))

    def storage(self) -> Value:
        return self.builder.emit(vm.alloc_storage(relax.ShapeExpr([64]), 0, "uint8"))

    def tensor(self, storage: Value, slot: int, dtype: str = "float32") -> Value:
        return self.builder.emit(vm.alloc_tensor(storage, 0, self._shape(slot), dtype))

    def view(self, tensor: Value, slot: int) -> Value:
        result = relax.TensorType(ndim=1, dtype="float32")
        return self.packed("vm.builtin.reshape", tensor, self._shape(slot), result=result)

    def size(self, slot: int) -> Value:
        place = [tirx.IntImm("int64", number) for number in (1, slot)]
        return self.packed("vm.builtin.make_prim_value", self.heap, *place, result=tvm.ir.PrimType("int64"))

    def kill(self, *values: Value) -> None:
        for value in values:
            self.builder.emit(vm.kill_object(value))

    def packed(self, name: str, *arguments: Value, result: relax.Type | None = None) -> Value:
        result = relax.TupleType([]) if result is None else result
        return self.builder.emit(relax.Call(relax.ExternFunc(name), list(arguments), None, [result]))

    def _shape(self, slot: int) -> Value:
        numbers = [tirx.IntImm("int64", number) for number in (1, 1, slot)]
        return self.packed("vm.builtin.make_shape", self.heap, *numbers, result=relax.ShapeType(ndim=1))


def shared(write: Callable[[Program], Value]) -> list[str]:
    """The instructions that are left, each as the last part of its name."""
    program = Program()
    with program.builder.function("main", [program.heap]):
        program.builder.emit_func_output(write(program))
    main = ShareViews()(program.builder.get())["main"]
    results = []
    for block in main.body.blocks:
        for binding in block.bindings:
            called = getattr(binding.value, "op", None)
            name = called.name if isinstance(called, tvm.ir.Op) else getattr(called, "global_symbol", "tuple")
            results.append(name.split(".")[-1])
    return results


def layers(program: Program, slots: tuple[int, int], dtypes: tuple[str, str] = ("float32", "float32")) -> Value:
    storage = program.storage()
    for slot, dtype in zip(slots, dtypes, strict=True):
        tensor = program.tensor(storage, slot, dtype)
        view = program.view(tensor, 7)
        program.packed("kernel", tensor, view)
        program.kill(tensor, view)
    program.kill(storage)
    return program.tensor(program.storage(), 9)


ONCE = ["alloc_storage", "make_shape", "alloc_tensor", "make_shape", "reshape", "kernel"]
END = ["alloc_storage", "make_shape", "alloc_tensor"]


def test_a_second_layer_finds_what_the_first_one_made():
    actual = shared(lambda program: layers(program, (3, 3)))
    assert actual == [*ONCE[:3], "kill_object", *ONCE[3:], "kernel", "kill_object", "kill_object", *END]


@pytest.mark.parametrize(
    ("slots", "dtypes", "made"), [((3, 4), ("float32", "float32"), 2), ((3, 3), ("float32", "int32"), 2)]
)
def test_tensors_of_other_sizes_or_types_stay_apart(slots, dtypes, made):
    actual = shared(lambda program: layers(program, slots, dtypes))
    assert (actual.count("alloc_tensor"), actual.count("reshape")) == (made + 1, made)


def test_tensors_in_other_memory_stay_apart():
    def write(program: Program) -> Value:
        one, other = (program.tensor(program.storage(), 3) for _ in range(2))
        program.packed("kernel", one, other)
        return other

    assert shared(write).count("alloc_tensor") == 2


def test_sizes_that_kernels_take_by_value_are_read_once():
    def write(program: Program) -> Value:
        result = program.tensor(program.storage(), 3)
        for slot in (5, 5, 6):
            program.packed("kernel", program.size(slot), result)
        return result

    assert shared(write).count("make_prim_value") == 2


def test_nothing_is_killed_once_no_more_memory_is_taken():
    def write(program: Program) -> Value:
        tensor, result = program.tensor(program.storage(), 3), program.tensor(program.storage(), 4)
        program.packed("kernel", tensor, result)
        program.kill(tensor)
        return result

    assert "kill_object" not in shared(write)


@pytest.mark.parametrize(("read", "left"), [(False, 0), (True, 1)])
def test_tuples_that_nobody_reads_hold_no_memory(read, left):
    def write(program: Program) -> Value:
        tensor = program.tensor(program.storage(), 3)
        pair = program.builder.emit(relax.Tuple([tensor, tensor]))
        return pair if read else tensor

    assert shared(write).count("tuple") == left


def test_results_are_what_they_were(program_of, runner_of):
    """Four equal steps, which take turns in the same memory."""
    steps = " ".join(f"h{i} = MatMul (x{i}, w) x{i + 1} = Tanh (h{i})" for i in range(4))
    text = f"agraph (float[T,8] x0, float[8,8] w) => (float[T,8] x4) {{ {steps} }}"
    run, generator = runner_of(program_of(text)), np.random.default_rng(0)
    x, w = (generator.standard_normal(shape).astype(np.float32) for shape in ((5, 8), (8, 8)))
    expected = x
    for _ in range(4):
        expected = np.tanh(expected @ w)
    np.testing.assert_allclose(run({"x0": x, "w": w})["x4"], expected, rtol=1e-5, atol=1e-5)
