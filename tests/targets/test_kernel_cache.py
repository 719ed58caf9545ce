"""The cache of generated code: kernels from the cache equal those that would be compiled."""

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.runtime.team import TEAM_OBJECT
from moec.targets import build_cache, get, kernel_cache
from moec.targets.build_cache import KERNELS
from moec.targets.kernel_cache import VARIABLE, through_cache

MODEL = "g (float[3,8] x) => (float[3,8] y) { s = Softmax (x)  e = Exp (s)  y = Add (e, x) }"
"""A model with fixed sizes. With dynamic ones, the function that computes sizes has its statements in the order of
addresses, which changes from run to run (VMShapeLower)."""


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "on")
    return tmp_path / "moec" / KERNELS


def program(target: str = "cpu:avx2"):
    from moec.ir.text import parse_model

    return get(target).compile(parse_model(f'<ir_version: 10, opset_import: ["" : 24]> {MODEL}'))


def contents(target: str = "cpu:avx2"):
    built = program(target)
    return built.objects, [kernel.sources for kernel in built.kernels], built.sources


def test_every_object_has_code(folder):
    """A program has one object for its instructions, one for the threads, and one for each kernel."""
    built = program()
    assert set(built.objects) == {"devc.o", TEAM_OBJECT, *(f"{kernel.name}.o" for kernel in built.kernels)}


def test_with_and_without_the_cache_a_program_is_the_same(folder, monkeypatch):
    first = contents()
    entries = {file.name for file in folder.iterdir()}
    assert entries
    monkeypatch.setattr(kernel_cache, "keep", lambda *_: pytest.fail("all of it was kept already"))
    assert contents() == first
    monkeypatch.setenv(VARIABLE, "off")
    monkeypatch.setattr(kernel_cache, "recall", lambda *_: pytest.fail("the cache is off"))
    assert contents() == first


def test_damaged_entries_are_compiled_anew(folder):
    first = contents()
    kept = {file: file.read_bytes() for file in folder.iterdir()}
    for file, content in kept.items():
        file.write_bytes(content[: len(content) // 2])
    assert contents() == first
    assert {file: file.read_bytes() for file in folder.iterdir()} == kept


def test_another_machine_is_another_entry(folder, monkeypatch):
    """Texts of kernels, which machines may share, are not kept here."""
    from moec.targets.tvm.phases import structures

    monkeypatch.setattr(structures, "through_cache", lambda made_of, make: {name: make(name) for name in made_of})
    first = contents()
    before = set(folder.iterdir())
    assert contents("cpu:sse4")[0] != first[0]
    assert len(set(folder.iterdir())) == 2 * len(before)


def test_other_versions_are_other_entries(monkeypatch):
    built = through_cache({"one": "text"}, lambda _: {"o": b"old"})
    assert through_cache({"one": "text"}, lambda _: {"o": b"new"}) == built
    assert through_cache({"one": "other"}, lambda _: {"o": b"new"}) == {"one": {"o": b"new"}}
    monkeypatch.setattr(kernel_cache, "_versions", lambda: "of another day")
    assert through_cache({"one": "text"}, lambda _: {"o": b"new"}) == {"one": {"o": b"new"}}


def test_without_a_home_models_compile(monkeypatch):
    first = contents()

    def homeless():
        raise OSError("the user has no home folder")

    monkeypatch.setattr(build_cache, "user_cache", homeless)
    assert contents() == first


def test_the_variable_is_on_or_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "maybe")
    with pytest.raises(MoecError, match=f"{VARIABLE} is 'maybe'; expected one of on, off"):
        through_cache({}, lambda _: {})


def test_texts_are_kept_and_others_are_other_entries(folder):
    from tvm.script import tirx as T

    from moec.targets.tvm.phases.structures import tir_texts

    @T.prim_func
    def halved(y: T.Buffer((8,), "float32")):
        for i in range(8):
            y[i] = y[i] * T.float32(0.5)

    first = tir_texts({"halved": halved})
    assert tir_texts({"halved": halved}) == first and len(set(folder.iterdir())) == 1
    (loop,) = first["halved"].loops
    assert (loop.extent, loop.operations) == ("8", "8")
    named = halved.with_attr("global_symbol", "other")
    assert "def other" in tir_texts({"halved": named})["halved"].text and len(set(folder.iterdir())) == 2
