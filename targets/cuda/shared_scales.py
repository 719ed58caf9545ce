"""Matrices in fp8 whose scales are the same for 128 neighbouring outputs, as in checkpoints in blocks of 128 x 128."""

from __future__ import annotations

import dataclasses

import numpy as np

from moec.ir.weights.encode import StoredMatrix
from moec.targets.gpu.kernels.fp8_rows import GROUP
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.lowering.expert_matrices import Parts


def with_shared_scales(problem: GroupedProblem, parts: Parts) -> GroupedProblem:
    """The problem with ``shares_scales`` set if outputs share them in all ``parts``; gate and up are two. Reads
    all scales, up to the first matrix whose outputs do not share them."""
    shares = problem.in_fp8 and all(map(_shares, (part for e in range(problem.experts) for part in parts(e))))
    return dataclasses.replace(problem, shares_scales=shares)


def _shares(matrix: StoredMatrix) -> bool:
    """Whether the scales [groups, outputs] are the same in blocks of outputs, bit for bit, and finite: outputs of
    padding are multiplied by a scale of their block, too, and have to stay zero."""
    scales = matrix.read("scale")
    assert scales is not None, "fp8 has scales"
    bits = np.ascontiguousarray(scales).view(f"u{scales.itemsize}")
    first = np.repeat(bits[:, ::GROUP], GROUP, axis=1)[:, : bits.shape[1]]
    return bool(np.isfinite(scales).all()) and np.array_equal(bits, first)
