"""Functions, loops, pragmas and constants found in C++ without a compiler."""

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.simulators.hls.source import Source, split_list
from moec.simulators.hls.structure import Function, functions

from .lint.constants import DeclaredConstants

TEXT = """\
/* for (;;) { */
#define NOT_CODE {
#include "nothing { of this"
#define LONG { \\
    }
namespace outer {
enum colour { RED, GREEN };
static const int table[2][2] = { {1, 2}, {3, 4} };
template <class T, int N = (1 > 0 ? 2 : 3)> struct holder {
    ap_int<(N > 2 ? 8 : 16)> get(int at) const { return values[at]; }
    T values[N];
};
template <int N>
inline ap_uint<8 * N> join(const ap_uint<8 * N>& left, int* memory, const int list[N][2],
                          hls::stream<pair<int, int> >& out) {
    const char* text = "} for (;;) {";  // }
    struct local { int a; } one = {1};
    auto twice = [&](int x) { return 2 * x; };
    if (left > 1)
        for (int i = 0; i < N; i++) memory[i] = 0;
    else if (left == 1) {
first:
        while (memory[0]) {
second:     for (int j = 0; j < 2; ++j) {
#pragma HLS PIPELINE \\
    II=2
                out.write(j ? 1 : 0);
            }
        }
    } else do { memory[0]++; } while (memory[0] < 4);
    switch (memory[0]) {
        case outer::RED: break;
        default: for (;;) {}
    }
    return left;
}
}  // namespace outer
extern "C" void top(void) {}
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Function]:
    return {function.name: function for function in functions(Source("text.h", TEXT))}


def test_functions_and_parameters(found):
    assert list(found) == ["get", "join", "top"]
    kinds = {one.name: (one.is_pointer, one.is_array) for one in found["join"].parameters}
    assert kinds == {"left": (False, False), "memory": (True, False), "list": (False, True), "out": (False, False)}
    assert found["top"].parameters == ()
    assert Source("text.h", TEXT).line(found["join"].start) == 14


def test_functions_in_scopes_within_scopes():
    text = "namespace a {namespace b {struct c {void first() {} void second() {}};} void third() {}}"
    assert [function.name for function in functions(Source("text.h", text))] == ["first", "second", "third"]


def test_loops_with_labels_and_what_is_around(found):
    loops = [(loop.kind, loop.label, [one.label for one in around]) for loop, around in found["join"].body.loops()]
    inner = [("while", "first", []), ("for", "second", ["first"])]
    assert loops == [("for", "", []), *inner, ("do", "", []), ("for", "", [])]


def test_a_pragma_belongs_to_the_block_that_it_stands_in(found):
    second = next(loop for loop, _ in found["join"].body.loops() if loop.label == "second")
    assert [(pragma.directive, pragma.options) for pragma in second.body.pragmas] == [("PIPELINE", {"II": "2"})]
    assert second.has("UNROLL", "PIPELINE") and not second.has("UNROLL")
    assert found["join"].body.pragmas == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("void f() {\n int a[2;\n}", r"text\.h:1: '\{' is never closed"),
        ("void f() {\n else a();\n}", r"text\.h:2: 'else' without 'if'"),
        ("void f() {\n while { a(); }\n}", r"text\.h:2: expected '\(' behind 'while'"),
        ("void f() {\n a() }", r"text\.h:2: a statement that does not end with ';'"),
    ],
)
def test_text_that_is_no_cpp(text, message):
    with pytest.raises(MoecError, match=message):
        functions(Source("text.h", text))


def test_lists_are_parted_outside_of_brackets_only():
    assert split_list("a, pair<int, int> b, f(1, 2), c[3]") == ["a", "pair<int, int> b", "f(1, 2)", "c[3]"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("BEAT / LANES", 32),
        ("block::LANES * 2 + 1", 33),
        ("sizes<block>::LANES", 16),
        ("(WIDE ? 1 : 3)", 1),
        ("LANES > 8 ? LANES : 8", 16),
        ("1 << 4", 16),
        ("LANES / 0", None),
        ("TWICE", None),
        ("unknown", None),
        ("ROUND", None),
        ("f(3)", None),
    ],
)
def test_constants(expression, value):
    text = """
    const int BEAT = 512;
    struct block { static const int LANES = 16, UNUSED = 2; static const bool WIDE = true; };
    template <class T> struct sizes { static const int LANES = T::LANES; };
    const int TWICE = 1; void f() { const int TWICE = 2; }
    const int ROUND = OTHER; const int OTHER = ROUND;
    """
    constants = DeclaredConstants([Source("text.h", text)])
    assert constants.value(expression) == value
    assert constants.within("const int TWICE = 2;").value("TWICE") == 2
