"""Artifacts are read back as written, and every fault of one is a single line."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
import sys
import types

import numpy as np
import pytest

from moec.artifacts.loading import load
from moec.artifacts.writer import write_artifact
from moec.common.errors import ArtifactError, InputError, MoecError
from moec.common.specs import State
from moec.runtime import artifact as artifacts
from moec.runtime import machine
from moec.runtime.artifact import open_artifact
from moec.runtime.manifest import MANIFEST, WEIGHTS, TextEntry, print_manifest
from moec.runtime.matrix_tiles import refusal_of_matrix_tiles
from moec.runtime.read_manifest import is_inside_name, parse_manifest
from moec.targets.base import Program, Weight

from .forged_manifests import manifest_of, rewrite_manifest, rewrite_program, signed

KERNEL = {"name": "k", "op": "o", "computes": "", "nodes": [], "attributes": {}, "sources": {}, "sizes": {}}
KERNEL |= {
    "candidates": [],
    "crossovers": [],
    "parameters": [],
    "launches": [],
    "work": None,
    "sized_work": None,
    "calls": 1,
    "structure": None,
}
LAUNCH = {"function": "f", "arguments": [], "grid": [], "block": [], "shared_bytes": "0", "static_shared_bytes": 0}
LAUNCH |= {"tensor_maps": [], "registers": None, "begins_early": False, "cluster": 1}
PROGRAM = {
    "architecture": "",
    "objects": [],
    "weights": [0],
    "requirements": [],
    "held": [],
    "streamed": [],
    "kernels": [],
}


def test_manifest_round_trips(artifact_path):
    manifest = manifest_of(artifact_path)
    assert parse_manifest(print_manifest(manifest), "test") == manifest


def test_numbers_as_keys_are_read_back(artifact_path):
    """They are text in JSON, and are sorted as such: 10 before 9."""
    changed = dataclasses.replace(manifest_of(artifact_path), provenance={"source": {9: "nine", 10: "ten"}})
    assert parse_manifest(print_manifest(changed), "test").provenance == {"source": {"9": "nine", "10": "ten"}}


def test_holds_what_people_read(artifact_path):
    artifact = open_artifact(artifact_path)
    assert artifact.text("ir/00-import.onnxtxt") == "the imported model"
    assert [(stage["name"], stage["changed"], stage["file"]) for stage in artifact.manifest.stages] == [
        ("import", True, "ir/00-import.onnxtxt"),
        ("raise-moe", False, "ir/00-import.onnxtxt"),
    ]
    kernel = load(artifact_path).kernels["add_multiply"]
    assert kernel.forms == ("tir", "asm")
    assert kernel.source("asm") == "the assembly"
    assert [candidate["reason"] for candidate in kernel.candidates if not candidate["eligible"]] == ["no product"]
    with pytest.raises(MoecError, match="'add_multiply' is not available as 'llvm'; available: tir, asm"):
        kernel.source("llvm")


def test_description_is_plain_data(artifact_path):
    description = load(artifact_path).describe()
    assert json.loads(json.dumps(description)) == description
    assert description["inputs"][2] == {"name": "ids", "dtype": "int64", "shape": ["rows", "width"]}
    assert description["moe_blocks"][0]["num_experts"] == 4
    assert description["input_limits"] == {"ids": 7}
    assert description["input_sizes"] == {"total": "past + rows"}


@pytest.mark.parametrize("name", ["copy.moec", "copy.zip"])
def test_saved_copies_run(artifact_path, tmp_path, inputs, name):
    model = load(artifact_path)
    model.save(tmp_path / name)
    model.save(tmp_path / name)  # replaces the first
    np.testing.assert_array_equal(load(tmp_path / name).run(inputs)["y"], model.run(inputs)["y"])
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.moec", name}


def test_states_are_described(artifact_path):
    rewrite_manifest(artifact_path, states=[State("ids", "ids_out", None)])
    model = load(artifact_path)
    assert model.states == [State("ids", "ids_out", None)]
    assert model.describe()["states"] == [{"input": "ids", "output": "ids_out", "axis": None}]


# --- every fault is one line -------------------------------------------------------------------------------------


def test_missing(tmp_path):
    with pytest.raises(ArtifactError, match="no such artifact"):
        load(tmp_path / "nothing.moec")


def test_not_an_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="is not a moec artifact"):
        load(tmp_path)
    (tmp_path / "file").write_bytes(b"something else")
    with pytest.raises(ArtifactError, match="neither an artifact's folder nor an intact zip"):
        load(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[" * 200 + b"]" * 200])
def test_manifest_that_is_not_json(artifact_path, content):
    (artifact_path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match="not JSON"):
        load(artifact_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": 999}'])
def test_other_format_version(artifact_path, content):
    (artifact_path / MANIFEST).write_text(content)
    with pytest.raises(ArtifactError, match=r"format version is .*, but this moec reads version 31"):
        load(artifact_path)


def test_altered_manifest(artifact_path):
    text = (artifact_path / MANIFEST).read_text()
    (artifact_path / MANIFEST).write_text(text.replace("cpu:test", "cpu:best"))
    with pytest.raises(ArtifactError, match="was altered"):
        load(artifact_path)


@pytest.mark.parametrize("name", [WEIGHTS, "objects/lib0.o", "src/add_multiply.tir", "ir/00-import.onnxtxt"])
def test_damaged_files(artifact_path, name):
    path = artifact_path / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=f"{name} was altered"):
        load(artifact_path)
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=f"{name} has {len(content) - 1} bytes; expected {len(content)}"):
        load(artifact_path)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        load(artifact_path)


def test_checksum_of_weights_can_be_left_out(artifact_path):
    content = bytearray((artifact_path / WEIGHTS).read_bytes())
    content[0] ^= 1
    (artifact_path / WEIGHTS).write_bytes(content)
    assert load(artifact_path, check_weights=False).describe()["target"] == "cpu:test"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\\b", "C:x", "", "a//b", "."])
def test_file_names_that_could_leave_the_folder(artifact_path, name):
    assert not is_inside_name(name)
    files = manifest_of(artifact_path).files
    rewrite_manifest(artifact_path, files={**files, name: files[WEIGHTS]})
    with pytest.raises(ArtifactError, match="could leave the artifact's folder"):
        load(artifact_path)


def test_guards_are_kept_and_checked(artifact_path, inputs):
    rewrite_manifest(artifact_path, guards=["rows <= 3"])
    model = load(artifact_path)
    assert model.guards == model.describe()["guards"] == ["rows <= 3"]
    assert model.run(inputs)["y"].shape == (3, 4)
    more = {**inputs, "x": np.zeros((4, 4), np.float32), "ids": np.zeros((4, 2), np.int64)}
    with pytest.raises(InputError, match=r"rows <= 3 only, and cannot run where rows = 4 \(axis 0 of input 'x'\)"):
        model.run(more)


@pytest.mark.parametrize(
    ("guards", "message"),
    [
        (["rows ** 2 > 1"], "guard 'rows \\*\\* 2 > 1' cannot be read"),
        (["exit() > 1"], "guard 'exit\\(\\) > 1' cannot be read"),
        (["columns > 1"], "guard 'columns > 1' is about 'columns', which is no input's size"),
        ([3], r"guards\[0\] is 3; expected a text; compile the model again"),
    ],
)
def test_guards_that_are_none(artifact_path, guards, message):
    rewrite_manifest(artifact_path, guards=guards)
    with pytest.raises(ArtifactError, match=message):
        load(artifact_path)


def test_links_that_leave_the_folder(artifact_path, tmp_path):
    outside = tmp_path / "outside"
    (artifact_path / WEIGHTS).rename(outside)
    (artifact_path / WEIGHTS).symlink_to(outside)
    with pytest.raises(ArtifactError, match="is a link that leaves the folder"):
        load(artifact_path)
    (artifact_path / WEIGHTS).unlink()
    (artifact_path / WEIGHTS).symlink_to(WEIGHTS)
    with pytest.raises(ArtifactError, match=r"weights\.bin is missing"):
        load(artifact_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 8192}, "weight 'w' ends at byte 8208 of weights.bin, which has 16"),
        ({"offset": 2**61}, "ends at byte"),
        ({"offset": 2**62}, r"weights\[0\]\.offset is a number of too many digits"),
        (
            {"offset": -4096},
            r"weights\[0\]\.offset is -4096; expected a whole number from 0 up",
        ),
        ({"offset": 8}, "not a multiple of 4096"),
        ({"shape": [5]}, "'w' is float32\\[5\\], which is not 16 bytes"),
        ({"shape": [-4]}, r"weights\[0\]\.shape\[0\] is -4; expected a whole number from 0 up"),
        ({"shape": ["rows"]}, r'weights\[0\]\.shape\[0\] is "rows"; expected a whole number from 0 up'),
        ({"dtype": "object"}, r'weights\[0\]\.dtype is "object"; expected an element type: one of bool, int8'),
        ({"bytes": "16"}, r'weights\[0\]\.bytes is "16"; expected a whole number from 0 up'),
        ({"bytes": True}, r"weights\[0\]\.bytes is true; expected a whole number from 0 up"),
    ],
)
def test_weights_out_of_range(artifact_path, change, message):
    (artifact_path / MANIFEST).write_text(_with_weight(artifact_path, change))
    with pytest.raises(ArtifactError, match=message):
        load(artifact_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inputs", [{"name": "x", "dtype": "float32", "shape": [-1]}], r"inputs\[0\]\.shape\[0\] is -1; expected"),
        ("inputs", "x", 'inputs is "x"; expected a list'),
        ("outputs", [3], r"outputs\[0\] is 3; expected an object"),
        ("programs", [{**PROGRAM, "objects": ["objects/absent.o"]}], "'objects/absent.o' is used but not listed"),
        ("programs", [{**PROGRAM, "kernels": [{"name": "k"}]}], r"programs\[0\]\.kernels\[0\]\.op is missing"),
        ("programs", [{**PROGRAM, "kernels": [{**KERNEL, "work": 3}]}], "work is 3; expected an object or null"),
        ("programs", [{**PROGRAM, "kernels": [{**KERNEL, "launches": [{}]}]}], r"launches\[0\]\.function is missing"),
        (
            "programs",
            [{**PROGRAM, "kernels": [{**KERNEL, "launches": [{**LAUNCH, "only_if": {}}]}]}],
            r"only_if\.size is missing",
        ),
        ("programs", [{**PROGRAM, "kernels": [{**KERNEL, "parameters": [{}]}]}], r"parameters\[0\]\.name is missing"),
        ("programs", [{**PROGRAM, "last": 3}], "last is 3; expected an object or null"),
        ("programs", [{**PROGRAM, "last": {"output": "y"}}], r"last\.input is missing"),
        (
            "programs",
            [{**PROGRAM, "last": {"output": "y", "input": "none"}}],
            "'y' is said to have a position for each token of 'none'",
        ),
        ("programs", [{**PROGRAM, "weights": [1]}], "a program takes weight 1 of 1"),
        ("programs", [PROGRAM, PROGRAM], "its programs are for \\['', ''\\]; expected at least one, all different"),
        ("programs", [], "expected at least one"),
        ("files", {}, "is used but not listed"),
        ("threads", "two", 'threads is "two"; expected a whole number or null'),
    ],
)
def test_manifest_fields_of_the_wrong_kind(artifact_path, field, value, message):
    content = json.loads((artifact_path / MANIFEST).read_text())
    (artifact_path / MANIFEST).write_text(signed({**content, field: value}))
    with pytest.raises(ArtifactError, match=message):
        load(artifact_path)


def test_cpu_features_this_machine_lacks(artifact_path):
    rewrite_program(artifact_path, requirements=["avx1024f"])
    with pytest.raises(ArtifactError, match="needs avx1024f, and this machine's CPU lacks that"):
        load(artifact_path)


def test_matrix_tiles_that_the_system_refuses(artifact_path, monkeypatch):
    rewrite_program(artifact_path, requirements=["amx-tile"])
    monkeypatch.setattr(artifacts, "missing_features", lambda requirements: [])
    monkeypatch.setattr(artifacts, "refusal_of_matrix_tiles", lambda: "the system does not permit it")
    with pytest.raises(ArtifactError, match=r"uses matrix tiles \(amx-tile\), but the system does not permit it"):
        load(artifact_path)
    monkeypatch.setattr(artifacts, "refusal_of_matrix_tiles", lambda: None)
    load(artifact_path)


def test_matrix_tiles_are_asked_for_where_there_are_any():
    refusal = refusal_of_matrix_tiles()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        assert "has no matrix tiles" in refusal
    else:
        assert refusal is None or "does not permit" in refusal


@pytest.mark.parametrize(("result", "refusal"), [(0, None), (-1, "the system does not permit matrix tiles")])
def test_matrix_tiles_are_refused_where_the_system_says_no(monkeypatch, result, refusal):
    calls = []
    system = types.SimpleNamespace(syscall=lambda *arguments: calls.append(arguments) or result)
    monkeypatch.setattr("ctypes.CDLL", lambda name, use_errno: system)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    actual = refusal_of_matrix_tiles.__wrapped__()  # without its cache
    assert len(calls) == 1
    assert actual is None if refusal is None else actual.startswith(refusal)


def test_names_of_cpu_features_are_translated(monkeypatch):
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset({"avx512vnni", "abm", "sse42", "amxtile"}))
    assert machine.missing_features(["avx512vnni", "lzcnt", "sse4.2", "amx-tile", "fma"]) == ["fma"]
    monkeypatch.setattr(machine, "cpu_features", frozenset)
    assert machine.missing_features(["fma"]) == []


def test_objects_of_another_architecture(artifact_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ArtifactError, match="but this machine is riscv64"):
        load(artifact_path)


def test_objects_that_do_not_link(program, context, tmp_path):
    broken = Program("cpu", [], [], {"a.o": b"not an object file"}, [], [])
    write_artifact(tmp_path / "a.moec", broken, context)
    with pytest.raises(ArtifactError, match="its object files cannot be linked"):
        load(tmp_path / "a.moec")


@pytest.mark.parametrize("when", ["before it is checked", "after it was checked"])
def test_an_artifact_that_is_replaced_while_it_is_opened(program, context, artifact_path, monkeypatch, when):
    other = dataclasses.replace(program, weights=[Weight("w", (4,), "float32", lambda: np.ones(4, np.float32))])
    check = artifacts._check_files

    def replaced_once(artifact, check_weights):
        monkeypatch.setattr(artifacts, "_check_files", check)
        if when == "after it was checked":
            check(artifact, check_weights)
        write_artifact(artifact_path, other, context)
        if when == "before it is checked":
            check(artifact, check_weights)

    monkeypatch.setattr(artifacts, "_check_files", replaced_once)
    opened = open_artifact(artifact_path)
    np.testing.assert_array_equal(opened.weights(opened.program())[0][0], np.ones(4))


# --- zips ------------------------------------------------------------------------------------------------------------


def _with_weight(path: pathlib.Path, change: dict) -> str:
    content = json.loads((path / MANIFEST).read_text())
    content["weights"][0].update(change)
    return signed(content)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([State("nothing", "ids_out", None)], "names no input and output"),
        ([State("ids", "nothing", None)], "names no input and output"),
        ([State("x", "ids_out", None)], "cannot be given back"),
        ([State("ids", "ids_out", 2)], "has no such axis"),
        ([State("ids", "ids_out", -1)], "has no such axis"),
        ([State("ids", "ids_out", 1), State("ids", "ids_out", 0)], "two states have one input or output: ids, ids"),
    ],
)
def test_states_have_to_fit(artifact_path, states, message):
    rewrite_manifest(artifact_path, states=states)
    with pytest.raises(ArtifactError, match=message):
        load(artifact_path)


@pytest.mark.parametrize("names", [("text/nothing.json", None), (WEIGHTS, "text/nothing.jinja"), ("../up.json", None)])
def test_files_of_text_have_to_be_listed(artifact_path, names):
    rewrite_manifest(artifact_path, text=TextEntry(*names, end_ids=[1], special_tokens={}))
    with pytest.raises(ArtifactError, match="is used but not listed among the files"):
        load(artifact_path)
