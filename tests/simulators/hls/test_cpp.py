"""Functions, loops and pragmas of C++."""

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.simulators.hls.cpp import Function, Source

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
def functions() -> dict[str, Function]:
    return {function.name: function for function in Source("text.h", TEXT).functions}


def test_functions_and_parameters(functions):
    assert list(functions) == ["get", "join", "top"]
    kinds = {parameter.name: (parameter.is_pointer, parameter.is_array) for parameter in functions["join"].parameters}
    assert kinds == {"left": (False, False), "memory": (True, False), "list": (False, True), "out": (False, False)}
    assert functions["top"].parameters == ()
    assert Source("text.h", TEXT).line(functions["join"].start) == 14


def test_functions_in_scopes_within_scopes():
    text = "namespace a {namespace b {struct c {void first() {} void second() {}};} void third() {}}"
    assert [function.name for function in Source("text.h", text).functions] == ["first", "second", "third"]


def test_loops_with_labels_and_what_is_around(functions):
    loops = [
        (loop.kind, loop.label, [block.label for block in around]) for loop, around in functions["join"].body.loops()
    ]
    inner = [("while", "first", []), ("for", "second", ["first"])]
    assert loops == [("for", "", []), *inner, ("do", "", []), ("for", "", [])]


def test_a_pragma_belongs_to_the_block_that_it_stands_in(functions):
    second = next(loop for loop, _ in functions["join"].body.loops() if loop.label == "second")
    assert [(pragma.directive, pragma.options) for pragma in second.body.pragmas] == [("PIPELINE", {"II": "2"})]
    assert second.has("UNROLL", "PIPELINE") and not second.has("UNROLL")
    assert functions["join"].body.pragmas == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("void f() {\n int a[2;\n}", r"text\.h:2: expected ']'"),
        ("void f() {\n while { a(); }\n}", r"text\.h:2: C\+\+ that is not understood: while { a\(\); }"),
        ("void f() {\n a() }", r"text\.h:2: expected ';'"),
        ("int a;\n\nvoid f() {\n a();", r"text\.h:4: expected '}'"),
    ],
)
def test_text_that_is_no_cpp(text, message):
    with pytest.raises(MoecError, match=message):
        assert Source("text.h", text).functions


def test_characters_of_any_size_have_one_position():
    source = Source(
        "text.h", 'void f() {\n// \u00e9\u4e2d\U0001f600\n#pragma HLS INLINE off // \u00e9\n g("\u00e9");\n}'
    )
    (pragma,) = source.functions[0].body.pragmas
    assert source.text[pragma.start : pragma.end] == "#pragma HLS INLINE off // \u00e9"
    assert source.line(source.functions[0].body.children[0].start) == 4


def test_names_stand_without_their_scopes():
    text = "template <> void a::b<N + 1>::get<int>(const int* const in, int (&all)[3], void (*call)(int*), int) {}"
    (function,) = Source("text.h", text).functions
    assert function.name == "get"
    assert [(parameter.name, parameter.is_pointer, parameter.is_array) for parameter in function.parameters] == [
        ("in", True, False),
        ("all", False, True),
        ("call", True, False),
        ("", False, False),
    ]


def test_both_branches_of_a_condition_of_the_preprocessor_are_read():
    text = "void f() {\n#ifdef A\n for (;;) {}\n#else\n while (1) {}\n#endif\n}"
    assert [loop.kind for loop, _ in Source("text.h", text).functions[0].body.loops()] == ["for", "while"]
