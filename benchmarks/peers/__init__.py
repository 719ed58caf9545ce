"""The contestants of the benchmark of one layer: moec and its peers, one module each.

Every contestant gets the same tokens and router logits and returns the same layer's output. Conversion to its own
number types and tensors is not timed. Each runs in a process of its own, see ``worker.py``.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from formats import Format
from layers import Case, Layer, Weights

NAMES = ("moec", "vllm", "onnxruntime", "ggml", "pytorch", "openvino", "kt")


class AbsentError(Exception):
    """Reason why a contestant does not take part."""


@dataclasses.dataclass(frozen=True)
class Built:
    """A layer ready to run. ``bits``: memory per weight, scales included. ``prepare`` turns a case into the call that
    is timed; ``as_array`` converts the call's result to float32 numbers [T, d]. ``keep``: objects to which foreign code
    holds addresses."""

    bits: float
    prepare: Callable[[Case], Callable[[], Any]]
    as_array: Callable[[Any], np.ndarray] = np.asarray
    keep: tuple[Any, ...] = ()


class Peer(Protocol):
    """Interface of a module of this package."""

    def variants(self, layer: Layer, form: Format) -> list[str]:
        """Name the ways in which it can compute a layer in a format, ``""`` for the only one. Must be cheap and not
        import the peer. Raises AbsentError."""
        ...

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        """Build the layer. Raises AbsentError."""
        ...


def peer_named(name: str) -> Peer:
    return importlib.import_module(f"peers.{name}").PEER


def require_package(package: str) -> None:
    """Raise AbsentError unless the package is installed."""
    if importlib.util.find_spec(package) is None:
        raise AbsentError(f"{package} is not installed")
