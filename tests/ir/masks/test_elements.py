"""Elements as expressions of indices, against the interpreter for every index and several sizes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import sympy

from moec.ir import interpreter
from moec.ir.masks.conditions import IndexCondition
from moec.ir.masks.elements import EitherNumber, Element
from moec.ir.masks.rules import elements
from moec.ir.sizes import shape_of, size
from moec.passes import pipeline

TEXT = """<ir_version: 10, opset_import: ["" : 24]> g (float[B,S] x, float[B,P] y, int64[S] ids) => (int64[1] new)
    <int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[1] none = {0}, int64[1] first = {1},
     int64[1] last = {-1}, int64[1] pair = {2}, int64[3] listed = {4, 7, 10}, int64[3] others = {4, 7, 11},
     bool yes = {1}, bool[2,3] table = {1, 1, 0, 1, 1, 1}, bool[2,3] ragged = {1, 0, 1, 1, 1, 1},
     float low = {-inf}, float minus = {-1e9}, float null = {0}>
    { new = Shape <start = 1, end = 2> (x) past = Shape <start = 1, end = 2> (y) s = Squeeze (new) p = Squeeze (past)
      all = Add (s, p) total = Add (new, past) k = Range (zero, all, one) q = Range (zero, s, one)
      row = Unsqueeze (q, first) BODY }"""
KNOWN = [
    "z = Add (k, two)",
    "z = Mul (row, two)",
    "z = Sub (k, row)",
    "z = Identity (listed)",
    "z = Slice (k, past, total, none)",
    "z = Slice (k, first, total, none, pair)",
    "t = Transpose (row) z = Add (t, row)",
    "z = Gather (k, q)",
    "u = Unsqueeze (q, last) z = GatherND (k, u)",
    "v = Neg (first) z0 = Neg (one) w = Concat <axis = 0> (last, k) z = Slice (w, first, total, none)",
    "z = Concat <axis = 0> (last, k)",  # -1, 0, 1, ...
    "z = Cast <to = 6> (k)",
    "z = LessOrEqual (k, row)",
    "a = Less (k, row) b = Equal (k, row) z = Or (a, b)",
    "a = Greater (k, row) b = Not (a) c = Cast <to = 7> (b) z = Equal (c, one)",
    "a = Greater (k, row) z = Where (a, low, minus)",
    "a = Greater (k, row) b = Where (a, low, null) c = Where (a, minus, null) z = Add (b, c)",
    "a = Greater (k, row) b = Cast <to = 1> (a) z = Mul (b, minus)",
    "z = Identity (table)",
    "d = Shape (x) e = Concat <axis = 0> (new, total) f = Expand (yes, e) z = Trilu <upper = 0> (f, p)",
    "a = Sub (k, k) z = CumSum (a, zero)",
]
READ = [
    "z = Concat <axis = 0> (listed, none, listed)",
    "z = Add (ids, ids)",
    "a = Sub (q, two) z = Gather (k, a)",  # from the end, for the first two
    "z = Identity (others)",
    "z = Identity (ragged)",
    "z = Concat <axis = 0> (k, q)",
    "z = Concat <axis = 0> (first, k)",  # 1, 0, 1, ...
    "z = CumSum (q, zero)",
    "z = CumSum (ids, zero)",
    "a = ReduceSum (ids, none) z = Slice (k, a, total, none)",
    "z = ReduceSum (q, none)",
    "a = Less (ids, one) z = Where (a, q, q)",
]


def model_of(body: str) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(TEXT.replace("BODY", body)))
    (z,) = [output for node in model.graph for output in node.outputs if output.name == "z"]
    model.graph.outputs[:] = [z]
    pipeline.run(model, pipeline.parse("fold-shapes"))
    return model


def element_of(model: ir.Model) -> tuple[Element | None, list[sympy.Symbol], bool]:
    """The element of the result, the symbols of its indices, and whether it needs unknown ones."""
    (z,) = model.graph.outputs
    of_tensors, sizes = elements(), shape_of(z)
    assert sizes is not None
    axes = [of_tensors.axis(f"i{number}", size) for number, size in enumerate(sizes)]
    element = of_tensors.at(z, tuple(axes))
    return element, axes, is_read(element)


def is_read(element: Element | None) -> bool:
    if isinstance(element, EitherNumber):
        return is_read(element.condition)
    if isinstance(element, IndexCondition):
        parts = any(is_read(part) for part in element.parts)
        return parts or element.kind in ("read", "unread") or is_read(element.number)
    return element is None or any(symbol.name == "read" for symbol in element.free_symbols)


def value_of(element: Element, numbers: dict[sympy.Symbol, int]) -> float:
    if isinstance(element, EitherNumber):
        return element.yes if value_of(element.condition, numbers) else element.no
    if not isinstance(element, IndexCondition):
        return int(element.subs(numbers))
    parts = [value_of(part, numbers) for part in element.parts]
    if element.kind in ("all", "any"):
        return all(parts) if element.kind == "all" else any(parts)
    number = value_of(element.number, numbers)
    return {"reach": number >= 0, "equal": number == 0, "unequal": number != 0}[element.kind]


@pytest.mark.parametrize("body", KNOWN)
def test_elements_are_those_of_the_interpreter(body):
    model = model_of(body)
    element, axes, unknown = element_of(model)
    assert element is not None and not unknown
    for batch, new, past in ((1, 1, 0), (2, 3, 4), (1, 5, 1)):
        feeds = {
            "x": np.zeros((batch, new), np.float32),
            "y": np.zeros((batch, past), np.float32),
            "ids": np.arange(new),
        }
        (expected,) = interpreter.run(model, feeds).values()
        sizes = {size("S"): new, size("P"): past, size("B"): batch}
        for index in itertools.product(*map(range, expected.shape)):
            assert value_of(element, sizes | dict(zip(axes, index, strict=True))) == expected[index], index


@pytest.mark.parametrize("body", READ)
def test_other_elements_are_not_known(body):
    element, _, unknown = element_of(model_of(body))
    assert element is None or unknown or "Where" in body


def test_a_choice_between_equal_numbers_is_none():
    element, (index,), unknown = element_of(model_of(READ[-1]))
    assert (element, unknown) == (index, False)


def test_constants_that_are_inputs_are_not_known():
    model = model_of("z = Add (ids, one)")
    model.graph.inputs[2].const_value = ir.tensor(np.arange(3))
    assert element_of(model)[2]
