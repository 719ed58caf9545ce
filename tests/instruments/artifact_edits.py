"""Random damage to an artifact: changes of its manifest, with a valid digest again, and of its files."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

from moec.runtime.artifact import checksum
from moec.runtime.manifest import MANIFEST, WEIGHTS

from ..runtime.forged_manifests import signed
from . import json_damage
from .json_damage import CHANGES, VALUES, Path


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change: ``kind`` names the function, ``where`` is a place in the manifest or the name of a file."""

    kind: str
    where: Path
    value: Any = None

    def __str__(self) -> str:
        return f"{self.kind} {'/'.join(map(str, self.where))} {'' if self.value is None else repr(self.value)[:60]}"


def random_edits(rng: random.Random, folder: pathlib.Path) -> tuple[Edit, ...]:
    """One to four changes of the artifact in a folder."""
    content = json.loads((folder / MANIFEST).read_text())
    places, names = list(json_damage.places(content)), sorted([MANIFEST, *content["files"]])
    return tuple(_random_edit(rng, places, names) for _ in range(rng.choice([1, 1, 1, 2, 4])))


def apply(folder: pathlib.Path, edits: tuple[Edit, ...]) -> None:
    """Change an artifact. Its manifest is signed again where the change is one of the manifest, or of a text that is to
    be believed; machine code and weights are never signed again, for they would be another program's."""
    in_manifest = [edit for edit in edits if edit.kind in CHANGES]
    in_files = [edit for edit in edits if edit.kind in _IN_FILES]
    content = json.loads((folder / MANIFEST).read_text())
    is_believed = bool(in_manifest)
    for edit in in_files:
        (name,) = edit.where
        if name != MANIFEST:
            _IN_FILES[edit.kind](folder / name, edit.value)
        if edit.value is True and _is_text(name) and (folder / name).is_file():
            content["files"][name] = dataclasses.asdict(checksum(folder / name))
            is_believed = True
    for edit in in_manifest:
        json_damage.change(content, edit.kind, edit.where, edit.value)
    if is_believed:
        (folder / MANIFEST).write_text(signed(content))
    for edit in in_files:
        if edit.where == (MANIFEST,):
            _IN_FILES[edit.kind](folder / MANIFEST, edit.value)


def _random_edit(rng: random.Random, places: list[Path], names: list[str]) -> Edit:
    if rng.random() < 0.25:
        return Edit(rng.choice(list(_IN_FILES)), (rng.choice(names),), rng.random() < 0.5 or rng.random())
    kind, where = rng.choice(list(CHANGES)), rng.choice(places)
    # Most places are in the plain data for people: half of the changes are where the loader looks.
    if rng.random() < 0.5:
        where = rng.choice([place for place in places if place[0] in ("inputs", "outputs", "weights", "programs")])
    return Edit(kind, where, rng.choice(VALUES) if kind == "set" else rng.random() if kind == "vary" else None)


def _is_text(name: str) -> bool:
    return name.startswith(("ir/", "src/")) and name != WEIGHTS


def _flip(path: pathlib.Path, value: Any) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[int(float(value) * 7919) % len(data)] ^= 1 << int(float(value) * 8) % 8
    path.write_bytes(data)


def _cut(path: pathlib.Path, value: Any) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * float(value) / 2)])


def _append(path: pathlib.Path, _value: Any) -> None:
    path.write_bytes(path.read_bytes() + bytes(4096))


def _remove(path: pathlib.Path, _value: Any) -> None:
    path.unlink()


def _link_out(path: pathlib.Path, _value: Any) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _make_folder(path: pathlib.Path, _value: Any) -> None:
    path.unlink()
    path.mkdir()


def _make_pipe(path: pathlib.Path, _value: Any) -> None:
    path.unlink()
    os.mkfifo(path)


def _once(change: Callable[[pathlib.Path, Any], None]) -> Callable[[pathlib.Path, Any], None]:
    return lambda path, value: change(path, value) if path.is_file() and not path.is_symlink() else None


_IN_FILES = {
    change.__name__.strip("_"): _once(change)
    for change in (_flip, _cut, _append, _remove, _link_out, _make_folder, _make_pipe)
}


def copy(base: pathlib.Path, folder: pathlib.Path) -> None:
    """A copy of an artifact that may be changed."""
    shutil.copytree(base, folder)
