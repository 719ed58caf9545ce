"""Kernels that differ in constants only are one, and compute what they did; those that differ in more are not."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, te, tirx

from moec.targets.tvm.phases import merge_alike as merging
from moec.targets.tvm.phases.merge_alike import FEWEST, merge_alike


def unrolled(steps: int) -> str:
    """Step n sums up x from place n on, and multiplies by its last places."""
    nodes, constants = [], ["int64[1] axis = {1}", "int64[1] end = {16}", "int64[1] last = {-1}"]
    for n in range(1, steps + 1):
        constants.append(f"int64[1] from{n} = {{{n}}}")
        nodes.append(f"a{n} = Slice(x, from{n}, end, axis) b{n} = ReduceSum<keepdims = 1>(a{n}, axis)")
        nodes.append(f"c{n} = Mul(a{n}, b{n}) y{n} = ReduceSum<keepdims = 1>(c{n}, axis)")
    results = ", ".join(f"y{n}" for n in range(1, steps + 1))
    body = f"{' '.join(nodes)} y = Concat<axis = 1>({results})"
    return f"g (float[T,16] x) => (float[T,{steps}] y) <{', '.join(constants)}> {{ {body} }}"


def test_the_steps_of_an_unrolled_loop_are_the_same_kernels(program_of, runner_of):
    program = program_of(unrolled(12))
    assert len([kernel for kernel in program.kernels if "ReduceSum" in kernel.op]) <= 3
    steps = max(program.kernels, key=lambda kernel: kernel.calls)
    assert steps.calls >= 12 and len(steps.nodes) >= 12
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    expected = [x[:, n:].sum(1) ** 2 for n in range(1, 13)]
    np.testing.assert_allclose(runner_of(program)({"x": x})["y"], np.stack(expected, 1), rtol=1e-4, atol=1e-4)


def branches(factors) -> str:
    """Branch n smooths and bounds a multiple of x, and has the smoothed number in a divisor."""
    constants = [f"float c{n} = {{{factor!r}}}" for n, factor in enumerate(factors)]
    nodes = [
        f"a{n} = Mul(x, c{n}) b{n} = Add(a{n}, x) s{n} = Sigmoid(b{n}) d{n} = Div(s{n}, c{n}) y{n} = Max(d{n}, c{n})"
        for n in range(len(factors))
    ]
    results = ", ".join(f"float[T,16] y{n}" for n in range(len(factors)))
    return f"g (float[T,16] x) => ({results}) <{', '.join(constants)}> {{ {' '.join(nodes)} }}"


def test_a_constant_gives_the_same_bits_as_an_argument(program_of, runner_of, monkeypatch):
    """Also where compilers have rules for it: 1, -1, 2, halves, numbers near the limits of the type."""
    factors = [0.1, 0.7, 1.0, -1.0, 2.0, 0.5, 3.0, 7.5, -0.3, 1e-39, 1e38, 5e-7]
    special = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38, -3e38])
    x = np.resize(special, (4, 16)) * np.float32([[1], [1], [0.5], [0.1]])
    x[1:3] = np.random.default_rng(0).normal(size=(2, 16))
    kernels, results = [], []
    for fewest in (FEWEST, len(factors) + 1):
        monkeypatch.setattr(merging, "FEWEST", fewest)
        program = program_of(branches(factors))
        kernels.append(len(program.kernels))
        results.append({name: y.tobytes() for name, y in runner_of(program)({"x": x}).items()})
    assert kernels == [5, len(factors)]
    assert results[0] == results[1]


GATHERS = """g (float[A] x, float[B] y) => (float[A] p, float[B] q) <int64 zero = {0}> {
    [first] i = Gather(x, zero) [second] j = Gather(y, zero) p = Add(x, i) q = Add(y, j)
}"""


def test_kernels_that_differ_in_messages_are_one_and_each_caller_has_its_own(program_of, runner_of):
    program = program_of(GATHERS)
    gathers = [kernel for kernel in program.kernels if "first" in kernel.nodes or "second" in kernel.nodes]
    assert [(kernel.calls, sorted(kernel.nodes)) for kernel in gathers] == [(2, ["first", "second"])]
    run, full, empty = runner_of(program), np.float32([1, 2]), np.float32([])
    np.testing.assert_array_equal(run({"x": full, "y": full[:1]})["q"], np.float32([2]))
    for name, inputs in {"first": {"x": empty, "y": full}, "second": {"x": full, "y": empty}}.items():
        with pytest.raises(Exception, match=f"node '{name}' \\(Gather\\)"):
            run(inputs)


def calling(element, count: int, scheduled: bool = False) -> tvm.IRModule:
    """``main`` calls ``count`` kernels, the nth of which has ``element(x, i, n)`` at place i."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([64], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            results = []
            for n in range(count):
                source = te.placeholder((64,), "float32", name="source")
                result = te.compute((16,), lambda i: element(source, i, n), name="result")  # noqa: B023  # called here
                kernel = te.create_prim_func([source, result], "int64").without_attr("global_symbol")
                kernel = kernel.with_attr("tirx.is_scheduled", True) if scheduled else kernel
                called = relax.call_tir(builder.add_func(kernel, "kernel"), [x], relax.TensorType([16], "float32"))
                results.append(builder.emit(called))
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output)
    return builder.get()


@pytest.mark.parametrize(
    ("element", "count", "scheduled", "left"),
    [
        (lambda x, i, n: x[i + n + 1], FEWEST, False, 1),
        (lambda x, i, n: x[i * (n + 2) + n + 3], FEWEST, False, 1),
        (lambda x, i, n: x[i + n + 1], FEWEST - 1, False, FEWEST - 1),
        (lambda x, i, n: x[i + n + 1], FEWEST, True, FEWEST),
        (lambda x, i, n: x[i % (n + 3)], FEWEST, False, FEWEST),
        (lambda x, i, n: x[i + 1] * (n + 2.5) + (n - 9.5), FEWEST, False, 1),
        (lambda x, i, n: x[i] / (n + 2.5), FEWEST, False, 1),
        (lambda x, i, n: tirx.if_then_else(i < 3, x[i], tirx.const(n + 2.5, "float32")), FEWEST, False, 1),
        (lambda x, i, n: x[i] / 2.0**n, FEWEST, False, FEWEST),
        (lambda x, i, n: tirx.pow(x[i], tirx.const(n + 2.5, "float32")), FEWEST, False, FEWEST),
        (
            lambda x, i, n: (x[i].astype("float16") * tirx.const(n + 2.5, "float16")).astype("float32"),
            FEWEST,
            False,
            FEWEST,
        ),
    ],
    ids=["offsets", "strides", "few", "scheduled", "divisors", "floats", "ratios", "other", "halves", "powers", "fp16"],
)
def test_kernels_that_are_merged(element, count, scheduled, left):
    merged = merge_alike(calling(element, count, scheduled))
    kernels = [symbol.name_hint for symbol in merged.module.functions if symbol.name_hint != "main"]
    assert len(kernels) == left and len(merged.instead) == (count if left == 1 else 0)
    assert not set(kernels) & set(merged.instead) and set(merged.instead.values()) <= set(kernels)
    relax.analysis.well_formed(relax.transform.Normalize()(merged.module))  # raises where it is not


def test_selections_that_are_nested_deeper_than_python_recurses():
    """As those of a Concat of a thousand results are."""

    def element(source, i, n):
        chosen = source[i + n + 1]
        for place in range(350):
            chosen = tirx.if_then_else(i < place, tirx.const(place + 2.5, "float32"), chosen)
        return chosen

    assert not merge_alike(calling(element, 1)).instead


def test_kernels_that_differ_in_nothing_need_no_arguments():
    """A builder makes one of equal kernels, but a pass may leave several."""
    module = calling(lambda x, i, n: x[i + n + 1], FEWEST)
    symbols = [symbol for symbol in module.functions if symbol.name_hint != "main"]
    for symbol in symbols:
        module[symbol] = module[symbols[0]]
    merged = merge_alike(module)
    assert not merged.instead and set(symbols) <= set(merged.module.functions)


@pytest.mark.parametrize(
    ("element", "given"),
    [
        (lambda x, i, n: x[i + n + 1] + x[i + n + 3] + x[i * (n + 2)], lambda n: [n + 1]),
        (lambda x, i, n: x[i + n + 1] + x[i + 20 - n], lambda n: [n + 1, 20 - 2 * n, 20 - n]),
    ],
)
def test_integers_that_keep_their_distance_are_one_argument(element, given):
    """As the size of a slice and its last index do."""
    merged = merge_alike(calling(element, FEWEST))
    arguments = [call.args[1].fields[1:] for call in calls_of(merged.module)]
    assert [[int(number) for number in argument] for argument in arguments] == [given(n) for n in range(FEWEST)]


def calls_of(module: tvm.IRModule) -> list[relax.Call]:
    bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
    return [binding.value for binding in bindings if isinstance(binding.value, relax.Call)]
