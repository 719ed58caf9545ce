"""Tensors of equal dynamic sizes take turns in one memory; a tensor that is still read keeps its own."""

from __future__ import annotations

import pytest
import tvm
from tvm import relax, tirx

from moec.targets.tvm.phases.share_memory import ShareMemory

KERNEL = relax.ExternFunc("kernel")


class Program:
    """``main`` under construction, which allocates tensors and calls kernels on them."""

    def __init__(self) -> None:
        self.size = tirx.Var("n", "int64")
        self.x = relax.Var("x", relax.TensorType([self.size], "float32"))
        self._bindings: list[relax.VarBinding] = []

    def bind(self, value: relax.Expr) -> relax.Var:
        variable = relax.Var(f"v{len(self._bindings)}", value.ty)
        self._bindings.append(relax.VarBinding(variable, value))
        return variable

    def tensor(self, *shape: object, dtype: str = "float32") -> relax.Var:
        allocation = relax.op.builtin.alloc_tensor(relax.ShapeExpr(shape), dtype, 0)
        typed = relax.Call(allocation.op, allocation.args, allocation.attrs, ret_ty=relax.TensorType(shape, dtype))
        return self.bind(typed)

    def call(self, *arguments: relax.Expr) -> None:
        self.bind(relax.Call(KERNEL, list(arguments), ret_ty=relax.TupleType([])))

    def memories(self, result: relax.Expr | None = None) -> dict[str, str]:
        """The memory of each tensor after the pass, by the tensor's name; tensors left to the planner have none."""
        body = relax.SeqExpr([relax.BindingBlock(self._bindings)], self.x if result is None else result)
        main = relax.Function([self.x], body, body.body.ty, is_pure=False)
        after = ShareMemory()(tvm.IRModule({"main": main.with_attr("global_symbol", "main")}))["main"]
        made = [binding for block in after.body.blocks for binding in block.bindings]
        assert [binding.var for binding in made if "storage" not in binding.var.name] == [
            binding.var for binding in self._bindings
        ]
        return {
            binding.var.name: binding.value.args[0].name
            for binding in made
            if isinstance(binding.value, tvm.ir.Call)
            and getattr(binding.value.op, "name", "") == "relax.memory.alloc_tensor"
        }


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (lambda n: [n, 3], lambda n: [n, 3], True),
        (lambda n: [n, 6], lambda n: [n * 2, 3], True),
        (lambda n: [n, 3], lambda n: [n, 4], False),
        (lambda n: [n + 1, 6], lambda n: [n, 6], False),
    ],
    ids=["equal", "equal when simplified", "different", "different sum"],
)
def test_tensors_of_equal_size_take_turns(first, second, shared):
    program = Program()
    a = program.tensor(*first(program.size))
    program.call(program.x, a)
    b = program.tensor(*second(program.size))
    program.call(program.x, b)
    memories = program.memories()
    assert (memories[a.name] == memories[b.name]) is shared


def test_equal_bytes_of_different_types_take_turns():
    program = Program()
    a = program.tensor(program.size, 2)
    program.call(program.x, a)
    b = program.tensor(program.size, dtype="int64")
    program.call(program.x, b)
    memories = program.memories()
    assert memories[a.name] == memories[b.name]


def test_static_sizes_are_left_to_the_planner():
    program = Program()
    program.call(program.x, program.tensor(5))
    assert program.memories() == {}


def test_a_result_of_a_call_is_not_in_the_memory_of_its_operand():
    program = Program()
    a = program.tensor(program.size)
    program.call(program.x, a)
    b = program.tensor(program.size)
    program.call(a, b)
    c = program.tensor(program.size)
    program.call(b, c)
    memories = program.memories()
    assert memories[a.name] == memories[c.name] != memories[b.name]


@pytest.mark.parametrize("through", ["variable", "reshape", "tuple"])
def test_a_tensor_lives_as_long_as_what_is_made_of_it(through):
    program = Program()
    a = program.tensor(program.size)
    program.call(program.x, a)
    if through == "tuple":
        pair = program.bind(relax.Tuple([a, program.x]))
        read = program.bind(relax.TupleGetItem(pair, 0))
    elif through == "reshape":
        view = relax.op.reshape(a, [1, program.size])
        shape = relax.TensorType([1, program.size], "float32")
        read = program.bind(relax.Call(view.op, view.args, view.attrs, ret_ty=shape))
    else:
        read = program.bind(a)
    b = program.tensor(program.size)
    program.call(read, b)
    program.call(b)
    c = program.tensor(program.size)
    program.call(program.x, c)
    memories = program.memories()
    assert memories[a.name] != memories[b.name] and memories[c.name] in (memories[a.name], memories[b.name])


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "in a tuple"])
def test_a_result_of_the_program_keeps_its_memory(nested):
    program = Program()
    a = program.tensor(program.size)
    program.call(program.x, a)
    b = program.tensor(program.size)
    program.call(program.x, b)
    memories = program.memories(relax.Tuple([program.x, a]) if nested else a)
    assert memories[a.name] != memories[b.name]


def test_memory_is_free_in_the_order_in_which_it_is_read():
    for _ in range(10):  # a set of variables has the order of their addresses
        program = Program()
        first = [program.tensor(program.size) for _ in range(6)]
        program.call(program.x, *first)
        second = [program.tensor(program.size) for _ in range(6)]
        program.call(program.x, *second)
        memories = program.memories()
        assert [memories[tensor.name] for tensor in second] == [memories[tensor.name] for tensor in reversed(first)]
