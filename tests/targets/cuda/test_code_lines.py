"""Lines of PTX and of machine code by the lines of CUDA C that they come from."""

from __future__ import annotations

from moec.targets.cuda.code_lines import kernels_of_ptx, lines_of_sass, sections_of

PTX = """\
.version 9.0
.extern .shared .align 16 .b8 pool[];
.visible .entry first(
\t.param .u64 first_param_0
)
{
\t.loc\t1 7 0
\tmov.u32 %r1, pool;
\t.loc\t1 3 5, function_name $L__info_string0, inlined_at 1 8 2
\tbar.sync 0;
\t.loc\t2 90 1, function_name $L__info_string1, inlined_at 1 3 5
$L__tmp1:
\tadd.s32 %r2, %r1, 1;

\t.loc\t2 95 1
\tret;
}
.visible .entry second()
{
\tret;
}
\t.file\t1 "all_kernels.cu"
\t.section\t.debug_str
"""


def test_inlined_code_comes_from_the_line_that_calls_it():
    text, lines = kernels_of_ptx(PTX)["first"]
    pairs = dict(zip(text.splitlines(), lines, strict=True))
    assert pairs["\tmov.u32 %r1, pool;"] == 7
    assert pairs["\tbar.sync 0;"] == 8
    assert pairs["\tadd.s32 %r2, %r1, 1;"] == 8, "it is inlined into what is inlined there"
    assert pairs["\tret;"] == 0, "it stands in another file"
    assert pairs[".extern .shared .align 16 .b8 pool[];"] == pairs[".visible .entry first("] == 0
    assert ".loc" not in text
    assert "tmp" not in text


def test_lines_of_a_kernel_are_not_those_of_the_one_before():
    text, lines = kernels_of_ptx(PTX)["second"]
    assert text == ".visible .entry second()\n{\n\tret;\n}\n"
    assert set(lines) == {0}


def test_places_that_call_one_another_end_somewhere():
    circle = PTX.replace("inlined_at 1 8 2", "inlined_at 2 90 1")
    text, lines = kernels_of_ptx(circle)["first"]
    assert len(lines) == text.count("\n")


DISASSEMBLED = """\
.text.first:
\t//## File "/tmp/x/all_kernels.cu", line 3 inlined at "/tmp/x/all_kernels.cu", line 8
\t//## File "/tmp/x/all_kernels.cu", line 8
        /*0000*/                   LDC R1, c[0x0][0x28] ;
\t//## File "/usr/include/other.hpp", line 90
        /*0010*/                   S2R R12, SR_CTAID.X ;
.text.second:
\t//## File "all_kernels.cu", line 5
        /*0000*/                   EXIT ;
"""
SASS = """\
\t\tFunction : first
        /*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x00000a00ff017b82 */
                                                            /* 0x000fe20000000800 */

        /*0010*/                   S2R R12, SR_CTAID.X ;    /* 0x00000000000c7919 */
"""


def test_machine_code_has_the_line_of_its_address():
    sections = sections_of(DISASSEMBLED)
    assert list(sections) == ["first", "second"]
    assert lines_of_sass(SASS, sections["first"], "all_kernels.cu") == [0, 8, 8, 0, 8]
    assert lines_of_sass(SASS, sections["second"], "all_kernels.cu") == [0, 5, 5, 0, 5]
    assert lines_of_sass(SASS, "", "all_kernels.cu") == [0] * 5
