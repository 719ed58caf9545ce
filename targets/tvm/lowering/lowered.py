"""Results of lowering a model: a Relax module, and what its callers need to know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import tvm

from moec.common.budgets import Budget
from moec.common.specs import HeldState, LastTokens, StreamedExpertsSpec
from moec.targets.base import KernelRecord, TensorSpec, Weight


@dataclasses.dataclass
class Lowered:
    """The Relax module, whose ``main`` takes the inputs and then the weights and returns a tuple of the outputs."""

    module: tvm.IRModule
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    weights: list[Weight]
    kernels: dict[str, KernelRecord]
    """The target's own kernels by symbol name."""
    nodes: dict[str, ir.Node]
    """The nodes that variables of ``main`` were made for, by the variable's name."""
    held: list[HeldState]
    """States for which ``main`` takes pages in place of inputs and returns them in place of outputs. Their lengths in
    use follow the inputs, as one shape."""
    lengths_in_memory: bool
    """Whether each of these lengths follows once more, as a tensor int64[1]."""
    fixed_lengths: list[str]
    """The names of nodes for which these tensors are not enough: their results follow from the shape of lengths."""
    beyond: Mapping[Budget, Sequence[str]]
    """The names of nodes that needed more than a budget allows."""
    streamed: list[StreamedExpertsSpec]
    """The experts that ``main`` asks for before it uses them, by the number of their layer."""
    tables: list[int]
    """Positions of the weights of which ``main`` only looks up rows, by a call of the runtime."""
    last: LastTokens | None
    """Logits that ``main`` can compute for the last tokens alone; it takes their number as one more shape."""
    untold: Mapping[str, Any]
    """Sizes that no input tells, by their names, as expressions of others: of pages as in a plain run, and one token
    whose logits are computed."""
    bodies: Sequence[Lowered]
    """The steps of the loops in ``main``, and of loops inside these, each as a ``main`` of its own."""
