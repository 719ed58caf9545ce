"""Expressions in CUDA C without needless parentheses and casts: the same tree of operations, as a person writes it."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec.targets.cuda.text.plain_expressions import plain, with_plain_expressions


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  int a = ((x * 2) + y);", "  int a = x * 2 + y;"),
        ("  int a = (x * (2 + y));", "  int a = x * (2 + y);"),
        ("  int a = (x - (y - z));", "  int a = x - (y - z);"),
        ("  if ((a < b) && ((c == 1) || d)) {", "  if (a < b && (c == 1 || d)) {"),
        ("  if ((a && b) || c) {", "  if ((a && b) || c) {"),
        ("  x = ((y >> 3) + (z & 7));", "  x = (y >> 3) + (z & 7);"),
        ("  x = ((c ? a : b) + 1);", "  x = (c ? a : b) + 1;"),
        ("  x = (c ? (a + 1) : (b * 2));", "  x = c ? a + 1 : b * 2;"),
        ("  x = (0x1p+0f/*1.000000e+00*/ + -0x1.99999ap-4f/*-1.000000e-01*/);", "  x = 1.0f + -0.1f;"),
        ("  x = 0x1.5bf0a8b145769p+1/*2.718282e+00*/;", "  x = 2.718281828459045;"),
        ("  f((uint)4294967295, ((int)threadIdx.x), (a, b));", "  f(4294967295u, (int)threadIdx.x, (a, b));"),
        ("  x[(((int64_t)row) * (int64_t)8)] = 0;", "  x[(int64_t)row * 8] = 0;"),
        ("  p = (((int64_t)a) + (((int64_t)b) * ((int64_t)c)));", "  p = (int64_t)a + (int64_t)b * c;"),
        ("  p = ((((int64_t)a) * (int64_t)8) + ((int64_t)b));", "  p = (int64_t)a * 8 + b;"),
        ("  p = ((int64_t)1 << ((int64_t)b));", "  p = (int64_t)1 << b;"),
        ("  p = ((int64_t)0 <= row);", "  p = 0 <= row;"),
        ("  p = ((c ? (int64_t)1 : (int64_t)2) * (int64_t)3);", "  p = (c ? (int64_t)1 : (int64_t)2) * 3;"),
        ("  p = ((int64_t)4 - ((int64_t)b));", "  p = (int64_t)4 - b;"),
        ("  p = (int64_t)0;", "  p = 0;"),
        ("  *(uint4*)(p + (i * 8)) = *(uint4*)(q + 0);", "  *(uint4*)(p + i * 8) = *(uint4*)(q + 0);"),
        ("  f((&(x[(i + 1)])), ((float*)p)[0]);", "  f(&x[i + 1], ((float*)p)[0]);"),
        ("  g(((void*)((unsigned long long)(&(map)))));", "  g((void*)((unsigned long long)(&map)));"),
        ("  x = (-(y)) - (-z);", "  x = -y - -z;"),
        ("  x = (-(-y));", "  x = -(-y);"),
        ("  x = reinterpret_cast<float*>(p + 1);", "  x = reinterpret_cast<float*>(p + 1);"),
        ("  asm volatile(\"x\" : \"=r\"((y)));", "  asm volatile(\"x\" : \"=r\"((y)));"),
        ("  #pragma unroll (4)", "  #pragma unroll (4)"),
        ("  for (int i = 0; i < (n * 2); ++i) {", "  for (int i = 0; i < n * 2; ++i) {"),
        ("  void f(((int)(x)),", "  void f(((int)(x)),"),
        ("  f(\"(a)\", ((a)));", "  f(\"(a)\", a);"),
    ],
)  # fmt: skip
def test_an_expression_becomes(before, after):
    assert plain(before) == after


OPERATORS = st.sampled_from(["+", "-", "*", "%", "<<", ">>", "&", "|", "^"])
TREES = st.recursive(
    st.sampled_from(["a", "b", "x[(i + 1)]", "f((a - b), c)", "3"]),
    lambda inner: st.tuples(inner, OPERATORS, inner).map(lambda parts: f"({' '.join(parts)})"),
    max_leaves=12,
)
"""Expressions as TVM writes them, with operators whose precedence is the same in C and in Python."""


@settings(deadline=None)
@given(TREES)
def test_the_order_of_operations_stays(tree):
    line = f"x = {tree}"
    assert ast.dump(ast.parse(plain(line))) == ast.dump(ast.parse(line))
    assert plain(plain(line)) == plain(line)


def test_only_kernels_are_rewritten():
    helper = "__forceinline__ __device__ int f(int a) {\n  return ((a) + 1);\n}\n"
    kernel = 'extern "C" __global__ void k(int* x,\n    int n) {\n  x[(0)] = (n + (1));\n}\n'
    assert with_plain_expressions(helper + kernel) == helper + kernel.replace("(0)", "0").replace("(n + (1))", "n + 1")
