"""The ``.moeprof`` file: a zip of plain arrays (``.npy``, not compressed) with a JSON head, sealed by moec.

::

    profile.json                        version, model and data with their hashes, and one entry per layer
    <key>/<array>.npy                   arrays over all experts of the layer
    <key>/<array>/<expert>.npy          arrays of one expert
    input<n>/<array>.npy                rows and moment of the value that linears read
    held/<piece>/<n>.npy                the n-th input of the model, of data that was held back from measurement

Two profiles of one model merge: sums are added, and rows are selected evenly from both. Version 1 has no
``sample_output``, version 2 neither ``sensitivity`` nor data held back. A pass that needs these refuses such a profile;
all others read it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.array_zips import DamagedError, open_zip, read_array, read_entry
from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.common.plain_files import parse_json
from moec.common.replacing import replacing
from moec.common.seals import foreign_file, seal_zip
from moec.profiles.arrays import HELD, PARTNERS, problem_of
from moec.profiles.head import Head, LayerEntry, read_head
from moec.profiles.keys import MEASURED_KEY, measured_as
from moec.profiles.measures import ExpertsMeasures, LinearMeasures, selected

Array = np.ndarray[Any, Any]

_HEAD = "profile.json"
_LARGEST_HEAD = 64 << 20


class Profile:
    """A profile that is open for reading."""

    def __init__(self, path: str | os.PathLike[str], archive: zipfile.ZipFile, head: Head) -> None:
        self.path, self.head = os.fspath(path), head
        self._archive = archive
        self._layers = {layer.key: layer for layer in head.layers}
        self._names = set(archive.namelist())
        self._lock = threading.Lock()  # entries share the archive's position in the file

    def __repr__(self) -> str:
        return f"<Profile {self.path!r}: {len(self.head.layers)} layers after {self.head.passes!r}>"

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Profile:
        """Open a profile. Raises MoecError for a file that is no profile, is damaged or of another version."""
        try:
            archive = open_zip(path)
            try:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise MoecError(f"{path}: holds compressed entries; expected a profile as moec profile writes it")
                data = parse_json(read_entry(archive, _HEAD, _LARGEST_HEAD))
                return Profile(path, archive, read_head(data, os.fspath(path)))
            except BaseException:
                archive.close()
                raise
        except (DamagedError, ValueError) as error:
            raise MoecError(f"{path}: is not a profile; make one with moec profile MODEL --data DATA -o P") from error

    def experts(self, node: ir.Node) -> ExpertsMeasures:
        """Read the measures of the experts of a ``moec.MoE`` or ``moec.Experts`` node, also where the layer had more
        experts when it was measured. Raises MoecError where there are none: the profile belongs to another model, or
        was made after other passes."""
        layer, experts = self._layer(node, "experts")
        measures = self._experts_of(layer)
        if experts is None:
            return measures
        try:
            return selected(measures, experts)
        except ValueError as error:
            raise MoecError(
                f"{self.path}: node {node_name(node)}: its metadata {MEASURED_KEY} names {error}; remove it from the "
                "model and make the profile anew"
            ) from None

    def layer(self, node: ir.Node) -> ExpertsMeasures:
        """Read the measures of the layer of experts that a node replaces, with the experts that it had then. Raises
        MoecError as :meth:`experts`."""
        return self._experts_of(self._layer(node, "experts", whole=True)[0])

    def linear(self, node: ir.Node) -> LinearMeasures:
        """Read the measures of a ``moec.Linear`` node. Raises MoecError as :meth:`experts`."""
        layer, _ = self._layer(node, "linear")

        def read(name: str) -> Array | None:
            shared = name in ("rows", "moment_in", "measured")
            return self.array(f"input{layer.input}/{name}" if shared else f"{layer.key}/{name}")

        return LinearMeasures(layer.key, layer.name, layer.inner, layer.tokens, read)

    def all_experts(self) -> Iterator[ExpertsMeasures]:
        """Read all layers of experts, in the order of the graph."""
        return (self._experts_of(layer) for layer in self.head.layers if layer.kind == "experts")

    def held_back(self) -> list[dict[str, Array]]:
        """Read the batches of the model's inputs, by name, that were held back from measurement. Passes judge their
        choices by them. Empty in a profile of an earlier version. Raises MoecError for damaged ones."""
        pieces = dict.fromkeys(name.rpartition("/")[0] for name in self.names() if name.startswith(f"{HELD}/"))
        return [self._held_batch(piece) for piece in pieces]

    def _held_batch(self, piece: str) -> dict[str, Array]:
        arrays = {name: self.array(f"{piece}/{place}") for place, name in enumerate(self.head.inputs)}
        batch = {name: array for name, array in arrays.items() if array is not None}
        if not batch or len(batch) < len(arrays):
            raise MoecError(f"{self.path}: {piece} is not of the inputs {self.head.inputs}; make the profile anew")
        return batch

    def _experts_of(self, layer: LayerEntry) -> ExpertsMeasures:
        sizes = (layer.experts, layer.k, layer.inner, layer.hidden)
        fields = (layer.parts, layer.tokens, layer.next_key)
        return ExpertsMeasures(layer.key, layer.name, *sizes, *fields, lambda name: self.array(f"{layer.key}/{name}"))

    def _layer(self, node: ir.Node, kind: str, whole: bool = False) -> tuple[LayerEntry, Sequence[int] | None]:
        """Find the layer that a node was measured as, and which of its experts the node has, None for all. ``whole``:
        also where the node has none of them any more."""
        for key, experts in measured_as(node).items():
            layer = self._layers.get(key)
            if layer is not None and layer.kind == kind and (whole or experts is None or experts):
                return layer, experts
        small = ", with --minimum where the product is small" if kind == "linear" else ""
        raise MoecError(
            f"{self.path}: node {node_name(node)}: nothing was measured of its weights; expected a profile of this "
            f"model after the passes {self.head.passes!r} (it is of {self.head.model.get('name')!r}); make one with "
            f"moec profile{small}, or use it before passes that change weights"
        )

    def names(self) -> Iterable[str]:
        """List the names of all arrays."""
        return (name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy"))

    def array(self, name: str) -> Array | None:
        """Read an array by its name in the file. Returns None where there is none. Raises MoecError for a damaged
        one."""
        entry = f"{name}.npy"
        if entry not in self._names:
            return None
        try:
            with self._lock:
                content = read_array(self._archive, entry)
        except DamagedError as error:
            raise self._damaged(name, str(error)) from error
        problem = problem_of(name, content, self.head)
        if problem is not None:
            raise self._damaged(name, problem)
        owner, concept, *expert = name.split("/")
        partner = "/".join([owner, PARTNERS[concept], *expert]) if concept in PARTNERS else None
        rows = None if partner is None else self.array(partner)
        if rows is not None and len(rows) != len(content):
            raise self._damaged(name, f"has {len(content)} rows, and {partner} {len(rows)}")
        return content

    def _damaged(self, name: str, problem: str) -> MoecError:
        return MoecError(f"{self.path}: the array {name} {problem}; the profile is damaged: make it anew")

    def close(self) -> None:
        self._archive.close()


def write_profile(path: str | os.PathLike[str], head: Head, arrays: Iterable[tuple[str, Array]]) -> None:
    """Write a profile where nothing, or a file of moec, is. Raises MoecError."""
    with replacing(path, foreign_file) as aside:
        write_new(aside, head, arrays)


def write_new(path: pathlib.Path, head: Head, arrays: Iterable[tuple[str, Array]]) -> None:
    """Write a profile where nothing is. Raises OSError."""
    with zipfile.ZipFile(path, "x") as archive:
        with archive.open(_HEAD, "w") as entry:  # writestr would add the time of day, and no two files would be equal
            entry.write(json.dumps(dataclasses.asdict(head), indent=1).encode())
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array, order="C"), allow_pickle=False)
    seal_zip(path)


def held_arrays(batches: Sequence[Mapping[str, Array]], inputs: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Convert batches that were held back to arrays of the file; ``inputs`` as in the head."""
    for piece, batch in enumerate(batches):
        yield from ((f"{HELD}/{piece}/{place}", batch[name]) for place, name in enumerate(inputs))


def check_mergeable(path: str, head: Head, other: Profile) -> None:
    """Raise MoecError where a profile has another model, other passes or other formats than ``head``, which belongs to
    ``path``."""
    mine, theirs = head.model, other.head.model
    if mine.get("sha256") != theirs.get("sha256"):
        shown = [f"{model.get('name')} of SHA-256 {model.get('sha256', '')[:12]}" for model in (theirs, mine)]
        raise MoecError(f"{other.path}: was measured on {shown[0]}, {path} on {shown[1]}; merge profiles of one model")
    if other.head.version != head.version:
        raise MoecError(
            f"{other.path}: is of version {other.head.version}, {path} of version {head.version}; make the older anew"
        )
    for what in ("passes", "formats", "inputs", "output"):
        mine, theirs = getattr(head, what), getattr(other.head, what)
        if mine != theirs:
            raise MoecError(f"{other.path}: its {what} are {theirs!r}, those of {path} are {mine!r}")
    if [layer.key for layer in other.head.layers] != [layer.key for layer in head.layers]:
        raise MoecError(f"{other.path}: has other layers than {path}; make it anew with this moec")


def merge(path: pathlib.Path, profiles: list[Profile]) -> None:
    """Merge several profiles into a new one, where nothing is. Raises MoecError as :func:`check_mergeable`, and
    OSError."""
    first, *others = profiles
    for other in others:
        check_mergeable(first.path, first.head, other)
    layers = [
        dataclasses.replace(same[0], tokens=sum(layer.tokens for layer in same))
        for same in zip(*(profile.head.layers for profile in profiles), strict=True)
    ]
    data = [piece for profile in profiles for piece in profile.head.data]
    write_new(path, dataclasses.replace(first.head, layers=layers, data=data), _merged(profiles))


def _merged(profiles: list[Profile]) -> Iterator[tuple[str, Array]]:
    inputs = {layer.key: layer for layer in profiles[0].head.layers}
    yield from held_arrays([batch for profile in profiles for batch in profile.held_back()], profiles[0].head.inputs)
    for name in dict.fromkeys(name for profile in profiles for name in profile.names()):
        if name.startswith(f"{HELD}/"):
            continue
        arrays = [array for profile in profiles if (array := profile.array(name)) is not None]
        if _concept(name) in _OF_ROWS and len(arrays) == len(profiles):
            shares = _shares(profiles, inputs[name.split("/")[0]])
            arrays = [(array.T * share).T for array, share in zip(arrays, shares, strict=True)]
        if _concept(name) in _MEANS and len(arrays) == len(profiles):
            tokens = np.array([_layer_tokens(profile, name.split("/")[0]) for profile in profiles])
            arrays = [array * share for array, share in zip(arrays, tokens / max(1, tokens.sum()), strict=True)]
        yield name, _MERGE.get(_concept(name), _summed)(arrays)


def _shares(profiles: list[Profile], layer: LayerEntry) -> Array:
    """Compute factors [profiles] or [profiles,E] of sums over kept rows, before they are added: each kept row stands
    for tokens of its profile that were not kept."""
    linear = layer.kind == "linear"
    names = (
        [f"input{layer.input}/rows"] if linear else [f"{layer.key}/rows/{expert}" for expert in range(layer.experts)]
    )
    kept = np.array([[_length(profile, name) for name in names] for profile in profiles])
    seen = np.array([_tokens(profile, layer) for profile in profiles])
    each = np.divide(seen * kept.max(axis=0), kept * seen.sum(axis=0), out=np.zeros(kept.shape), where=kept > 0)
    return each[:, 0] if linear else each


def _length(profile: Profile, name: str) -> int:
    rows = profile.array(name)
    return 0 if rows is None else len(rows)


def _tokens(profile: Profile, layer: LayerEntry) -> Array:
    """Count the tokens of each expert, or of the linear [1]."""
    count = profile.array(f"{layer.key}/count")
    return np.array([_layer_tokens(profile, layer.key)]) if count is None else count


def _layer_tokens(profile: Profile, key: str) -> int:
    return next(entry.tokens for entry in profile.head.layers if entry.key == key)


def _concept(name: str) -> str:
    """Extract ``rows`` from ``0f3a.../rows/17``."""
    return name.split("/")[1]


def _summed(arrays: list[Array]) -> Array:
    return np.sum(arrays, axis=0, dtype=arrays[0].dtype)


def _selected(arrays: list[Array]) -> Array:
    """Select as many rows as the largest array has, evenly from all."""
    joined = np.concatenate(arrays)
    return joined[np.linspace(0, len(joined) - 1, max(map(len, arrays))).astype(int)] if len(joined) else joined


_OF_ROWS = ("error", "energy")
"""Sums over the few rows that are kept."""
_MEANS = ("prior_error", "sensitivity")
"""Means over tokens of the layer."""
_MERGE: Mapping[str, Callable[[list[Array]], Array]] = dict.fromkeys(
    ("rows", "row_gates", "sample", "sample_gates", "sample_output"), _selected
)
"""Merge functions of arrays that are not sums."""
