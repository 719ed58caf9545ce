"""The form C as an option: its files, their names, compilers that are missing, and what C cannot say."""

from __future__ import annotations

import pathlib

import pytest

import moec
from moec.artifacts.c_form import form, toolchain
from moec.artifacts.c_form.expressions import c_string, guard_in_c, size_in_c
from moec.artifacts.c_form.form import program_name
from moec.common.errors import MoecError, UnsupportedError
from moec.common.guards import holds, parse_guard, parse_size
from moec.common.specs import TensorSpec
from moec.runtime.interface import Interface

from ..text_models import model_of
from .building import run
from .layers import layer_model

TINY = model_of("y = Neg (x)", {})


@pytest.mark.parametrize(
    ("processor", "install"),
    [("x86_64", "apt-get install gcc binutils"), ("aarch64", "apt-get install gcc-aarch64-linux-gnu")],
)
def test_without_a_compiler_the_error_says_what_to_install(monkeypatch, processor, install):
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    for variable in ("CC", "AR", "OBJCOPY"):
        monkeypatch.delenv(variable, raising=False)
    assert toolchain.find_toolchain("x86_64").archiver
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MoecError, match=f"needs a C compiler for {processor}, and none of .* is on PATH; .*{install}"):
        toolchain.find_toolchain(processor)
    monkeypatch.setenv("CC", "my-cc --sysroot=/x")
    with pytest.raises(MoecError, match=rf"needs an ar for {processor}.*variable AR"):
        toolchain.find_toolchain(processor)
    monkeypatch.setenv("AR", "my-ar")
    monkeypatch.setenv("OBJCOPY", "my-objcopy")
    found = toolchain.find_toolchain(processor)
    assert found == toolchain.Toolchain(("my-cc", "--sysroot=/x"), "my-ar", "my-objcopy")


def test_a_compiler_for_another_processor_is_passed_over(monkeypatch, tmp_path):
    """CC and AR are often set for programs of this computer."""
    for name, machine in (("native", "x86_64-linux-gnu"), ("cross", "aarch64-linux-android")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {machine}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("cc", "ar", "objcopy"):
        (tmp_path / f"aarch64-linux-gnu-{name}").write_text("#!/bin/sh\n")
        (tmp_path / f"aarch64-linux-gnu-{name}").chmod(0o755)
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("AR", "native-ar")
    monkeypatch.setenv("CC", "native")
    passed_over = toolchain.find_toolchain("aarch64")
    assert passed_over.compiler == (str(tmp_path / "aarch64-linux-gnu-cc"),)
    assert passed_over.archiver == str(tmp_path / "aarch64-linux-gnu-ar")
    assert toolchain.find_toolchain("x86_64").archiver == "native-ar"
    monkeypatch.setenv("CC", "cross --sysroot=/x")
    taken = toolchain.find_toolchain("aarch64")
    assert (taken.compiler, taken.archiver) == (("cross", "--sysroot=/x"), "native-ar")


def test_a_missing_compiler_is_found_before_the_model_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MoecError, match="needs a C compiler"):
        moec.compile(TINY, output=tmp_path / "model", form="c")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("compiler", "message"), [("false", "the C library cannot be built: false"), ("/no/cc -x", "/no/cc: No such file")]
)
def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch, tmp_path, compiler, message):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(MoecError, match=message):
        moec.compile(TINY, output=tmp_path / "model", form="c", passes="O0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "rust"}, "form is 'rust' of type str; expected 'c' for a C library, or None"),
        ({"form": "c", "target": "cuda:sm_80"}, "--form c is for processors, not for target 'cuda:sm_80'"),
        ({"form": "c", "target": "hls:zcu102"}, "--form c is for processors, not for target 'hls:zcu102'"),
        ({"form": "c", "resident": "1GiB"}, "--form c maps all weights, of which the system keeps .* what fits"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path):
    with pytest.raises(MoecError, match=message):
        moec.compile(TINY, output=tmp_path / "model", **options)


def test_what_c_cannot_say_is_refused_by_name(tmp_path):
    """Experts that are read when they are chosen: the C library maps them all."""
    refusal = r"call of moec\.experts_\w+ has no equivalent in C; compile without --form c"
    with pytest.raises(UnsupportedError, match=refusal):
        moec.compile(layer_model(), output=tmp_path / "model", form="c", passes="O0,stream-experts")
    assert not (tmp_path / "model").exists()


def test_inputs_have_as_many_axes_as_moec_h_says():
    header = (pathlib.Path(form.__file__).parent / "library" / "moec.h").read_text()
    assert f"#define MOEC_MAX_RANK {form.MOST_AXES}\n" in header
    form.check_ranks(Interface([TensorSpec("x", "float32", (1,) * form.MOST_AXES)], []))
    with pytest.raises(UnsupportedError, match=r"y float32\[.*\] has 13 axes; --form c has at most 12"):
        form.check_ranks(Interface([], [TensorSpec("y", "float32", (1,) * (form.MOST_AXES + 1))]))


@pytest.mark.parametrize(
    ("stem", "name"),
    [("char_lm", "char_lm"), ("qwen3-30B.moec", "qwen3_30B_moec"), ("8x7b", "model_8x7b"), ("ä", "model")],
)
def test_names_of_programs_are_identifiers(stem, name):
    assert program_name(stem) == name


SIZES = {"a": 7, "b": 3, "zero": 0}
TEXTS = ["a - 2*b", "-a // 2", "(a - 9) % b", "max(a, b, 5)", "min(a, 2) * b", "a // (b - 3)"]
GUARDS = ["2 <= b < a", "a % 2 == 0 or b != 3", "a // zero == 0", "a > 1 and (b > 5 or -b < 0)"]


def test_sizes_and_guards_mean_in_c_what_they_mean_in_python(tmp_path):
    places = {name: at for at, name in enumerate(SIZES)}
    sizes = [f'    z = false; printf("%d\\n", (int)({size_in_c(text, places)})); (void)z;' for text in TEXTS[:-1]]
    guards = [f'    z = false; printf("%d\\n", ({guard_in_c(text, places)}) && !z);' for text in GUARDS]
    lines = "\n".join([*sizes, *guards]).replace("by_zero", "&z")
    head = '#include "moec_program.h"\n#include <stdio.h>\nint main(void) {\n    bool z;\n'
    (tmp_path / "main.c").write_text(f"{head}    const int64_t s[] = {{7, 3, 0}};\n{lines}\n    return 0;\n}}\n")
    library = pathlib.Path(toolchain.__file__).with_name("library")
    run(["cc", "-fwrapv", f"-I{library}", tmp_path / "main.c", "-o", tmp_path / "main"])
    expected = [parse_size(text)(SIZES) for text in TEXTS[:-1]] + [holds(parse_guard(text), SIZES) for text in GUARDS]
    assert list(map(int, run([tmp_path / "main"]).split())) == list(map(int, expected))


def test_texts_of_models_stay_inside_their_literals():
    assert c_string('a"b\\c\n??/é') == r'"a\042b\134c\012\077\077/\303\251"'
