"""Readers of checkpoints that other tools quantised, one module for each format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moec.common.errors import UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight
from moec.frontend.huggingface.quantised import awq, compressed, fp8, gptq, mxfp4, nvfp4

_METHODS = {
    "gptq": gptq.decode,
    "awq": awq.decode,
    "compressed-tensors": compressed.decode,
    "mxfp4": mxfp4.decode,
    "fp8": fp8.decode,
    "modelopt": nvfp4.decode,
}


def decode_names(tensors: Mapping[str, FileTensor], config: dict[str, Any], where: str) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint, by the names that they would have as floats. ``quantization_config`` of
    ``config.json`` says how they are stored.

    Raises UnsupportedError for methods and layouts that moec does not read, MoecError for tensors that do not fit.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return {name: CheckpointWeight.of(tensor) for name, tensor in tensors.items()}
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in _METHODS:
        raise UnsupportedError(
            f"{where}: config.json says it is quantised by {str(method)[:100]!r}; expected {', '.join(_METHODS)}; "
            "use another checkpoint of the model, and --experts and --linears"
        )
    return _METHODS[method](tensors, settings, where)


def rounds_activations(config: dict[str, Any]) -> bool:
    """Whether ``quantization_config`` says that activations are rounded to integers of 8 bits. ``gptq`` and ``awq``
    quantise weights only. A value that is no object is refused later, when names are decoded."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict) or settings.get("quant_method") != "compressed-tensors":
        return False
    return compressed.rounds_activations(settings)
