"""Tapes: recorded launches with the memory that they work on, ready to be repeated on a device.

A tape is a JSON file. ``buffers``: pieces of memory, each with its ``bytes`` and its content at the beginning: the
``blob`` that holds it, or a ``fill`` that a kernel makes. ``calls``: calls of kernels, each with its ``tensors`` (name,
dtype, shape, place) and, by number of multiprocessors, its ``launches``. Places are pairs of a buffer and an offset;
an offset of None is a null pointer. ``expected``: tensors with the blobs that hold them afterwards.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

DTYPES = {
    **{name: np.dtype(name) for name in ("int8", "uint8", "int32", "int64", "float32", "float16", "bool")},
    "bfloat16": np.dtype("uint16"),
}
"""Types of tensors as numpy has them; others are bytes."""
TOLERANCES = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
"""By type, the largest difference of numbers as a share of the largest that was computed; others are compared bit by
bit."""
POISON = 0xFF
"""The byte that fills memory with no content: NaN in every type of floating point."""


class Tape:
    """A tape on a device. ``folder``: that of the kit."""

    def __init__(self, folder: pathlib.Path, name: str, device: Any, code: Mapping[str, str] | None = None) -> None:
        """``code``: other device code to use, by the digest of the recorded one."""
        self.folder, self.device, self.code = folder, device, dict(code or {})
        self.data: dict[str, Any] = json.loads((folder / "tapes" / f"{name}.json").read_text(encoding="utf-8"))
        self.addresses = [device.memory(buffer["bytes"]) for buffer in self.data["buffers"]]

    def restore(self) -> None:
        """Give all memory its content at the beginning."""
        for index, buffer in enumerate(self.data["buffers"]):
            if "blob" in buffer:
                self.device.write(self.addresses[index], self.blob(buffer["blob"]))
            elif "fill" in buffer:
                self._fill(self.addresses[index], index, buffer["fill"])
            else:
                self.device.clear(self.addresses[index], buffer["bytes"], POISON)
        self.device.finish()

    def blob(self, digest: str) -> bytes:
        return (self.folder / "blobs" / digest).read_bytes()

    @property
    def multiprocessors(self) -> Sequence[str]:
        """The numbers of multiprocessors that launches were recorded for, the most first."""
        return sorted({key for call in self.data["calls"] for key in call["launches"]}, key=int, reverse=True)

    def calls(self, multiprocessors: str) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
        """Iterate over the kernels and their launches."""
        for call in self.data["calls"]:
            yield call["kernel"], call["launches"].get(multiprocessors, call["launches"][self.multiprocessors[0]])

    def run(self, multiprocessors: str, count: int | None = None) -> None:
        """Run the first ``count`` calls, by default all."""
        for _, launches in list(self.calls(multiprocessors))[:count]:
            for launch in launches:
                self.launch(launch)

    def launch(self, launch: Mapping[str, Any]) -> None:
        digest = self.code.get(launch["module"], launch["module"])
        arguments = [[kind, self._value(kind, value)] for kind, value in launch["arguments"]]
        self.device.launch(
            self.folder / "code" / f"{digest}.fatbin",
            launch["function"],
            arguments,
            launch["launch"],
            begins_early=launch["begins_early"],
        )

    def address(self, place: Sequence[int] | None) -> int:
        return 0 if place is None else self.addresses[place[0]] + place[1]

    def array(self, tensor: Mapping[str, Any]) -> np.ndarray:
        """Read a tensor from the device; bfloat16 as its 16 bits."""
        data = self.device.read(self.address(tensor["place"]), tensor["bytes"])
        kind = DTYPES.get(tensor["dtype"], np.dtype(np.uint8))
        shape = tensor["shape"] if tensor["dtype"] in DTYPES else [-1]
        return np.frombuffer(data, kind).reshape(shape)

    def compare(self) -> Iterator[tuple[str, bool]]:
        """Compare the expected tensors with those on the device: for each a text, and whether it agrees."""
        for tensor in self.data["expected"]:
            actual = self.device.read(self.address(tensor["place"]), tensor["bytes"])
            yield comparison(tensor, actual, self.blob(tensor["blob"]), self.blob(tensor["before"]))

    def results(self) -> list[bytes]:
        """Read the expected tensors' memory."""
        return [self.device.read(self.address(each["place"]), each["bytes"]) for each in self.data["expected"]]

    def _fill(self, address: int, seed: int, fill: Mapping[str, Any]) -> None:
        width = {"bfloat16": 2, "float16": 2, "float32": 4, "uint8": 1}[fill["dtype"]]
        arguments = [["pointer", address], ["int64", fill["count"]], ["int32", width], ["int32", seed]]
        arguments += [["float32", fill["scale"]], ["int32", int(fill["dtype"] == "float16")]]
        code = self.folder / "code" / f"{self.data['helpers']}.fatbin"
        self.device.launch(code, "kit_fill", arguments, {"blockIdx.x": 1024, "threadIdx.x": 256})

    def _value(self, kind: str, value: Any) -> Any:
        if kind == "pointer":
            return self.address(value)
        return {**value, "address": self.address(value["address"])} if kind == "map" else value


def comparison(tensor: Mapping[str, Any], actual: bytes, expected: bytes, before: bytes) -> tuple[str, bool]:
    """Compare a tensor's bytes with those that were saved, as programs of one kernel do."""
    name, dtype = tensor["name"], tensor["dtype"]
    if actual == expected:
        return f"{name}: the same bits", True
    if dtype not in TOLERANCES:
        different = int(np.count_nonzero(np.frombuffer(actual, np.uint8) != np.frombuffer(expected, np.uint8)))
        return f"{name}: {different} bytes differ", False
    a, b = numbers(actual, dtype), numbers(expected, dtype)
    same = np.frombuffer(actual, DTYPES[dtype]) == np.frombuffer(expected, DTYPES[dtype])
    written = np.frombuffer(before, DTYPES[dtype]) != np.frombuffer(expected, DTYPES[dtype])
    largest = np.abs(b[written & np.isfinite(b)]).max(initial=0)
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0, np.abs(a - b))
    difference = float(np.where(np.isnan(apart), np.inf, apart).max(initial=0))
    text = f"{name}: largest difference {difference:.3g}; the largest value is {largest:.3g}"
    return text, bool(difference <= TOLERANCES[dtype] * largest)


def numbers(data: bytes, dtype: str) -> np.ndarray:
    """The floating-point numbers in bytes, as float32."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, DTYPES[dtype]).astype(np.float32)
