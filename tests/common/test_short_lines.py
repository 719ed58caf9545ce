"""CUDA C in lines of at most 120 characters, with the same tokens."""

from __future__ import annotations

from moec.common.short_lines import WIDTH, with_short_lines


def joined(text: str) -> str:
    return "".join(text.split()).replace('""', "")


def test_instructions_are_cut_between_operands():
    groups = ", ".join("{" + ", ".join(f"%{i}" for i in range(first, first + 4)) + "}" for first in range(0, 16, 4))
    line = f'  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {groups};" : "=f"(d0) : "r"(a0));\n'
    text = with_short_lines(line)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert joined(text) == joined(line)
    assert '" "' not in text


def test_calls_and_definitions_are_cut_and_short_lines_stay():
    short = "  x = f(a, b); // a comment\n"
    call = f"  f({', '.join(f'argument_{i} + {i}' for i in range(20))});\n"
    text = with_short_lines(short + call)
    assert text.startswith(short)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert joined(text) == joined(short + call)


def test_what_cannot_be_cut_stays():
    for line in (f"#define X {'x, ' * 60}\n", f"  {'x' * 130};\n", f'  f("{"x" * 130}");\n'):
        assert joined(with_short_lines(line)) == joined(line)
