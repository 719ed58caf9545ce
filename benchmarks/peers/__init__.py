"""The contestants of the benchmark of one layer: moec and its peers, one module each.

Every contestant gets the same tokens and router logits and gives the same layer's output. How it wants them (number
type, own tensors) is prepared outside of the time measured. Each runs in a process of its own, see ``worker.py``.
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
    """Why a contestant does not take part."""


@dataclasses.dataclass(frozen=True)
class Built:
    """A layer ready to run. ``bits``: of memory per weight, scales included. ``prepare`` makes of a case the call that
    is timed; ``as_array`` makes float32 numbers [T, d] of what the call returned. ``keep``: what foreign code holds
    addresses of."""

    bits: float
    prepare: Callable[[Case], Callable[[], Any]]
    as_array: Callable[[Any], np.ndarray] = np.asarray
    keep: tuple[Any, ...] = ()


class Peer(Protocol):
    """What a module of this package offers."""

    def variants(self, layer: Layer, form: Format) -> list[str]:
        """Names for the ways in which it can compute a layer in a format, ``""`` for the only one. Cheap, and without
        importing the peer. Raises AbsentError."""
        ...

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        """Raises AbsentError."""
        ...


def peer_named(name: str) -> Peer:
    return importlib.import_module(f"peers.{name}").PEER


def require_package(package: str) -> None:
    """Raises AbsentError if it is not installed."""
    if importlib.util.find_spec(package) is None:
        raise AbsentError(f"{package} is not installed")
