"""Contents of a folder of a Hugging Face model: configuration, tensors by file, and other files; and these after
passes."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moec.common.errors import UnsupportedError
from moec.exporting.checkpoint_layers import (
    Checkpoint,
    Piece,
    by_layer,
    layer_of,
    pieces_of,
    quantised_form,
    tensors_after,
)
from moec.exporting.compressed_tensors import quantization_config
from moec.exporting.dense_changes import DenseChange, names_of, tensors_of
from moec.exporting.expert_axes import ExpertSetting, check_shapes, expert_setting, expert_weights
from moec.exporting.form import ExportedPart
from moec.exporting.layer_changes import LayerChange
from moec.exporting.one_number import one_number
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor, NewTensor, read_metadata, write_file
from moec.frontend.huggingface.checkpoint.sources import ParameterSource, parameter_sources
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight
from moec.frontend.huggingface.folder import CONFIG, INDEX, read_config, read_json, read_shards
from moec.ir.weights.format import WeightFormat
from moec.passes.framework.base import Report

Config = dict[str, Any]
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".safetensors", ".onnx_data", ".ot")


@dataclasses.dataclass(frozen=True)
class FolderContents:
    """``config``: new content of config.json; None to copy it. ``shards``: tensors by name, by file. ``removed``: names
    of tensors that the source has and the result has not. ``replaced``: names of several tensors for one of these."""

    folder: Path
    shards: Mapping[str, Mapping[str, FileTensor]]
    config: Config | None = None
    changed: Mapping[str, NewTensor] = dataclasses.field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    replaced: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    parts: list[ExportedPart] = dataclasses.field(default_factory=list)

    @staticmethod
    def of(folder: Path) -> FolderContents:
        """Read a folder. Raises MoecError where it is not complete."""
        read_config(folder)
        return FolderContents(folder, read_shards(folder))

    @property
    def tensors(self) -> dict[str, FileTensor]:
        return {name: tensor for shard in self.shards.values() for name, tensor in shard.items()}

    def after(self, changes: Sequence[LayerChange], dense: Sequence[DenseChange], report: Report) -> FolderContents:
        """The contents after passes changed layers of experts and dense products. Raises UnsupportedError for what a
        folder cannot say."""
        if not changes and not dense:
            raise UnsupportedError(
                f"{self.folder}: the passes change none of its weights: no layer of experts is known in its graph; "
                "moec compile -O2 -v says why"
            )
        if not dense and all(change.is_none for change in changes):
            raise UnsupportedError(f"{self.folder}: the passes change none of its weights; moec compile -v says why")
        return _Edit(self, changes, dense, report).result()

    def write(self, path: Path, report: Report) -> None:
        """Write the folder. Raises OSError where that is not possible."""
        path.mkdir()
        shards = {name: self._after(shard) for name, shard in self.shards.items()}
        shards = {name: shard for name, shard in shards.items() if shard}
        for name, shard in shards.items():
            write_file(path / name, shard, read_metadata(self.folder / name))
        if (self.folder / INDEX).is_file():
            _write_json(path / INDEX, _index(read_json(self.folder / INDEX), shards))
        for file in _other_files(self.folder, report):
            if file == Path(CONFIG) and self.config is not None:
                _write_json(path / file, self.config)
            elif file != Path(INDEX):
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / file, path / file)

    def _after(self, shard: Mapping[str, FileTensor]) -> dict[str, NewTensor]:
        """The tensors of a file after passes; parts of a weight that was one tensor are in its place."""
        tensors: dict[str, NewTensor] = {}
        for name, tensor in shard.items():
            if name in self.replaced:
                tensors |= {part: self.changed[part] for part in self.replaced[name]}
            elif name not in self.removed:
                tensors[name] = self.changed.get(name) or NewTensor.of(tensor)
        return tensors


class _Edit:
    """The work of :meth:`FolderContents.after`."""

    def __init__(
        self, contents: FolderContents, changes: Sequence[LayerChange], dense: Sequence[DenseChange], report: Report
    ) -> None:
        from moec.frontend.huggingface.quantised import decode_names
        from moec.frontend.huggingface.sizes import Holdings
        from moec.frontend.huggingface.skeleton import build

        self.contents, self.changes, self.dense, self.report = contents, changes, dense, report
        self.where = str(contents.folder)
        self.raw = read_json(contents.folder / CONFIG)
        self.holdings = Holdings.of(contents.tensors)
        tensors, settings = contents.tensors, read_config(contents.folder)
        self.is_quantised = "quantization_config" in settings
        weights = decode_names(tensors, settings, self.where)
        self.checkpoint = Checkpoint(weights, tensors, _parts(weights, tensors))
        self.module = build(settings, self.holdings, self.where)
        self.sources, self.unused = parameter_sources(self.module, weights)
        self.changed: dict[str, NewTensor] = {}
        self.removed: set[str] = set()
        self.forms: dict[str, WeightFormat] = {}

    def result(self) -> FolderContents:
        config = self._experts() if self.changes else self.raw
        matched = names_of(self.dense, self._products(), self.report)
        dense = {name: change.form for name, change in matched.items()}
        for name, change in matched.items():
            self.changed |= tensors_of(name, change)
        forms = self.forms | dense
        if forms:
            config = {**config, "quantization_config": self._quantization_config(dense)}
        return dataclasses.replace(
            self.contents,
            config=None if config == self.raw else config,
            changed=self.changed,
            removed=frozenset(self.removed),
            replaced=_parts_of(forms, self.changed),
            parts=[ExportedPart(str(c.before.node.name), _described(c)) for c in self.changes],
        )

    def _experts(self) -> Config:
        """Change the layers of experts. Returns the configuration."""
        counts = self._one("experts", [change.count for change in self.changes])
        chosen = self._one("experts for a token", [change.k for change in self.changes])
        before = self._one("experts", [change.before.count for change in self.changes])
        if any(change.groups != change.before.routing.groups for change in self.changes):
            raise UnsupportedError(f"{self.where}: whole groups of experts are gone; keep more experts")
        setting = expert_setting(self.raw, before, self._shapes, self.where)
        config = setting.changed(self.raw, counts, (self.changes[0].before.routing.k, chosen), self.where)
        check_shapes(setting, self._shapes(self.raw), self._shapes(config), counts, self.where)
        layers = self._layers(setting)
        for pieces, change in zip(layers, self.changes, strict=True):
            if change.count != change.before.count:
                self._check_no_numbers_of_experts(pieces)
            if (change.count, change.k) != (change.before.count, change.before.routing.k):
                self._check_one_mixture(pieces)
            for piece in pieces:
                self.changed |= tensors_after(self.checkpoint, piece, change)
                if (form := quantised_form(piece, change)) is not None:
                    self.forms |= dict.fromkeys(piece.place.names[: change.count], form)
        names = {name for pieces in layers for piece in pieces for name in self._names(piece)}
        drops_further = counts != before and setting.predicts_further(self.raw)
        self.removed = names - self.changed.keys() | (self._further_layers() if drops_further else set())
        return config

    def _check_no_numbers_of_experts(self, pieces: Sequence[Piece]) -> None:
        """Raise UnsupportedError for whole numbers in a layer of experts, such as the experts of each token."""
        layers = {layer_of(name) for piece in pieces for name in piece.place.names}
        for name, weight in self.checkpoint.weights.items():
            if weight.form is None and weight.data.dtype.is_integer() and layer_of(name) in layers:
                raise UnsupportedError(
                    f"{weight.where}: holds whole numbers beside experts whose numbers change, and what they count is "
                    "not known; keep all experts, or export for onnxruntime"
                )

    def _check_one_mixture(self, pieces: Sequence[Piece]) -> None:
        """Raise UnsupportedError for matrices of further experts, such as those of attention, in a layer of experts:
        the configuration has one number for both."""
        for piece in pieces:
            weight = self.checkpoint.weights[piece.place.names[0]]
            dimensions = len(weight.data.shape) - (piece.place.stacked and piece.place.blocks == 1)
            if piece.layout is None and not piece.routing and dimensions > 1:
                raise UnsupportedError(
                    f"{weight.where}: has matrices of as many experts as the layer in the graph, but not of these, and "
                    "config.json has one number for both; export for onnxruntime instead"
                )

    def _products(self) -> dict[str, CheckpointWeight]:
        """The weights that the module multiplies by in linear layers, and reads nowhere else."""
        import torch

        state = self.module.state_dict(keep_vars=True)
        owners = collections.Counter(map(id, state.values()))
        names = [
            source.names[""][0]
            for parameter, source in self.sources.items()
            if source.converter is None
            and isinstance(self.module.get_submodule(parameter.rpartition(".")[0]), torch.nn.Linear)
            and owners[id(state[parameter])] == 1
        ]
        return {name: self.checkpoint.weights[name] for name in names}

    def _quantization_config(self, dense: Mapping[str, WeightFormat]) -> Config:
        if self.is_quantised:
            raise UnsupportedError(
                f"{self.where}: has weights that are quantised already, and a folder has one description of all; "
                "export from the folder that is not quantised"
            )
        fused = {name for source in self.sources.values() if source.by_expert for name in _names(source)}
        if not self.forms and fused:
            raise UnsupportedError(
                f"{self.where}: its experts would stay floats, and dense products not; transformers, which stacks the "
                "experts of this model, then expects quantised ones: give both formats, --experts and --linears"
            )
        others = self.checkpoint.weights.keys() - self.forms.keys() - dense.keys() - self.removed
        floats = [
            name for name, weight in self.checkpoint.weights.items() if name in others and _is_matrix(name, weight)
        ]
        return quantization_config(self.forms, dense, floats, self.where)

    def _layers(self, setting: ExpertSetting) -> list[list[Piece]]:
        """The weights of each layer, in the order of the graph's layers."""
        places = by_layer(expert_weights(setting, self.sources, self.checkpoint.weights, self.where))
        if len(places) != len(self.changes):
            raise UnsupportedError(
                f"{self.where}: has {len(places)} layers of experts, and its graph {len(self.changes)} that are known; "
                "moec compile -O2 -v says why others are not"
            )
        pairs = zip(places, self.changes, strict=True)
        return [pieces_of(self.checkpoint, own, change.before) for own, change in pairs]

    def _shapes(self, config: Config) -> dict[str, tuple[int, ...]]:
        from moec.frontend.huggingface.skeleton import build

        module = build(config, self.holdings, self.where)
        return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}

    def _one(self, what: str, numbers: Sequence[int]) -> int:
        named = {str(change.before.node.name): number for change, number in zip(self.changes, numbers, strict=True)}
        return one_number(self.where, what, named)

    def _names(self, piece: Piece) -> Iterator[str]:
        for name in piece.place.names:
            yield from self.checkpoint.parts[name]

    def _further_layers(self) -> set[str]:
        """Tensors of layers that predict further tokens and have experts of their own."""
        layers = {
            name.partition(".experts.")[0].rpartition(".")[0] + "." for name in self.unused if ".experts." in name
        }
        names = [name for name in self.unused if name.startswith(tuple(layers))] if layers else []
        if names:
            reason = "and the other tensors of layers that predict further tokens are left out: they have all experts"
            self.report.warn("export", names[0], reason)
        return {part for name in names for part in self.checkpoint.parts[name]}


def _parts_of(forms: Collection[str], changed: Collection[str]) -> dict[str, list[str]]:
    """The new tensors, NAME_packed, NAME_scale and NAME_shape, of each weight that has a format now."""
    parts: dict[str, list[str]] = {name: [] for name in forms}
    for part in changed:
        if (name := part.rpartition("_")[0]) in parts:
            parts[name].append(part)
    return parts


def _names(source: ParameterSource) -> Iterator[str]:
    for names in source.names.values():
        yield from names


def _is_matrix(name: str, weight: CheckpointWeight) -> bool:
    return name.endswith(".weight") and len(weight.data.shape) == 2


def _described(change: LayerChange) -> str:
    formats = {str(form) for weight in change.after.weights.values() for form in weight.formats if form.quantized}
    return f"layers of {change.count} experts{' in ' if formats else ''}{' and '.join(sorted(formats))}"


def _parts(weights: Mapping[str, Any], tensors: Mapping[str, FileTensor]) -> dict[str, list[str]]:
    """The tensors that make each weight: its own, or those whose names begin with its name and are no weights."""
    stems = {name.removesuffix(".weight"): name for name in weights}
    parts: dict[str, list[str]] = {name: [] for name in weights}
    for name in tensors:
        if name in weights:
            parts[name].append(name)
            continue
        ends = [place for place, letter in enumerate(name) if letter in "._"]
        stem = next((name[:end] for end in reversed(ends) if name[:end] in stems), None)
        if stem is not None:
            parts[stems[stem]].append(name)
    return parts


def _index(index: Config, shards: Mapping[str, Mapping[str, NewTensor]]) -> Config:
    places = {name: file for file, shard in shards.items() for name in shard}
    order = [name for name in index["weight_map"] if name in places]
    size = sum(tensor.size for shard in shards.values() for tensor in shard.values())
    metadata = {key: value for key, value in index.get("metadata", {}).items() if key != "total_parameters"}
    return {**index, "metadata": {**metadata, "total_size": size}, "weight_map": {name: places[name] for name in order}}


def _write_json(path: Path, content: Config) -> None:
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def _plain(content: Any) -> Any:
    """The same with numbers that JSON does not have as transformers writes them."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return {"__float__": str(content).replace("inf", "Infinity").replace("nan", "NaN")}
    return content


def _other_files(folder: Path, report: Report) -> Iterator[Path]:
    """The files that are copied: all but weights in any format, and hidden ones."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = (Path(place) / name).relative_to(folder)
            if name.startswith(".") or not (folder / path).is_file():
                continue
            if not _is_own(folder.resolve(), (folder / path).resolve()):
                report.warn("export", str(path), "is left out: it is a link to a file that is not the model's")
                continue
            if path.suffix in _OTHER_WEIGHTS:
                if path.parent != Path() or path.suffix != ".safetensors":
                    report.warn("export", str(path), "is left out: it holds weights of the source")
                continue
            yield path


def _is_own(folder: Path, file: Path) -> bool:
    """Whether a file lies in the folder, or where the hub's cache keeps the files of its snapshots."""
    blobs = folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else folder
    return file.is_relative_to(folder) or file.is_relative_to(blobs)
