"""Constants that are computed from others when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir


class FoldedTensor(ir.LazyTensor):
    """An output, the one at ``index``, of ``operator``, a node by itself whose inputs are the tensors ``sources``."""

    def __init__(
        self, compute: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: Sequence[int], operator: ir.Node,
        sources: Sequence[ir.TensorProtocol | None], index: int,
    ) -> None:  # fmt: skip
        super().__init__(compute, dtype=dtype, shape=ir.Shape(shape))
        self.operator, self.sources, self.index = operator, sources, index
