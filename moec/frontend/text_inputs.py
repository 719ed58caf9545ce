"""Inputs that a text model of transformers is exported with: the one place that makes them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SHAPE = (2, 7)
"""Batch and length: no number that a module may have for another reason."""
SIZES = ("batch", "length")
"""What the axes of token ids are called."""
_IDS = ("input_ids", "decoder_input_ids")


@dataclasses.dataclass(frozen=True)
class TextInputs:
    """``example``: keyword arguments. ``dynamic_shapes``: what ``torch.export.export`` takes."""

    example: dict[str, Any]
    dynamic_shapes: dict[str, Any]


def text_inputs(module: torch.nn.Module) -> TextInputs | None:
    """Token ids [batch, length] (int64), both sizes dynamic, and no cache, for a module that has a configuration of
    transformers and takes ``input_ids`` (an encoder with decoder: ``decoder_input_ids``, too); None for every other."""
    import torch

    config = getattr(module, "config", None)
    names = inspect.signature(module.forward).parameters
    if config is None or not hasattr(config, "model_type") or "input_ids" not in names:
        return None
    wanted = _IDS if getattr(config, "is_encoder_decoder", False) else _IDS[:1]
    dynamic = torch.export.Dim.DYNAMIC
    return TextInputs(
        {name: torch.ones(_SHAPE, dtype=torch.int64) for name in wanted if name in names},
        {name: {0: dynamic, 1: dynamic} for name in wanted if name in names},
    )


def wide_guards(module: torch.nn.Module, guards: Iterable[str]) -> Iterator[str]:
    """Those of the guards on a text model's sizes that leave in every length that its configuration is for."""
    longest = getattr(module.config, "max_position_embeddings", None)
    for guard in guards:
        bound = re.fullmatch(rf"{SIZES[1]} <= (\d+)", guard)
        if bound is not None and isinstance(longest, int) and int(bound[1]) >= longest:
            yield guard


@contextlib.contextmanager
def without_cache(module: torch.nn.Module) -> Iterator[None]:
    """While it lasts, the module returns no keys and values of its attention."""
    found: list[Any] = [getattr(part, "config", None) for part in module.modules()]
    configs = [config for config in found if hasattr(config, "use_cache")]
    before = [config.use_cache for config in configs]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config.use_cache = value
