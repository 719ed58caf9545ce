"""What the target asks of a block of a graph, whatever kind it is. A kind has a folder, whose ``target.py`` answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir

from moec.targets.base import Project
from moec.targets.hls.graph.agreement import Agreement
from moec.targets.hls.graph.calibrate import Replaceable
from moec.targets.hls.hardware.parts import Part
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]


class IntegerBlock(Protocol):
    """A block in integers."""

    def run(self, tokens: Array) -> Array:
        """Float tokens, as :class:`Replaceable` gives them, through the integers; back in floats, of the same shape."""
        ...

    def project(self, name: str, tokens: Array, common: Mapping[str, Any], earlier: Sequence[Project]) -> Project:
        """The project of the block. ``tokens``: those of the calibration data, the first of which the testbench runs;
        ``common``: what the reports of all projects of the model say; ``earlier``: the projects made before it.

        Raises UnsupportedError, naming the node, where no design fits the part.
        """
        ...


class Block(Protocol):
    """A block of a graph that becomes a project."""

    kind: ClassVar[str]
    """What projects are named after."""

    @property
    def graph(self) -> Replaceable: ...

    @classmethod
    def find(cls, model: ir.Model, part: Part, options: HlsOptions) -> tuple[Sequence[Block], list[str]]:
        """All blocks of the kind, and why others stay outside, naming their nodes.

        Raises UnsupportedError, naming the node, for a block without which the model is not worth a project.
        """
        ...

    def agreement(self, tokens: Array, output: Array) -> Agreement:
        """Of the float form, which integers are made from, with what the graph holds on calibration data.

        Raises UnsupportedError, naming the node, where it computes something else.
        """
        ...

    def needed_scale(self, tokens: Array) -> float | None:
        """What a step of the residual stream stands for at least, by float tokens; None for a block without one."""
        ...

    def quantize(self, tokens: Array, stream_scale: float | None) -> IntegerBlock:
        """The block in integers, calibrated with float tokens. ``stream_scale``: what a step of its residual stream
        stands for; None for a block without one.

        Raises UnsupportedError for what the templates cannot compute; MoecError where the largest number of tokens is
        missing.
        """
        ...
