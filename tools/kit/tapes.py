"""Tapes of recorded calls (:mod:`kit.carried.tape`): addresses become places in buffers, contents become blobs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kit.recording import KitCall, KitTensor

LARGEST_BLOB = 64 << 10
"""Bytes of a buffer that a tape without contents keeps; larger ones are filled on the device."""
Variants = Mapping[int, Sequence[KitCall]]
"""The recorded calls by number of multiprocessors."""


@dataclasses.dataclass
class KitStore:
    """Files of the kit that are named after their content. ``helpers``, ``measures``: digests of the kit's own device
    code."""

    folder: pathlib.Path
    helpers: str
    measures: str

    def __post_init__(self) -> None:
        for name in ("tapes", "blobs", "code"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()[:24]
        path = self.folder / "blobs" / digest
        if not path.exists():
            path.write_bytes(data)
        return digest

    def tape(self, name: str, data: Mapping[str, Any]) -> None:
        path = self.folder / "tapes" / f"{name}.json"
        text = json.dumps({"helpers": self.helpers, "measures": self.measures, **data}, separators=(",", ":"))
        path.write_text(text, encoding="utf-8")


class _Layout:
    """The buffers of calls: tensors whose memory overlaps share one."""

    def __init__(self, calls: Sequence[KitCall]) -> None:
        self.ranges: list[tuple[int, int]] = []
        self._empty = {each.address for call in calls for each in call.tensors if not each.size}
        spans = sorted({(each.address, each.address + each.size) for call in calls for each in call.tensors})
        for first, end in spans:
            if self.ranges and first < self.ranges[-1][1]:
                self.ranges[-1] = self.ranges[-1][0], max(end, self.ranges[-1][1])
            elif end > first:
                self.ranges.append((first, end))

    def place(self, address: int) -> list[int] | None:
        """The buffer and the offset of an address; None for that of a tensor without numbers, which no kernel reads.
        Raises ValueError for memory of no tensor."""
        for index, (first, end) in enumerate(self.ranges):
            if first <= address < end:
                return [index, address - first]
        if address and address not in self._empty:
            raise ValueError(f"address {address:#x}: in no tensor of the kernel")
        return None

    def tensor(self, tensor: KitTensor) -> dict[str, Any]:
        return {
            "name": tensor.name,
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "bytes": tensor.size,
            "place": self.place(tensor.address) if tensor.size else None,
        }

    def launches(self, call: KitCall) -> list[dict[str, Any]]:
        listed = []
        for launch in call.launches:
            arguments = [[kind, self._value(kind, value)] for kind, value in launch.arguments]
            listed.append({**launch.as_data(), "arguments": arguments})
        return listed

    def _value(self, kind: str, value: Any) -> Any:
        if kind == "pointer":
            return self.place(value)
        return {**value, "address": self.place(value["address"])} if kind == "map" else value


def kernel_tape(variants: Mapping[int, KitCall], store: KitStore) -> dict[str, Any]:
    """Make the tape of one call of a kernel with the contents of its tensors. ``variants``: the same call by number of
    multiprocessors; buffers and contents are those of the first."""
    main = next(iter(variants.values()))
    layout = _Layout([main])
    buffers = []
    for first, end in layout.ranges:
        content = bytearray(end - first)
        for tensor in main.tensors:
            if first <= tensor.address < end and tensor.before:
                content[tensor.address - first : tensor.address - first + tensor.size] = tensor.before
        buffers.append({"bytes": end - first, "blob": store.blob(bytes(content))})
    expected = [
        {**layout.tensor(tensor), "blob": store.blob(tensor.after or b""), "before": store.blob(tensor.before or b"")}
        for tensor in main.tensors
        if tensor.before != tensor.after
    ]
    return {
        "buffers": buffers,
        "calls": [_call(layout, main, {count: _moved(call, main) for count, call in variants.items()})],
        "expected": expected,
    }


def layer_tape(variants: Variants, store: KitStore, contents: Mapping[int, bytes]) -> dict[str, Any]:
    """Make the tape of all calls of one run without contents: buffers are filled on the device, as their first use
    tells. ``contents``: by address, those of tensors that are kept (small weights)."""
    calls = [call for call in next(iter(variants.values())) if call.launches]
    layout = _Layout(calls)
    buffers: list[dict[str, Any]] = [{"bytes": end - first} for first, end in layout.ranges]
    seen: set[int] = set()
    for tensor in (tensor for call in calls for tensor in call.tensors if tensor.size):
        place = layout.place(tensor.address)
        assert place is not None, "layouts hold all tensors"
        if place[0] in seen:
            continue
        seen.add(place[0])
        if fill := _fill(tensor):
            buffers[place[0]]["fill"] = fill
        elif tensor.address in contents:
            buffers[place[0]]["blob"] = store.blob(contents[tensor.address])
    by_count = {count: [call for call in run if call.launches] for count, run in variants.items()}
    listed = []
    for index, call in enumerate(calls):
        same = {count: _moved(run[index], call) for count, run in by_count.items()}
        listed.append(_call(layout, call, same))
    return {"buffers": buffers, "calls": listed, "expected": []}


def _call(layout: _Layout, main: KitCall, variants: Mapping[int, KitCall]) -> dict[str, Any]:
    launches: dict[str, Any] = {}
    for count, call in variants.items():
        of_call = layout.launches(call)
        if not launches or of_call != next(iter(launches.values())):
            launches[str(count)] = of_call
    return {
        "kernel": main.kernel,
        "tensors": [layout.tensor(tensor) for tensor in main.tensors],
        "launches": launches,
    }


def _moved(call: KitCall, main: KitCall) -> KitCall:
    """The call with the addresses of ``main``: memory lies elsewhere in every run."""
    offsets = [(tensor, main_tensor.address) for tensor, main_tensor in zip(call.tensors, main.tensors, strict=True)]

    def moved(address: int) -> int:
        for tensor, base in offsets:
            if tensor.address <= address < tensor.address + tensor.size:
                return base + address - tensor.address
        return address

    def value(kind: str, value: Any) -> Any:
        if kind == "pointer":
            return moved(value)
        return {**value, "address": moved(value["address"])} if kind == "map" else value

    launches = [
        dataclasses.replace(launch, arguments=[[kind, value(kind, each)] for kind, each in launch.arguments])
        for launch in call.launches
    ]
    return KitCall(call.kernel, main.tensors, launches)


def _fill(tensor: KitTensor) -> dict[str, Any] | None:
    """Fill of the memory that a run begins to use as this tensor; None for memory that kernels write first."""
    scales = {"logits": 2.0, "rows": 1.0, "x": 1.0, "matrix": 1 / math.sqrt(max(tensor.shape[-1], 1))}
    if tensor.name not in scales or tensor.dtype not in ("bfloat16", "float16", "float32"):
        return None
    return {"dtype": tensor.dtype, "count": math.prod(tensor.shape), "scale": scales[tensor.name]}
