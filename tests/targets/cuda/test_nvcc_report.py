"""Reports of nvcc and ptxas: parsed by function, and complete except for warnings that are expected in generated
code."""

from __future__ import annotations

import pathlib

import pytest

from moec.common.errors import DefectError
from moec.targets.cuda import nvcc
from moec.targets.cuda.code_lines import kernels_of_ptx
from moec.targets.cuda.nvcc import (
    compile_source,
    find_tool,
    machine_code_in_words,
    without_paths,
)
from moec.targets.cuda.nvcc_report import read_report

SOURCE = """
extern "C" __global__ void __launch_bounds__(32) first(float* x) {
  x[0] = 1;
}
extern "C" __global__ void second(float* x);
extern "C" __global__ void second(float* x) {
  x[1] = 2;
}
"""
TEXT = """\
/tmp/kernels.cu(7): warning #68-D: integer conversion resulted in a change of sign
    x[1] = 2;
           ^

Remark: The warnings can be suppressed with "-diag-suppress <warning-number>"

ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'first'
ptxas warning : an option is obsolete
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
ptxas info    : Compile time = 1.5 ms
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    8 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
"""


def test_resources_are_by_function():
    resources = read_report(TEXT, SOURCE).resources
    assert list(resources) == ["second", "first"]
    assert resources["first"].splitlines() == [
        "Used 168 registers, used 1 barriers",
        "8 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads",
    ]


def test_advice_is_read_and_told_whom_it_is_for():
    assert read_report(TEXT, SOURCE).advisories == {
        "second": ["#68-D: integer conversion resulted in a change of sign"],
        "first": [
            "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'first'"
        ],
        "": ["an option is obsolete"],
    }
    silent = "\n".join(line for line in TEXT.splitlines() if "C7510" not in line and "obsolete" not in line)
    assert list(read_report(silent, SOURCE).advisories) == ["second"]


PTX = """\
.version 9.0
.extern .shared .align 1024 .b8 pool[];
.extern .shared .align 64 .b8 another[];
.visible .entry first(
	.param .u64 first_param_0
)
{
	// begin inline asm
	{
.reg .pred P1;
}
	// end inline asm
	mov.u32 %r1, pool;
	ret;

}
.visible .entry second()
{
	ret;
}
"""


def test_a_kernel_is_all_of_its_text_and_its_pool():
    kernels = {name: text for name, (text, _) in kernels_of_ptx(PTX).items()}
    assert list(kernels) == ["first", "second"]
    assert kernels["first"].startswith(".extern .shared .align 1024 .b8 pool[];\n.visible .entry first(")
    assert "another" not in kernels["first"] and kernels["first"].endswith("\tret;\n\n}\n")
    assert kernels["second"] == ".visible .entry second()\n{\n\tret;\n}\n"


def test_ptx_does_not_say_where_and_when_it_was_made():
    module = ",".join(map(str, b"_INTERNAL_0123abcd_7_kernels"))
    text = f'\t.file\t1 "/tmp/tmp0/all_kernels.cu", 1764325550, 3102\n.b8 95,90,78,52,53,{module}\n'
    built = f'\t.file\t1 "all_kernels.cu"\n.b8 95,90,78,52,53,{",".join(map(str, b"_INTERNAL_00000000_7_kernels"))}\n'
    assert without_paths(text) == built


def test_calls_and_spills_of_machine_code_are_counted():
    sass = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;     /* 0x00000a0000017a02 */
                                                              /* 0x000fe40000000f00 */
        /*0010*/                   CALL.REL.NOINC 0x100 ;
        /*0020*/                   STL [R1], R2 ;
        /*0030*/                   LDL R2, [R1] ;"""
    assert machine_code_in_words(sass) == "4 instructions, 1 calls, 2 accesses to local memory\n"
    assert machine_code_in_words(None) == ""


@pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")
def test_advice_of_the_compiler_itself():
    loop = """extern "C" __global__ void kernel(float* x, unsigned n) {
  float unused = 1.0f;
  for (int i = 0; i < 10; ++i) { x[i] = 0.1 * n; return; }
  if (n < 0u) x[0] = 3;
}
"""
    compiled = compile_source(loop, "sm_80")
    assert list(compiled.advisories) == ["kernel"]
    assert any("is meaningless" in advice or "pointless" in advice for advice in compiled.advisories["kernel"])
    assert not compile_source(
        'extern "C" __global__ void kernel(float* x) { float unused = 1.0f; }', "sm_80"
    ).advisories


def texts(compiled):
    """The text of each form of the function ``kernel``."""
    return [(form, getattr(compiled, form)["kernel"]) for form, lines in compiled.lines.items() if lines]


@pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")
def test_code_is_the_same_wherever_and_whenever_it_is_made(monkeypatch):
    """The same source compiles to the same binary, which contains line information."""
    monkeypatch.setattr(nvcc, "through_cache", lambda sources, make: {name: make(name) for name in sources})
    text = 'extern "C" __global__ void kernel(float* x) {\n  x[0] = 1;\n}\n'
    first, second = (compile_source(text, "sm_90a") for _ in range(2))
    assert first == second
    assert b".debug_line" in first.binary
    lines = {
        form: dict(zip(text.splitlines(), first.lines[form]["kernel"], strict=True)) for form, text in texts(first)
    }
    (store,) = (line for line in lines["ptx"] if "st.global" in line)
    assert lines["ptx"][store] == 2
    assert [place for line, place in lines.get("sass", {}).items() if "STG" in line] in ([], [2])
    assert ".loc" not in first.ptx["kernel"] and first.ptx["kernel"].endswith("ret;\n\n}\n\n")


@pytest.mark.parametrize(
    ("written", "refused", "version"),
    [("9.5", set(), "9.0"), ("10.0", set(), "9.0"), ("8.8", set(), "8.8"), ("9.5", {"9.0"}, "9.5")],
)
def test_ptx_is_of_the_oldest_version_that_has_what_it_uses(tmp_path, monkeypatch, written, refused, version):
    run_nvcc(monkeypatch, tmp_path, refused)
    ptx = f".version {written}\n.target sm_80\n"
    text, said = nvcc._assembled(pathlib.Path("nvcc"), ptx, [], tmp_path / "k.fatbin")
    assert text == f".version {version}\n.target sm_80\n"
    assert (read_report(said, "").advisories != {}) == bool(refused)


def test_ptx_that_is_refused_in_every_version_is_a_defect(tmp_path, monkeypatch):
    run_nvcc(monkeypatch, tmp_path, {"9.0", "9.5"})
    with pytest.raises(DefectError):
        nvcc._assembled(pathlib.Path("nvcc"), ".version 9.5\n", [], tmp_path / "k.fatbin")


def run_nvcc(monkeypatch, folder, refused):
    """Have nvcc refuse PTX of some versions."""

    def run(_command, _folder):
        version = (folder / "k.ptx").read_text().split()[1]
        if version in refused:
            raise DefectError(f"nvcc refuses PTX {version}")
        return ""

    monkeypatch.setattr(nvcc, "_run", run)
