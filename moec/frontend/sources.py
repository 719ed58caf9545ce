"""Sources that may be compiled, by their type or the name of their file, and advice on those that may not."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = {
    ".safetensors": "holds weights and no model; pass the folder that it lies in, with config.json, or its module",
    ".pt2": "is an exported program; load it where you trust it, and pass what torch.export.load returns",
    **dict.fromkeys(
        (".bin", ".pt", ".pth", ".ckpt", ".pkl"),
        "is pickled, which is never opened, for that can run any code; load it into its module where you trust it, and "
        "pass the module",
    ),
}


def is_torch(source: Any, name: str) -> bool:
    """Whether the source is an instance of a class of PyTorch, such as ``nn.Module``. Nothing is imported: for an
    instance, torch is imported already."""
    kind: Any = sys.modules.get("torch")
    for part in name.split("."):
        kind = getattr(kind, part, None)
    return kind is not None and isinstance(source, kind)


def import_exported(source: Any, cache: bool | None) -> ir.Model:
    """Import any source except a module. ``cache`` concerns folders and GGUF files: with None they have one where they
    can. Raises the errors of the frontends."""
    from moec.frontend import gguf, huggingface
    from moec.frontend.onnx import importer as onnx

    if huggingface.is_folder(source):
        return huggingface.import_folder(source, cache)
    if gguf.is_file(source):
        return gguf.import_file(source, cache is not False)
    if cache:
        raise MoecError(
            "has the inputs that it was exported with; a cache is for text models of transformers, their folders and "
            "GGUF files"
        )
    if is_torch(source, "export.ExportedProgram"):
        from moec.frontend.pytorch import importer as pytorch

        return pytorch.import_program(source)
    if is_torch(source, "onnx.ONNXProgram"):
        from moec.frontend.pytorch import importer as pytorch

        return pytorch.import_onnx_program(source)
    return onnx.import_model(source)


def import_with_mtp(source: Any) -> tuple[ir.Model, ir.Model]:
    """Import a model with its hidden states, and its MTP layer, which drafts. Raises UnsupportedError for sources other
    than GGUF files and folders, and the errors of the frontends."""
    from moec.frontend import gguf, huggingface

    if huggingface.is_folder(source):
        return huggingface.import_with_mtp(source)
    if not gguf.is_file(source):
        raise UnsupportedError(
            "MTP layers are read from GGUF files and folders of Hugging Face models alone; give one of these, or "
            "compile without drafts"
        )
    return gguf.import_with_mtp(source)


def rounds_activations(source: Any) -> bool:
    """Whether the weights of a source are meant for products with activations of 8 bits.

    That holds for GGUF files, because llama.cpp multiplies so, and for folders whose quantiser wrote so into
    ``config.json``.
    """
    from moec.frontend import gguf, huggingface

    return gguf.is_file(source) or (huggingface.is_folder(source) and huggingface.rounds_activations(source))


def check(source: Any) -> None:
    """Raise MoecError, saying what to pass instead, for things that are often taken for models."""
    if isinstance(source, Mapping):
        raise MoecError(
            "cannot compile a dict; expected a model: if these are weights, load them into their module by "
            "load_state_dict and pass that"
        )
    if is_torch(source, "Tensor"):
        raise MoecError("cannot compile a tensor; pass the module that computes with it")
    if not isinstance(source, (str, os.PathLike)) or not isinstance(os.fspath(source), str):
        return
    path = Path(source)
    if not path.exists():
        if (
            isinstance(source, str)
            and _HUB_NAME.fullmatch(source)
            and path.suffix != ".onnx"
            and not path.parent.exists()
        ):
            raise MoecError(
                f"{source}: no such file or folder, and nothing is downloaded; of a model on the Hugging Face hub get "
                f"the folder by: hf download {source} --local-dir {path.name}"
            )
        raise MoecError(
            f"{source}: no such file; expected an ONNX model, a GGUF file, or the folder of a Hugging Face model"
        )
    if path.suffix in _FILES and path.is_file():
        raise MoecError(f"{source}: {_FILES[path.suffix]}")
