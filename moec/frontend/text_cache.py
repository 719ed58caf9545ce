"""Text models of transformers whose keys and values come in as tensors, and go out again."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from moec.errors import MoecError, UnsupportedError
from moec.frontend.text_inputs import TextInputs

if TYPE_CHECKING:
    import torch

PAST = "past"
SIZES = ("batch", "heads", "past", "width")
"""What the axes of keys and values are called."""
_LENGTH = 5
"""Of the example's past: no number that a module may have for another reason."""
_PLAIN = ("DynamicLayer", "DynamicSlidingWindowLayer")


def is_decoder(module: torch.nn.Module) -> bool:
    """Whether a module of transformers goes on writing from what it was given before, and has a cache there."""
    config = module.config
    generates = getattr(module, "can_generate", lambda: False)()
    is_alone = not getattr(config, "is_encoder_decoder", False) and getattr(config, "is_decoder", None) is not False
    return generates and is_alone and hasattr(config, "use_cache")


def cache_inputs(module: torch.nn.Module, made: TextInputs) -> TextInputs:
    """Inputs for :func:`with_cache`: those that are made for the module without a cache, and ``past_key_0``,
    ``past_value_0``, ``past_key_1``... [batch, heads, past, width]; batch and past are dynamic.

    Raises MoecError for a model that is no decoder of text, UnsupportedError for one that keeps something else than
    keys and values of attention.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    name = type(module).__name__
    if not is_decoder(module):
        raise MoecError(f"{name}: a cache is for text decoders of transformers; compile it without")
    ids = made.example["input_ids"][:, :1].expand(-1, _LENGTH)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        kept = module(input_ids=ids, use_cache=True).past_key_values
    layers = getattr(kept, "layers", [])
    other = next((type(layer).__name__ for layer in layers if type(layer).__name__ not in _PLAIN), None)
    if not layers or other is not None:
        raise UnsupportedError(
            f"{name}: it keeps {other or 'no cache'}, and a cache here is of keys and values alone; compile it without"
        )
    dynamic, example, shapes = torch.export.Dim.DYNAMIC, {**made.example}, {**made.dynamic_shapes}
    for index, layer in enumerate(layers):
        for kind, tensor in (("key", layer.keys), ("value", layer.values)):
            label = f"{PAST}_{kind}_{index}"
            example[label] = torch.randn(tuple(tensor.shape)).to(tensor.dtype)
            shapes[label] = {0: dynamic, 2: dynamic}
    return TextInputs(example, shapes)


@contextlib.contextmanager
def with_cache(module: torch.nn.Module, made: TextInputs) -> Iterator[None]:
    """While it lasts, the module takes the inputs of :func:`cache_inputs`, and returns ``logits`` and, for every past
    tensor, a present one [batch, heads, past + length, width]. All layers keep all of the past; those that look at a
    window of it mask the rest."""
    own = vars(module).get("forward")  # of the instance, where somebody gave it another than its class has
    vars(module)["forward"] = _flat(module.forward, [name for name in made.example if name.startswith(PAST)])
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def _flat(forward: Callable[..., Any], names: list[str]) -> Callable[..., dict[str, Any]]:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    def flat(input_ids: Any, **past: Any) -> dict[str, Any]:
        layers = []
        for key, value in zip(names[::2], names[1::2], strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(past[key], past[value])
            layer.keys, layer.values = past[key], past[value]
            layers.append(layer)
        cache = DynamicCache()
        cache.layers = layers
        result = forward(input_ids=input_ids, past_key_values=cache, use_cache=True)
        kept = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        presents = [f"present{name.removeprefix(PAST)}" for name in names]
        return {"logits": result.logits, **dict(zip(presents, kept, strict=True))}

    kinds = inspect.Parameter
    parameters = [kinds(name, kinds.KEYWORD_ONLY) for name in names]
    flat.__signature__ = inspect.Signature([kinds("input_ids", kinds.POSITIONAL_OR_KEYWORD), *parameters])
    return flat
