"""Which code of an artifact a GPU runs, and what is said where there is no GPU."""

from __future__ import annotations

import ctypes

import pytest

import moec
from moec.errors import ArtifactError, MoecError
from moec.runtime import devices
from moec.runtime.artifact import open_artifact
from moec.runtime.gpu import best_binary


@pytest.mark.parametrize(
    ("architectures", "capability", "best"),
    [
        (["sm_80"], "8.0", "sm_80"),
        (["sm_80", "sm_86", "sm_89"], "8.6", "sm_86"),
        (["sm_80", "sm_89"], "8.6", "sm_80"),
        (["sm_90", "sm_90a"], "9.0", "sm_90a"),
    ],
)
def test_the_newest_that_fits(architectures, capability, best):
    assert best_binary(architectures, capability, "art") == best


@pytest.mark.parametrize(
    ("architectures", "capability", "message"),
    [
        (["sm_80"], "9.0", "art: holds code for sm_80, and the GPU is sm_90; compile it with --target cuda:sm_90"),
        (["sm_89"], "8.0", "holds code for sm_89, and the GPU is sm_80"),
        (["sm_90a"], "10.0", "the GPU is sm_100"),
        ([], "8.0", "holds no code for a GPU, for no nvcc was found"),
    ],
)
def test_no_code_that_fits(architectures, capability, message):
    with pytest.raises(ArtifactError, match=message):
        best_binary(architectures, capability, "art")


def test_without_a_driver_the_way_out_is_named(pristine_artifact, monkeypatch):
    def missing(*_arguments, **_options):
        raise OSError("libcuda.so.1: cannot open shared object file")

    artifact = open_artifact(pristine_artifact)
    artifact.manifest.target = "cuda"
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(MoecError, match=r"needs a GPU, but NVIDIA's driver is not installed .*moec run --emulate"):
        devices.device_of(artifact)


def test_a_program_for_the_processor_is_not_emulated(pristine_artifact):
    with pytest.raises(MoecError, match="is compiled for cpu:test, which needs no emulation"):
        moec.load(pristine_artifact, emulate=True)
