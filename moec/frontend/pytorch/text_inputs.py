"""Inputs with which a text model of transformers is exported. This is the one place that makes them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from moec.common.specs import PREVIOUS_HIDDEN

if TYPE_CHECKING:
    import torch

_SHAPE = (2, 7)
"""Batch and length of the example: numbers that a module is unlikely to have for another reason."""
SIZES = ("batch", "length")
"""Names of the axes of token ids."""
_IDS = ("input_ids", "decoder_input_ids")


@dataclasses.dataclass(frozen=True)
class TextInputs:
    """``example``: keyword arguments. ``dynamic_shapes``: argument of ``torch.export.export``."""

    example: dict[str, Any]
    dynamic_shapes: dict[str, Any]


def text_inputs(module: torch.nn.Module) -> TextInputs | None:
    """Make token ids [batch, length] (int64), both sizes dynamic, without a cache.

    They are for a module that has a configuration of transformers and takes ``input_ids``; an encoder with decoder also
    takes ``decoder_input_ids``, and an MTP layer ``previous_hidden`` [batch, length, width]. Returns None for any other
    module.
    """
    import torch

    config: Any = getattr(module, "config", None)
    names = inspect.signature(module.forward).parameters
    if config is None or not hasattr(config, "model_type") or "input_ids" not in names:
        return None
    ids = _IDS if getattr(config, "is_encoder_decoder", False) else _IDS[:1]
    example = {name: torch.ones(_SHAPE, dtype=torch.int64) for name in ids if name in names}
    if PREVIOUS_HIDDEN in names:
        example[PREVIOUS_HIDDEN] = torch.randn(*_SHAPE, config.hidden_size)
    dynamic = torch.export.Dim.DYNAMIC
    return TextInputs(example, {name: {0: dynamic, 1: dynamic} for name in example})


def wide_guards(module: torch.nn.Module, guards: Iterable[str]) -> Iterator[str]:
    """Select the guards on a text model's sizes that exclude no length that its configuration is for."""
    longest = getattr(module.config, "max_position_embeddings", None)
    for guard in guards:
        bound = re.fullmatch(rf"{SIZES[1]} <= (\d+)", guard)
        if bound is not None and isinstance(longest, int) and int(bound[1]) >= longest:
            yield guard


@contextlib.contextmanager
def without_cache(module: torch.nn.Module) -> Iterator[None]:
    """Context in which the module returns no keys and values of its attention."""
    parts: list[Any] = [getattr(part, "config", None) for part in module.modules()]
    configs = [config for config in parts if hasattr(config, "use_cache")]
    before = [config.use_cache for config in configs]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config.use_cache = value
