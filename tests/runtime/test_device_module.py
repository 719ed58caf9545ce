"""The device module inside host code: parsed, and given other code."""

from __future__ import annotations

import struct

import pytest

from moec.common.errors import ArtifactError
from moec.runtime.device_module import DeviceCall, DeviceModule


def counted(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


TAGS = (b"blockIdx.x", b"threadIdx.x")
KERNEL = (
    counted(b"scale_kernel")
    + counted(b"scale_kernel")
    + number(2)
    + struct.pack("<BBHBBH", 3, 64, 1, 0, 32, 1)
    + number(len(TAGS))
    + b"".join(map(counted, TAGS))
    + number(2)
    + struct.pack("<ii", 1, 0)
)
BLOB = counted(b"cuda") + number(1) + KERNEL + counted(b"source")


def test_says_how_kernels_are_called():
    module = DeviceModule.parse(BLOB)
    assert module.kernels == (
        DeviceCall("scale_kernel", ((3, 64), (0, 32)), ("blockIdx.x", "threadIdx.x"), frozenset({0})),
    )
    assert module.code == b"source"


def test_other_code_takes_its_place():
    assert DeviceModule.parse(BLOB).with_code("cuda", b"source") == BLOB
    changed = DeviceModule.parse(DeviceModule.parse(BLOB).with_code("cubin", b"\x7fELF"))
    assert changed.code == b"\x7fELF"
    assert changed.kernels == DeviceModule.parse(BLOB).kernels


@pytest.mark.parametrize("size", [0, 5, 20, len(BLOB) - 1])
def test_a_truncated_module_is_refused(size):
    with pytest.raises(ArtifactError, match=r"the device module cannot be read .* compile the model again"):
        DeviceModule.parse(BLOB[:size])
