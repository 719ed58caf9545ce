"""Artifacts, as folders and as zips."""

from __future__ import annotations

import pathlib
import random
import shutil
import zipfile

import numpy as np

from .. import artifact_edits, artifacts
from .byte_damage import damage_file
from .kinds import Commands, InputKind
from .zip_damage import damage_zip

_ARTIFACT, _ZIP, _INPUTS = "model.moec", "model.zip", "inputs.npz"


def _prepare(folder: pathlib.Path) -> None:
    artifacts.make_base(folder)
    (folder / "base.moec").rename(folder / _ARTIFACT)
    np.savez(folder / _INPUTS, ids=np.arange(6).reshape(3, 2), x=np.ones((3, 2, 8), np.float32))


def _damage(folder: pathlib.Path, rng: random.Random) -> str:
    artifact = folder / _ARTIFACT
    edits = artifact_edits.random_edits(rng, artifact)
    as_zip = rng.random() < 0.5
    reported = []
    if not as_zip or rng.random() < 0.3:
        artifact_edits.apply(artifact, edits)
        reported += [str(edit) for edit in edits]
    if as_zip:
        path = artifacts.zipped(artifact, folder / _ZIP)
        shutil.rmtree(artifact)
        reported.append(_damage_zip(path, rng))
        path.rename(artifact) if rng.random() < 0.1 else None
    return "; ".join(reported)


def _damage_zip(path: pathlib.Path, rng: random.Random) -> str:
    kind = rng.choice(["entries", "entries", "bytes", "bomb", "compressed"])
    if kind == "entries":
        return damage_zip(path, rng)
    if kind == "bytes":
        return damage_file(path, rng)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    if kind == "bomb":
        entries[rng.choice(["bomb", "src/bomb", *entries])] = bytes(rng.choice([1 << 20, 1 << 28]))
    with zipfile.ZipFile(path, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return kind


def _commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    artifact = str(folder / (_ZIP if (folder / _ZIP).is_symlink() or (folder / _ZIP).exists() else _ARTIFACT))
    inputs, outputs = str(folder / _INPUTS), str(folder / "out.npz")
    pages = rng.choice(["mapped", "auto", "streamed", "huge"])
    return [
        ["inspect", artifact, *rng.choice([[], ["--json"]])],
        ["run", artifact, "--inputs", inputs, "--outputs", outputs, "--pages", pages],
        *rng.choice([[], [["evaluate", artifact, "--data", inputs]]]),
    ]


KINDS = {"artifact": InputKind(_prepare, _damage, _commands)}
