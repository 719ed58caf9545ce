"""Several programs in one artifact: the weights they share, and the selection of one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.artifacts.writer import write_artifact
from moec.common.errors import MoecError
from moec.exploring.subject import Subject
from moec.runtime.artifact import open_artifact
from moec.runtime.description import describe
from moec.targets.base import Candidate, KernelRecord, Program, Weight


def weight(name: str, value: float) -> Weight:
    return Weight(name, (3,), "float32", lambda: np.full(3, value, np.float32))


@pytest.fixture
def two_programs(context, tmp_path):
    kernel = KernelRecord("product", "MatMul", ["n"], [Candidate("k", True, "it fits", True)], sources={"tir": "one"})
    old = Program("cuda:sm_80", [], [], {"a.o": b"old"}, [weight("w", 1), weight("v", 1)], [kernel])
    old = dataclasses.replace(old, architecture="sm_80", binary=b"code for sm_80", binary_suffix=".fatbin")
    newer = dataclasses.replace(kernel, sources={"tir": "two"})
    new = Program("cuda:sm_90a", [], [], {"a.o": b"new"}, [weight("v", 2), weight("u", 1), weight("w", 1)], [newer])
    new = dataclasses.replace(new, architecture="sm_90a", requirements=["avx2"])
    write_artifact(tmp_path / "art", old, context, new)
    return open_artifact(tmp_path / "art")


def test_weights_of_equal_name_and_content_are_stored_once(two_programs):
    old, new = two_programs.manifest.programs
    assert [weight.name for weight in two_programs.manifest.weights] == ["w", "v", "v", "u"]
    assert (old.weights, new.weights) == ([0, 1], [2, 3, 0])
    values = [[array[0] for array in two_programs.weights(program)[0]] for program in (old, new)]
    assert values == [[1, 1], [2, 1, 1]]


def test_files_of_each_program_are_its_own(two_programs):
    old, new = two_programs.manifest.programs
    assert [path.read_bytes() for program in (old, new) for path in two_programs.object_paths(program)] == [
        b"old",
        b"new",
    ]
    assert [two_programs.text(program.kernels[0]["sources"]["tir"]) for program in (old, new)] == ["one", "two"]
    assert (old.binary, new.binary) == ("device/sm_80.fatbin", None)


def test_the_newest_is_meant_unless_another_is_named(two_programs):
    assert two_programs.program().architecture == "sm_90a"
    assert two_programs.program("sm_80").objects == ["objects/sm_80/a.o"]
    with pytest.raises(MoecError, match="no program for architecture 'sm_86'; its programs are for sm_80, sm_90a"):
        two_programs.program("sm_86")


def test_descriptions_say_which_kernel_is_for_which(two_programs):
    described = describe(two_programs)
    assert described["target"] == "cuda:sm_80+sm_90a"
    assert (
        described["architectures"] == [kernel["architecture"] for kernel in described["kernels"]] == ["sm_80", "sm_90a"]
    )
    assert described["requirements"] == ["avx2"]
    assert describe(two_programs, "sm_80")["requirements"] == []


def test_an_artifact_for_the_processor_has_no_architecture(pristine_artifact):
    artifact = open_artifact(pristine_artifact)
    assert artifact.program().architecture == ""
    with pytest.raises(MoecError, match="'sm_80'; it is compiled for cpu:test alone"):
        artifact.program("sm_80")


def test_each_program_is_a_subject_of_its_own(two_programs):
    subject = Subject("art", two_programs)
    assert [(each.title, each.architecture) for each in subject.programs()] == [
        ("art, sm_80", "sm_80"),
        ("art, sm_90a", "sm_90a"),
    ]
    asked = dataclasses.replace(subject, architecture="sm_80")
    assert [*asked.programs()] == [asked]
