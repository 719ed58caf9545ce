"""The interface between the target and the blocks of a graph, of any kind. Each kind implements it in the
``target.py`` of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir

from moec.targets.base import Project
from moec.targets.hls.graph.agreement import Agreement
from moec.targets.hls.graph.calibrate import Replaceable
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]


class IntegerBlock(Protocol):
    """A block in integers."""

    def run(self, tokens: Array) -> Array:
        """Compute the block in integers on float tokens, shaped as :class:`Replaceable` gives them. Returns floats of
        the same shape."""
        ...

    def project(self, name: str, tokens: Array, common: Mapping[str, Any], earlier: Sequence[Project]) -> Project:
        """The project of the block. ``tokens``: of the calibration data; the testbench runs the first of them.
        ``common``: entries that the reports of all projects of the model share. ``earlier``: projects made before it.

        Raises UnsupportedError, naming the node, where no design fits the part.
        """
        ...


class FpgaBlock(Protocol):
    """A block of a graph that becomes a project."""

    kind: ClassVar[str]
    """The prefix of the names of its projects."""

    @property
    def graph(self) -> Replaceable: ...

    @classmethod
    def find(cls, model: ir.Model, part: FpgaPart, options: HlsOptions) -> tuple[Sequence[FpgaBlock], list[str]]:
        """All blocks of the kind, and the reasons why others stay outside, which name their nodes.

        Raises UnsupportedError, naming the node, for a block without which the model is not worth a project.
        """
        ...

    def agreement(self, tokens: Array, output: Array) -> Agreement:
        """The agreement of the float form, which integers are made from, with the graph on calibration data:
        ``tokens`` go into the block, ``output`` is the graph's result.

        Raises UnsupportedError, naming the node, where the float form computes something else.
        """
        ...

    def needed_scale(self, tokens: Array) -> float | None:
        """The smallest scale of an int16 residual stream with which float ``tokens`` and the block's results fit; None
        for a block without a residual stream."""
        ...

    def quantize(self, tokens: Array, stream_scale: float | None) -> IntegerBlock:
        """The block in integers, calibrated with float tokens. ``stream_scale``: of its residual stream; None for a
        block without one.

        Raises UnsupportedError for a block that the templates cannot compute; MoecError where the largest number of
        tokens is unknown.
        """
        ...
