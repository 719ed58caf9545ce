"""Selection of an artifact's code for a GPU, and the messages where there is no GPU."""

from __future__ import annotations

import ctypes

import pytest

import moec
from moec.artifacts import loading
from moec.common.errors import ArtifactError, DefectError, MoecError, RoomError
from moec.runtime.artifact import open_artifact
from moec.runtime.library import load_ffi
from moec.targets.cuda.device import gpu
from moec.targets.cuda.device.driver import GpuFacts, open_driver
from moec.targets.cuda.device.errors import explain_gpu_error
from moec.targets.cuda.device.gpu import best_binary


@pytest.mark.parametrize(
    ("architectures", "capability", "best"),
    [
        (["sm_80"], "8.0", "sm_80"),
        (["sm_80", "sm_86", "sm_89"], "8.6", "sm_86"),
        (["sm_80", "sm_89"], "8.6", "sm_80"),
        (["sm_90", "sm_90a"], "9.0", "sm_90a"),
        (["sm_80", "sm_90a"], "9.0", "sm_90a"),
        (["sm_80"], "9.0", "sm_80"),
        (["sm_80", "sm_89", "sm_90a"], "12.0", "sm_89"),
        (["sm_80", "sm_90a", "sm_100", "sm_120"], "9.0", "sm_90a"),
        (["sm_120", "sm_100", "sm_90a", "sm_80"], "10.0", "sm_100"),
        (["sm_80", "sm_100", "sm_120"], "10.3", "sm_100"),
        (["sm_80", "sm_100", "sm_100a", "sm_120"], "10.0", "sm_100a"),
        (["sm_100", "sm_100a", "sm_103a"], "10.3", "sm_103a"),
        (["sm_100", "sm_100a"], "10.3", "sm_100"),
        (["sm_100", "sm_100a"], "12.0", "sm_100"),
        (["sm_80", "sm_100", "sm_120"], "12.0", "sm_120"),
        (["sm_80", "sm_120a", "sm_120"], "12.0", "sm_120a"),
        (["sm_80", "sm_120a", "sm_120"], "12.1", "sm_120"),
        (["sm_89", "sm_100"], "12.1", "sm_100"),
    ],
)
def test_the_newest_that_fits(architectures, capability, best):
    assert best_binary(architectures, capability, "art") == best


@pytest.mark.parametrize(
    ("architectures", "capability", "message"),
    [
        (
            ["sm_86"],
            "8.0",
            "art: has code for sm_86; expected code for the GPU, sm_80; compile it with --target cuda:sm_80",
        ),
        (["sm_89"], "8.0", "has code for sm_89; expected code for the GPU, sm_80"),
        (["sm_90a"], "10.0", "the GPU, sm_100; compile it with --target cuda:sm_100a"),
        (["sm_120"], "9.0", "the GPU, sm_90; compile it with --target cuda:sm_90a"),
        (["sm_90a"], "12.1", "the GPU, sm_121; compile it with --target cuda:sm_120$"),
        (["sm_120a"], "12.1", "has code for sm_120a; expected code for the GPU, sm_121; .* --target cuda:sm_120$"),
        (["sm_80"], "7.5", "the GPU, sm_75; use a GPU of sm_80 or newer"),
        ([], "8.0", "has no code for a GPU, because nvcc was not found"),
    ],
)
def test_no_code_that_fits(architectures, capability, message):
    with pytest.raises(ArtifactError, match=message):
        best_binary(architectures, capability, "art")


@pytest.fixture
def for_gpu(pristine_artifact):
    """Make an artifact for a GPU, with code for compute capability 8.0."""
    load_ffi()  # its library is not the one that tests remove
    artifact = open_artifact(pristine_artifact)
    artifact.manifest.target = "cuda"
    (program,) = artifact.manifest.programs
    program.architecture, program.binary = "sm_80", program.objects[0]
    return artifact


class StandInDriver:
    def __init__(self, capability: str | None, version: tuple[int, int] = (13, 0)) -> None:
        self._capability, self.version = capability, version

    def gpus(self):
        return [] if self._capability is None else [GpuFacts("a GPU", self._capability, 1 << 30)]


def no_library(*_arguments, **_options):
    raise OSError("cannot open shared object file")


def test_without_a_driver_the_way_out_is_named(for_gpu, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setattr(gpu, "open_driver", open_driver.__wrapped__)
    with pytest.raises(MoecError, match=r"needs a GPU, but NVIDIA's driver is not installed .*moec run --emulate"):
        loading.device_of(for_gpu)


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (StandInDriver(None), r"the driver finds none \(see CUDA_VISIBLE_DEVICES\); .*moec run --emulate"),
        (StandInDriver("8.0", (12, 8)), r"the driver is for CUDA 12\.8; expected 13"),
        (StandInDriver("7.5"), "has code for sm_80; expected code for the GPU, sm_75"),
        (StandInDriver("8.6"), r"CUDA's runtime cannot be loaded .*pip install 'moec\[cuda\]'"),
    ],
    ids=["no GPU", "old driver", "old GPU", "no runtime"],
)
def test_what_is_missing_is_named(for_gpu, driver, message, monkeypatch):
    monkeypatch.setattr(gpu, "open_driver", lambda: driver)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with pytest.raises(MoecError, match=message):
        loading.device_of(for_gpu)


@pytest.mark.parametrize(
    ("message", "kind", "meaning"),
    [
        ("CUDA Runtime Error: out of memory", RoomError, "out of memory; .*fewer tokens"),
        ("CUDAError: cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU", ArtifactError, "compile it for this GPU"),
        ("CUDA: CUDA driver version is insufficient for CUDA runtime version", MoecError, "install a newer driver"),
        ("CUDA: no CUDA-capable device is detected", MoecError, "finds no GPU"),
        ("CUDA: an illegal memory access was encountered", DefectError, "start a new one.* moec run --emulate"),
        ("CUDA Runtime Error: cudaErrorUnknown (999): unknown", DefectError, "the GPU or its driver failed"),
        (
            "CUDALaunch Error: CUDA_ERROR_INVALID_VALUE\n grid=(0,1,1)",
            DefectError,
            r"refused to launch .*grid=\(0,1,1\)",
        ),
    ],
)
def test_errors_of_cuda_say_what_to_do(message, kind, meaning):
    explained = explain_gpu_error(message)
    assert type(explained) is kind
    with pytest.raises(kind, match=meaning):
        raise explained


@pytest.mark.parametrize("message", ["Mismatched x.shape", "out of memory", "CUDA graphs are fine"])
def test_other_errors_are_left_alone(message):
    assert explain_gpu_error(message) is None


def test_a_program_for_the_processor_is_not_emulated(pristine_artifact):
    with pytest.raises(MoecError, match="is compiled for cpu:test, which needs no emulation"):
        moec.load(pristine_artifact, emulate=True)
