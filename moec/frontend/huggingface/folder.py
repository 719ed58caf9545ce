"""Reader of a model's folder, and its import where moec supports the model. No code of the folder is ever run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, UnsupportedError
from moec.common.garbage import no_collection
from moec.common.plain_files import parse_json, read_bytes
from moec.frontend.huggingface import quantised
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor, read_file
from moec.frontend.onnx import conditions

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from moec.frontend.huggingface.binding import Binding

CONFIG = "config.json"
_MODELOPT = "hf_quant_config.json"
"""File in which NVIDIA's Model Optimizer may describe the quantisation, instead of in ``config.json``."""
INDEX = "model.safetensors.index.json"
LARGEST_JSON = 256 << 20
"""Bytes; indexes of the largest models have some tens of megabytes."""

_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def is_folder(source: Any) -> bool:
    """Whether a model's source is the path of a folder, which then has to be one of the Hugging Face hub."""
    return isinstance(source, (str, os.PathLike)) and Path(source).is_dir()


def rounds_activations(path: str | os.PathLike[str]) -> bool:
    """Whether the folder's quantiser also rounds activations to 8 bits. Raises MoecError for a ``config.json`` that
    cannot be read."""
    return quantised.rounds_activations(read_config(Path(path)))


@no_collection()
def import_folder(path: str | os.PathLike[str], cache: bool | None = False) -> ir.Model:
    """Import a folder with ``config.json`` and safetensors as a text model.

    Inputs are ``input_ids`` [batch, length], both dynamic, and with ``cache`` the tensors of
    :mod:`moec.frontend.pytorch.text_cache`. With ``cache`` None the model has a cache if it is a decoder whose states
    can be taken and returned; where they cannot, a remark says so. The model computes in float32. Weights stay in their
    files until they are read.

    Raises MoecError for a folder that is not complete or whose files do not fit together, UnsupportedError for models
    that transformers does not know, that bring code of their own, or that are quantised in a way moec does not read.
    Tensors that no part of the model uses become a remark.
    """
    folder = Path(path)
    config = read_config(folder)
    tensors = read_tensors(folder)
    from moec.frontend.huggingface.binding import Binding

    module = build_text_model(config, tensors, str(folder))
    binding = Binding.of(module, tensors, config, str(folder))
    imported, notes = _imported(module, binding, cache)
    assumptions = conditions.read(imported, str(folder))
    dataclasses.replace(assumptions, unused=binding.unused, notes=(*assumptions.notes, *notes)).attach(imported)
    return imported


def build_text_model(
    config: dict[str, Any], tensors: Mapping[str, FileTensor], where: str, changes: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """Build the module of a folder, with ``changes`` of its settings as in
    :func:`moec.frontend.huggingface.skeleton.build`. Raises UnsupportedError for one that takes no text."""
    from moec.frontend.huggingface.sizes import Holdings
    from moec.frontend.huggingface.skeleton import build
    from moec.frontend.pytorch.text_inputs import text_inputs

    module = build(config, Holdings.of(tensors), where, changes)
    if text_inputs(module) is None:
        raise UnsupportedError(
            f"{where}: {type(module).__name__} takes no input_ids; folders of text models are compiled, for others "
            "pass the module and example inputs to moec.compile"
        )
    return module


def _imported(module: torch.nn.Module, binding: Binding, cache: bool | None) -> tuple[ir.Model, list[str]]:
    """Import the module, with a cache where that is possible if ``cache`` is None. Also returns remarks about the
    cache."""
    from moec.frontend.pytorch.importer import import_module
    from moec.frontend.pytorch.text_cache import is_decoder

    if cache is not None or not is_decoder(module):
        return import_module(module, weights=binding, cache=bool(cache)), []
    try:
        return import_module(module, weights=binding, cache=True), []
    except UnsupportedError as error:
        return import_module(module, weights=binding), [f"it keeps nothing from run to run: {error}"]


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` and the settings that a quantiser wrote next to it. Raises MoecError where it is missing or
    names no type of model."""
    path = folder / CONFIG
    if not path.is_file():
        if (folder / "manifest.json").is_file():
            raise MoecError(f"{folder}: is an artifact, which is compiled already; give the model that it was made of")
        raise MoecError(
            f"{folder}: has no {CONFIG}; expected an ONNX file, or a folder of a Hugging Face model with {CONFIG} and "
            "safetensors files"
        )
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise MoecError(f"{path}: names no model_type; download the model again, or write it with save_pretrained")
    modelopt = folder / _MODELOPT
    if "quantization_config" not in config and modelopt.is_file():
        settings = read_json(modelopt).get("quantization")
        if not isinstance(settings, dict):
            raise MoecError(f"{modelopt}: has no object 'quantization'; download it again")
        config["quantization_config"] = {**settings, "quant_method": "modelopt"}
    return config


def read_tensors(folder: Path) -> dict[str, FileTensor]:
    """Read the tensors of a folder by name, in the order of its index. Raises as :func:`read_shards`."""
    shards = read_shards(folder)
    index = folder / INDEX
    if not index.is_file():
        return next(iter(shards.values()))
    return {name: shards[shard][name] for name, shard in read_json(index)["weight_map"].items()}


def read_shards(folder: Path) -> dict[str, dict[str, FileTensor]]:
    """Read the headers of all safetensors files of a folder, which may be symbolic links, as in the cache of the hub.
    Returns the tensors by name, by file.

    Raises MoecError where there are none, or where index and files do not fit together.
    """
    index = folder / INDEX
    if index.is_file():
        return _listed_shards(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return {files[0].name: read_file(files[0])}
    if files:
        raise MoecError(f"{folder}: has {len(files)} safetensors files and no {INDEX}; download the index, too")
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickled:
        raise UnsupportedError(
            f"{folder}: its weights are pickled ({pickled[0].name}); moec opens no pickles, which can run any code: "
            'convert them where you trust them: python -c "import sys, transformers as t; '
            "t.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='auto').save_pretrained(sys.argv[2])\" "
            f"{folder} NEW_FOLDER"
        )
    raise MoecError(f"{folder}: has no weights; expected model.safetensors, or {INDEX} and the files it names")


def _listed_shards(folder: Path, index: Path) -> dict[str, dict[str, FileTensor]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise MoecError(f"{index}: has no weight_map; download it again")
    shards: dict[str, dict[str, FileTensor]] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or "\0" in shard or {"/", "\\"} & set(shard):
            raise MoecError(f"{index}: tensor {name!r} lies in {str(shard)[:200]!r}; expected the name of a file there")
        if shard not in shards:
            shards[shard] = read_file(folder / shard)
        if name not in shards[shard]:
            raise MoecError(
                f"{index}: tensor {name!r} is missing in {shard}, where it is listed; index and files do not "
                "belong together, download them again"
            )
    for shard, tensors in shards.items():
        for name in tensors:
            if places.get(name) != shard:
                raise MoecError(
                    f"{folder / shard}: holds tensor {name!r}, which is missing in {INDEX}; index and files do not "
                    "belong together, download them again"
                )
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file of a folder. Raises MoecError for another file."""
    try:
        content = parse_json(read_bytes(path, LARGEST_JSON), _special_float)
    except ValueError as error:
        raise MoecError(f"{path}: is not JSON ({str(error)[:100]}); download it again") from error
    if not isinstance(content, dict):
        raise MoecError(f"{path}: holds a {type(content).__name__}; expected an object; download it again")
    return content


def _special_float(content: dict[str, Any]) -> Any:
    """Decode a number that JSON cannot express: transformers writes ``{"__float__": "Infinity"}``."""
    return _FLOATS.get(content["__float__"], content) if content.keys() == {"__float__"} else content
