"""A part of a graph that moec computes, as an operator: ``torch.ops.moec.block(inputs, sizes, weights, region)``."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from moec.common.errors import MoecError
from moec.torch.eager_experts import pytorch_threads
from moec.torch.operator import called, library

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.runtime.model import CompiledModel

log = logging.getLogger("moec.torch")

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}
"""Tolerance of results compared to eager PyTorch's, as a share of the largest number, by element type."""

Arguments = Sequence[torch.Tensor]

library.define("block(Tensor[] inputs, SymInt[] sizes, Tensor[] weights, int region) -> Tensor")
_regions: weakref.WeakValueDictionary[int, Region] = weakref.WeakValueDictionary()
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class _Entry:
    """``model`` is compiled for weights in ``versions``; None: PyTorch computes. ``storages`` stay alive, so that no
    other weights get their addresses."""

    versions: tuple[int, ...]
    model: CompiledModel | None
    storages: tuple[object, ...]


class Region:
    """A part of a graph, between some values and one that depends on them.

    ``eager`` computes it in PyTorch, from inputs, sizes and weights. ``model`` returns it as a graph with given
    weights, or None where these change its structure. It is compiled at the first call with new weights, for as many
    threads as PyTorch has then. Its first result is compared with that of ``eager`` (unless ``experts`` rounds
    weights); where they differ, PyTorch computes from then on, which is logged in ``moec.torch``.
    """

    def __init__(
        self,
        name: str,
        eager: Callable[..., torch.Tensor],
        model: Callable[[Sequence[torch.Tensor]], ir.Model | None],
        experts: str | None,
    ) -> None:
        self.name, self.eager = name, eager
        self._model, self._experts = model, experts
        self._entries: dict[tuple[int, ...], _Entry] = {}
        self._compiling = threading.Lock()
        self.number = next(_numbers)
        _regions[self.number] = self

    def __call__(self, inputs: Arguments, sizes: Sequence[int], weights: Arguments) -> torch.Tensor:
        place = tuple(tensor.data_ptr() for tensor in weights)
        versions = tuple(tensor._version for tensor in weights)
        entry = self._entries.get(place)
        if entry is None or entry.versions != versions:
            with self._compiling:
                entry = self._entries.get(place)
                if entry is None or entry.versions != versions:
                    storages = tuple(tensor.untyped_storage() for tensor in weights)
                    entry = _Entry(versions, self._compiled(inputs, sizes, weights), storages)
                    self._entries[place] = entry
        if entry.model is None:
            return self.eager(*inputs, *sizes, *weights)
        return called(entry.model, inputs)[0]

    def _compiled(self, inputs: Arguments, sizes: Sequence[int], weights: Arguments) -> CompiledModel | None:
        from moec.compiling.compiler import compile

        try:
            graph = self._model(weights)
            if graph is None:
                raise MoecError("raising finds no such MoE block with these weights")
            model = compile(graph, experts=self._experts, threads=pytorch_threads())
            if self._experts is None:
                expected = self.eager(*inputs, *sizes, *weights)
                tolerance = max(TOLERANCE.get(tensor.dtype, 0.0) for tensor in (expected, *inputs, *weights))
                _check(called(model, inputs)[0], expected, tolerance)
        except MoecError as error:
            log.warning("%s is left to PyTorch: %s", self.name, error)
            return None
        return model


def _check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise MoecError(
            f"its result is {actual.dtype}{list(actual.shape)}; expected {expected.dtype}{list(expected.shape)}"
        )
    if not expected.numel():
        return
    error = (actual.float() - expected.float()).abs().max().item()
    if not error <= tolerance * expected.float().abs().max().item():
        raise MoecError(f"its results differ from eager PyTorch's by {error:.2g}")


def _run(inputs: Arguments, sizes: Sequence[int], weights: Arguments, region: int) -> torch.Tensor:
    with torch.no_grad():
        return _regions[region](inputs, sizes, weights)


def _shapes(inputs: Arguments, sizes: Sequence[int], weights: Arguments, region: int) -> torch.Tensor:
    return torch.empty_like(_regions[region].eager(*inputs, *sizes, *weights), memory_format=torch.contiguous_format)


library.impl("block", _run, "CompositeExplicitAutograd")
torch.library.register_fake("moec::block", _shapes, lib=library)
