"""Records on disk: for each model and target an index of texts, and the texts, each stored once.

``FOLDER/indices/<model>/<target>.json`` has the digest of each text by the text's name, ``FOLDER/texts`` the texts by
their digests. An index is written last, so a record that was interrupted continues with the indices that are missing.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping

from replaying.models import Model
from replaying.texts import as_text, digest_of_model, texts_of

INDICES, TEXTS = "indices", "texts"
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "onnx", "onnx-ir", "numpy")


@dataclasses.dataclass(frozen=True)
class Index:
    """Record of a model for a target. ``sources`` and ``made_of``: digests of the compiler and of the model
    with its options. ``entries``: the digest of each text by its name."""

    model: str
    target: str
    sources: str
    made_of: str
    entries: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Job:
    """One index to make: of a model, by its name, for a target."""

    name: str
    model: Model
    target: str
    folder: pathlib.Path
    sources: str

    def run(self) -> tuple[bool, float]:
        """Whether it was not there yet, and the seconds of processor time that it took."""
        start = time.process_time()
        with tempfile.TemporaryDirectory() as temporary:
            model = self.model.file(pathlib.Path(temporary)).resolve()
            made_of = digest_of_model(model, self.model.options)
            earlier = read_index(path_of_index(self.folder, self.name, self.target))
            if earlier is not None and (earlier.sources, earlier.made_of) == (self.sources, made_of):
                return False, time.process_time() - start
            texts = dict(texts_of(model, self.target, self.model.options))
        entries = {name: keep(self.folder, texts[name]) for name in sorted(texts)}
        write_index(self.folder, Index(self.name, self.target, self.sources, made_of, entries))
        return True, time.process_time() - start


def source_folders() -> list[pathlib.Path]:
    """Folders of all code that a record follows from: the compiler's packages and this tool. ``moec.__path__`` would
    not do: in a checkout it has the root of the checkout, too."""
    import moec
    from moec import passes, targets

    modules = (moec.__file__, passes.__file__, targets.__file__, __file__)
    return [pathlib.Path(str(file)).resolve().parent for file in modules]


def digest_of_sources() -> str:
    """The digest of all that a record follows from, except models: source files and versions of packages."""
    digest = hashlib.sha256(json.dumps([importlib.metadata.version(name) for name in _PACKAGES]).encode())
    for root in source_folders():
        for file in sorted(root.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def path_of_index(folder: pathlib.Path, name: str, target: str) -> pathlib.Path:
    return folder / INDICES / name / f"{target.replace(':', '-')}.json"


def read_index(path: pathlib.Path) -> Index | None:
    """None where there is no such file."""
    return Index(**json.loads(path.read_text())) if path.is_file() else None


def read_indices(folder: pathlib.Path) -> dict[tuple[str, str], Index]:
    """All of a record, by model and target."""
    indices = (read_index(path) for path in sorted((folder / INDICES).rglob("*.json")))
    return {(index.model, index.target): index for index in indices if index is not None}


def write_index(folder: pathlib.Path, index: Index) -> None:
    path = path_of_index(folder, index.model, index.target)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, as_text(dataclasses.asdict(index)))


def keep(folder: pathlib.Path, content: bytes) -> str:
    """The digest of a content, which is kept where it is text."""
    digest = hashlib.sha256(content).hexdigest()
    path = path_of_text(folder, digest)
    if not path.exists() and b"\0" not in content:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, gzip.compress(content, 5, mtime=0))
    return digest


def kept(folder: pathlib.Path, digest: str) -> list[str] | None:
    """The lines of a text; None for bytes that are none."""
    path = path_of_text(folder, digest)
    return gzip.decompress(path.read_bytes()).decode(errors="replace").splitlines() if path.exists() else None


def path_of_text(folder: pathlib.Path, digest: str) -> pathlib.Path:
    return folder / TEXTS / digest[:2] / f"{digest[2:]}.gz"


def replace(path: pathlib.Path, content: bytes) -> None:
    """Write a file in one step."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, path)
