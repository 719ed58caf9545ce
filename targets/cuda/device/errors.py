"""Translation of CUDA's errors into errors that tell the user what to do.

CUDA reports a failure as a name or a sentence, possibly in a later call than the one that caused it.
"""

from __future__ import annotations

import re

from moec.common.errors import ArtifactError, DefectError, MoecError, RoomError

_KINDS: tuple[tuple[str, type[MoecError], str], ...] = (
    (
        r"out.?of.?memory|MemoryAllocation",
        RoomError,
        "the GPU is out of memory; end other programs on it, use fewer tokens at once, or compile with smaller weights "
        "(--experts int4)",
    ),
    (
        r"driver version is insufficient|InsufficientDriver|RequiresNewerDriver|SYSTEM_DRIVER_MISMATCH",
        MoecError,
        "NVIDIA's driver is too old for the CUDA runtime; install a newer driver",
    ),
    (
        r"NO_BINARY_FOR_GPU|NoKernelImageForDevice|no kernel image is available|INVALID_IMAGE",
        ArtifactError,
        "the artifact holds no code that this GPU can run; compile it for this GPU (moec doctor shows which it is)",
    ),
    (
        r"UNSUPPORTED_PTX_VERSION|UnsupportedPtxVersion|INVALID_PTX|InvalidPtx|JIT_COMPIL|JitCompil",
        ArtifactError,
        "the driver makes no code for this GPU of the artifact's PTX; compile it for this GPU (moec doctor shows which "
        "it is), or install a newer driver",
    ),
    (
        r"no CUDA-capable device|NoDevice|NO_DEVICE",
        MoecError,
        "the driver finds no GPU; check CUDA_VISIBLE_DEVICES, or run the model by: moec run --emulate",
    ),
    (
        r"illegal memory access|IllegalAddress|ILLEGAL_ADDRESS|misaligned address|MisalignedAddress|MISALIGNED_ADDRESS|"
        r"illegal instruction|IllegalInstruction|ILLEGAL_INSTRUCTION|launch failure|LaunchFailure|LAUNCH_FAILED|"
        r"launch timed out|LaunchTimeout|LAUNCH_TIMEOUT|device-side assert|hardware stack error",
        DefectError,
        "a kernel failed on the GPU, which serves this process no more: start a new one. moec run --emulate names the "
        "kernel and what it did",
    ),
    (
        r"CUDALaunch Error|LaunchOutOfResources|too many resources requested|invalid configuration",
        DefectError,
        "the GPU refused to launch a kernel",
    ),
    (r"^CUDA\w*( \w+)*:", DefectError, "the GPU or its driver failed"),
)
_FORMS = tuple((re.compile(pattern, re.IGNORECASE), kind, meaning) for pattern, kind, meaning in _KINDS)


def explain_gpu_error(message: str) -> MoecError | None:
    """The error to raise for a message of CUDA or of TVM's runtime; None for a message that is not about the GPU."""
    reason = " ".join(message.split())
    if "cuda" not in reason.lower():
        return None
    for form, kind, meaning in _FORMS:
        if form.search(reason):
            return kind(f"{meaning} ({reason})")
    return None
