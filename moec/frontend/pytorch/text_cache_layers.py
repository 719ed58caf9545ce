"""The states in a cache of transformers, layer by layer, as tensors that are inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moec.common.errors import UnsupportedError
from moec.common.once import once
from moec.frontend.pytorch.recurrences import behind

if TYPE_CHECKING:
    import torch

_KINDS = {
    "DynamicLayer": "DynamicLayer",
    "DynamicSlidingWindowLayer": "DynamicLayer",
    "DynamicIndexedLayer": "DynamicIndexedLayer",
    "DummyLayer": "DummyLayer",
    "LinearAttentionLayer": "States",
    "LinearAttentionAndFullAttentionLayer": "StatesAndKeys",
    "LinearAttentionAndSlidingWindowAttentionLayer": "StatesAndKeys",
}
"""Class with which a layer is exported, by its own class. It keeps all of the past; layers that attend to a window mask
the rest."""
_GROWING = {"keys": ("key", 2), "values": ("value", 2), "indexer_keys": ("index", 1)}
"""Attributes that grow: their label, and the axis of the tokens."""
_REPLACED = {"conv_states": "conv", "recurrent_states": "state"}
"""Attributes that are mappings of tensors, which each run replaces, by label."""
_OF_MINIMAX = "linear_cache"
"""Attribute of MiniMax's cache: a list of tensors that each run replaces, with an empty list for a layer without
one."""


class NoCacheError(UnsupportedError):
    """A model whose states moec cannot take and return. It may be read without."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """One tensor of a cache: ``holder[layer].attribute``, or its element ``state``. ``axis``: that of the tokens; None
    where each run replaces the whole."""

    layer: int
    attribute: str
    state: int | None
    axis: int | None

    @property
    def label(self) -> str:
        """Label such as ``key_0``, or ``conv_0_1`` for the second state of a kind in a layer."""
        kind = _GROWING[self.attribute][0] if self.attribute in _GROWING else _REPLACED.get(self.attribute, "state")
        return f"{kind}_{self.layer}" + (f"_{self.state}" if self.state else "")

    def read(self, cache: Any) -> torch.Tensor:
        if self.attribute == _OF_MINIMAX:
            return cache.linear_cache[self.layer]
        tensors = getattr(cache.layers[self.layer], self.attribute)
        return tensors if self.state is None else tensors[self.state]


@dataclasses.dataclass(frozen=True)
class CacheForm:
    """Layout of a model's cache: the tensors that it keeps and the layers that hold them."""

    kept: tuple[Kept, ...]
    kinds: tuple[tuple[str, int], ...]
    is_minimax: bool

    @classmethod
    def of(cls, cache: Any, name: str) -> CacheForm:
        """Derive the layout from a cache after some tokens. Raises NoCacheError, with the model's ``name``, for an
        unknown kind of cache."""
        layers, kind = getattr(cache, "layers", []), type(cache).__name__
        other = next((type(layer).__name__ for layer in layers if type(layer).__name__ not in _KINDS), None)
        if not layers or other is not None or kind not in ("DynamicCache", "MiniMaxCache"):
            raise NoCacheError(
                f"{name}: it keeps {other or ('no cache' if cache is None else kind)}, which moec does not know as "
                "tensors that go in and out; compile it without"
            )
        kinds = tuple((_KINDS[type(layer).__name__], getattr(layer, "number_of_states", 1)) for layer in layers)
        return cls(tuple(_kept_in(cache)), kinds, kind == "MiniMaxCache")

    def make(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Make a cache that holds the tensors, given by label."""
        layers = [_new_layer(kind, states) for kind, states in self.kinds]
        cache = _new_cache(layers, self.is_minimax)
        for kept in self.kept:
            _put(cache, kept, tensors[kept.label])
        return cache


def _kept_in(cache: Any) -> Iterator[Kept]:
    for at, layer in enumerate(cache.layers):
        for attribute, (_, axis) in _GROWING.items():
            if getattr(layer, attribute, None) is not None:
                yield Kept(at, attribute, None, axis)
        for attribute in _REPLACED:
            states = getattr(layer, attribute, {})
            yield from (Kept(at, attribute, state, None) for state in states if states[state] is not None)
    for at, state in enumerate(getattr(cache, _OF_MINIMAX, ())):
        if not isinstance(state, list):
            yield Kept(at, _OF_MINIMAX, None, None)


def _new_layer(kind: str, states: int) -> Any:
    if kind.startswith("States"):
        return _state_layers()[kind](states)
    from transformers import cache_utils

    return getattr(cache_utils, kind)()


def _new_cache(layers: list[Any], is_minimax: bool) -> Any:
    from transformers.cache_utils import DynamicCache

    cache: Any = _minimax_cache() if is_minimax else DynamicCache()
    cache.layers = layers
    if is_minimax:
        cache.linear_cache = [[] for _ in layers]
    return cache


def _put(cache: Any, kept: Kept, tensor: torch.Tensor) -> None:
    layer = cache.layers[kept.layer]
    if kept.attribute == _OF_MINIMAX:
        cache.linear_cache[kept.layer] = tensor
    elif kept.attribute == "keys":
        _initialize_keys(layer, tensor)
        layer.keys = tensor
    elif kept.attribute == "indexer_keys":
        layer.lazy_initialization_indexer(tensor)
        layer.indexer_keys = tensor
    elif kept.state is None:
        setattr(layer, kept.attribute, tensor)
    else:
        # Some steps of one token write into the state, and this one belongs to the caller.
        getattr(layer, kept.attribute)[kept.state] = tensor.clone()
        getattr(layer, f"is_{kept.attribute}_initialized")[kept.state] = True
        layer.has_previous_state[kept.state] = True


def _initialize_keys(layer: Any, keys: torch.Tensor) -> None:
    from transformers.cache_utils import DynamicLayer

    DynamicLayer.lazy_initialization(layer, keys, keys)


@once
def _state_layers() -> dict[str, type]:
    """Layers whose states are replaced by new tensors, because an export does not follow writes into its inputs. The
    number of cached inputs of a convolution stays the same."""
    from transformers import cache_utils

    layers: Any = cache_utils  # their signatures differ from version to version

    class States(layers.LinearAttentionLayer):
        def __init__(self, number_of_states: int = 1, **options: Any) -> None:
            super().__init__(number_of_states, **options)
            self.record_past = True  # keeps models from writing a convolution's state themselves

        def update_conv_state(self, conv_states: Any, state_idx: int = 0, **_: Any) -> Any:
            before = self.conv_states[state_idx]
            seen = behind(before, conv_states)
            self.conv_states[state_idx] = seen[..., -before.shape[-1] :]
            return seen

        def update_recurrent_state(self, recurrent_states: Any, state_idx: int = 0, **_: Any) -> Any:
            self.recurrent_states[state_idx] = recurrent_states
            return recurrent_states

    class StatesAndKeys(States, layers.LinearAttentionAndFullAttentionLayer):
        pass

    return {"States": States, "StatesAndKeys": StatesAndKeys}


def _minimax_cache() -> Any:
    """A MiniMax cache that asks a layer with keys for the length of the past. The original asks the first layer, which
    may have none."""
    from transformers.models.minimax import modeling_minimax

    module: Any = modeling_minimax

    class Cache(module.MiniMaxCache):
        def get_seq_length(self, layer_idx: int = 0) -> int:
            return super().get_seq_length(self._known(layer_idx))

        def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
            return super().get_mask_sizes(query_length, self._known(layer_idx))

        def _known(self, layer: int) -> int:
            if self.layers[layer].is_initialized:
                return layer
            return next((at for at, cached in enumerate(self.layers) if cached.is_initialized), layer)

    return Cache()
