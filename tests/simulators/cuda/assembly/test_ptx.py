"""Parsing of inline assembly and PTX."""

from __future__ import annotations

import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.simulators.cuda.assembly.inline_assembly import InlineAssembly, find_inline_assembly
from moec.simulators.cuda.assembly.instructions import to_cpp
from moec.simulators.cuda.assembly.ptx import Instruction, Label, RegisterDeclaration, parse


def test_inline_assembly_is_found():
    source = """
      a = 1;
      asm volatile("add.u32 %0, %1, %2;\\n"
                   "// \\"(" : "=r"(x[f(1)]), "+f"(y) : "l"(&a::b) : "memory");
      __asm__ __volatile__("bar.sync 0;");
      asm("nothing" ::: "memory") ; b = 2;"""
    first, second, third = find_inline_assembly(source)
    assert first.text == 'add.u32 %0, %1, %2;\n// "('
    assert first.operands == ("x[f(1)]", "y", "&a::b")
    assert (second.text, second.operands) == ("bar.sync 0;", ())
    assert (second.volatile, second.orders_memory) == (True, False)
    assert (third.volatile, third.orders_memory) == (False, True)
    assert third.text == "nothing" and source[third.end :] == " b = 2;"


def test_inline_assembly_that_does_not_end_is_refused():
    with pytest.raises(UnsupportedError, match="an asm statement is not closed"):
        list(find_inline_assembly('asm volatile("bar.sync 0;" : ;'))


def test_statements():
    text = "{ .reg .pred p, q; // both\n AGAIN: @!p bra AGAIN; "
    text += "ld.shared::cta.b32 {%0, r}, [%1, {%2, %3}]; elect.sync _|%q, 1; }"
    assert parse(text) == [
        RegisterDeclaration("pred", ("p", "q")),
        Label("AGAIN"),
        Instruction("bra", ("AGAIN",), "p", True),
        Instruction("ld.shared::cta.b32", (["%0", "r"], ["%1", ["%2", "%3"]])),
        Instruction("elect.sync", ("_|%q", "1")),
    ]


def test_what_is_no_statement_is_refused():
    with pytest.raises(UnsupportedError, match="PTX statement '%0 = 1': not understood"):
        parse("%0 = 1;")


def assembly(text: str, *operands: str, volatile: bool = True, orders_memory: bool = True) -> InlineAssembly:
    return InlineAssembly(text, operands, volatile, orders_memory, 0, 0)


def test_control_flow_becomes_that_of_cpp():
    text = "{ .reg .pred P; L: setp.eq.u32 P, %0, 1; @P bra.uni L; }"
    expected = "{ bool ptx_P; ptx_L: ; ptx_P = (a + b) == 1; if (ptx_P) { goto ptx_L; } }"
    assert to_cpp(assembly(text, "a + b")) == expected
    assert to_cpp(assembly("")) == ";"


def test_an_operand_that_is_not_there_is_refused():
    with pytest.raises(UnsupportedError, match="names operand %2 and has 1"):
        to_cpp(assembly("mov.u32 %0, %2;", "x"))


FENCE = "fence.proxy.async.shared::cta;"
PRODUCTS = "wgmma.commit_group.sync.aligned;"
SILENT = "mov.u32 %0, %1;"


@pytest.mark.parametrize("text, effects", [(FENCE, 2), (PRODUCTS, 1), (SILENT, 0)])
def test_the_compiler_is_told_what_assembly_does(text, effects):
    for volatile, orders_memory in [(False, False), (True, False), (True, True)]:
        statement = assembly(text, "a", "b", volatile=volatile, orders_memory=orders_memory)
        if volatile + orders_memory >= effects:
            assert to_cpp(statement)
            continue
        missing = 'does not clobber "memory"' if volatile else "is not volatile"
        with pytest.raises(MoecError, match=f"^inline assembly {text.split(';')[0]}: {missing}"):
            to_cpp(statement)
