"""The common scale of blocks on one residual stream."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from moec.targets.hls.graph.stream_scales import StreamPart, shared_scales

A, B, C, D, E = (ir.Value(name=name) for name in "abcde")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], []),
        ([StreamPart(A, B, 0.5)], [0.5]),
        ([StreamPart(A, B, 0.5), StreamPart(B, C, 2.0), StreamPart(C, D, 1.0)], [2.0, 2.0, 2.0]),
        ([StreamPart(A, B, 0.5), StreamPart(B, C, 1.0), StreamPart(D, E, 2.0)], [1.0, 1.0, 2.0]),
        ([StreamPart(C, D, 3.0), StreamPart(A, B, 0.5), StreamPart(B, C, 1.0)], [3.0, 3.0, 3.0]),
    ],
)
def test_connected_blocks_take_the_largest_step_that_one_of_them_needs(parts, expected):
    assert shared_scales(parts) == expected
