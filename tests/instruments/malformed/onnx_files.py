"""ONNX files, and the files in which their tensors lie."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator
from typing import Any

from onnx import ModelProto

from moec.frontend.onnx.conditions import KEY as CONDITIONS_KEY
from moec.frontend.onnx.exported_ranges import RANGES
from moec.ir.origins import ORIGIN_KEY
from moec.ir.states import STATES_KEY
from moec.ir.streaming import SHARES_KEY
from moec.profiles.keys import MEASURED_KEY

from ...mutants import mutant
from ...mutants.seeds import MODEL, Files, own_seeds
from ..json_damage import damage
from .byte_damage import damage_file
from .kinds import Commands, InputKind

_LOCATIONS = (
    *("", ".", "..", "/etc/passwd", "../up.bin", "a\0b", "x" * 300, "x/" * 3000, "é", "model.onnx", "none.bin", "\n"),
    *("data.bin/", "./data.bin", "folder", "C:\\x", "~", "-", "/dev/zero", "/proc/self/mem"),
)
_NUMBERS = (
    *("", "-1", "9" * 5000, "1" * 400, "1e3", " 5", "+5", "0x10", "1_000", "٣", "²", "1.0", "NaN", "0" * 9000 + "1"),
    *("18446744073709551616", "9223372036854775807", "1", "3", "4096"),
)
_SIZES = (-(2**63), -1, 0, 1, 3, 2**31, 2**40, 2**62, 2**63 - 1)


def _prepare(folder: pathlib.Path) -> None:
    _write(folder, own_seeds()["external_weights"])


def _write(folder: pathlib.Path, files: Files) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _damage(folder: pathlib.Path, rng: random.Random) -> str:
    """A mutant of ``tests.mutants``, or a model with text that is not UTF-8."""
    built = mutant.make(rng.randrange(1 << 32), 0, with_node_tests=False)
    _write(folder, built.files)
    if rng.random() < 0.7:
        return built.history
    files = rng.choice(list(own_seeds().values()))
    _write(folder, files)
    return rng.choice([_break_text, _break_text, _set_metadata])(folder / MODEL, rng)


_METADATA: dict[str, Any] = {
    STATES_KEY: [{"input": "x", "output": "y", "axis": 1}],
    ORIGIN_KEY: {"experts": [[0], [1]], "removed": {"7": "why"}, "joined": {"1": "why"}},
    SHARES_KEY: [0.5, 0.5],
    MEASURED_KEY: "89abcdef01234567 0123456789abcdef:0,2,5",
    CONDITIONS_KEY: {"guards": ["n <= 4"], "unchecked": [], "fixed": []},
    RANGES: "s0: VR[2, 99999]",
}
"""What moec itself notes in a model, which a file may hold, too."""


def _set_metadata(path: pathlib.Path, rng: random.Random) -> str:
    """Damaged notes of moec's own at the model, at its graph and at its nodes."""
    proto = ModelProto.FromString(path.read_bytes())
    key = rng.choice(list(_METADATA))
    data, reported = damage(_METADATA[key], rng)
    text = data.decode("utf-8", errors="replace")
    for owner in (proto, proto.graph, *proto.graph.node):
        owner.metadata_props.add(key=key, value=text)
    path.write_bytes(proto.SerializeToString())
    return f"{key}: {reported}"


def _break_text(path: pathlib.Path, rng: random.Random) -> str:
    """Bytes of the same length in the place of one of the model's texts: protobuf's library writes no others."""
    data = path.read_bytes()
    owner, text = rng.choice(sorted(set(_texts(ModelProto.FromString(data), "model"))))
    old = text.encode()
    new = rng.choice([b"\xff" * len(old), old[:-1] + b"\x80", b"\xc3" * len(old), b"\0" * len(old)])
    path.write_bytes(data.replace(old, new) if rng.random() < 0.7 else data.replace(old, new, 1))
    return f"{owner} {text[:40]!r} is {new[:8]!r}"


def _texts(message: Any, owner: str) -> Iterator[tuple[str, str]]:
    """All texts in a message, with the fields that hold them."""
    for field, value in message.ListFields():
        for one in (
            value if isinstance(value, (list, tuple)) or hasattr(value, "add") or hasattr(value, "append") else [value]
        ):
            if isinstance(one, str) and one:
                yield f"{owner}.{field.name}", one
            elif isinstance(one, bytes) and 0 < len(one) < 40 and one.isascii():
                yield f"{owner}.{field.name}", one.decode()
            elif hasattr(one, "ListFields"):
                yield from _texts(one, field.name)


def _damage_external(folder: pathlib.Path, rng: random.Random) -> str:
    path = folder / MODEL
    proto = ModelProto.FromString(path.read_bytes())
    reported = []
    for _ in range(rng.choice([1, 1, 2])):
        tensor = rng.choice([initializer for initializer in proto.graph.initializer if initializer.external_data])
        kind = rng.choice(["location", "offset", "length", "dims", "type", "entries", "file", "bytes"])
        if kind == "file":
            _write(folder, {MODEL: proto.SerializeToString()})
            reported.append(damage_file(rng.choice([path for path in folder.iterdir() if path.name != MODEL]), rng))
            return "; ".join(reported)
        reported.append(_DAMAGE[kind](tensor, rng))
    path.write_bytes(proto.SerializeToString())
    if "bytes" in reported:
        reported.append(_break_text(path, rng))
    return "; ".join(reported)


def _set_entry(tensor: Any, key: str, value: str) -> str:
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
            return f"{key} is {value[:30]!r}"
    tensor.external_data.add(key=key, value=value)
    return f"{key} is {value[:30]!r}"


def _set_size(tensor: Any, rng: random.Random) -> str:
    tensor.dims[:] = [rng.choice(_SIZES) for _ in range(rng.choice([0, 1, 2, 70]))]
    return f"dims are {list(tensor.dims)[:4]}"


def _set_type(tensor: Any, rng: random.Random) -> str:
    tensor.data_type = rng.choice([-1, 0, 2, 8, 9, 16, 17, 21, 22, 23, 24, 30, 99, 2**31 - 1])
    return f"type is {tensor.data_type}"


def _change_entries(tensor: Any, rng: random.Random) -> str:
    if rng.random() < 0.5:
        del tensor.external_data[rng.randrange(len(tensor.external_data)) :]
        return "entries are missing"
    tensor.external_data.add(key=rng.choice(["location", "offset", "x", ""]), value=rng.choice(_NUMBERS))
    return "an entry is there twice"


_DAMAGE = {
    "location": lambda tensor, rng: _set_entry(tensor, "location", rng.choice(_LOCATIONS)),
    "offset": lambda tensor, rng: _set_entry(tensor, "offset", rng.choice(_NUMBERS)),
    "length": lambda tensor, rng: _set_entry(tensor, "length", rng.choice(_NUMBERS)),
    "dims": _set_size,
    "type": _set_type,
    "entries": _change_entries,
    "bytes": lambda tensor, rng: "bytes",
}


def _commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    model, artifact = str(folder / MODEL), str(folder / "new.moec")
    compiled = ["compile", model, "-o", artifact]
    return [rng.choice([["import", model], ["opt", model, "-O2"], compiled, compiled])]


KINDS = {
    "onnx": InputKind(_prepare, _damage, _commands),
    "external": InputKind(_prepare, _damage_external, _commands),
}
