"""The MoE operator of onnxruntime (domain com.microsoft): the block is one node already.

Its router is a softmax over the k largest logits, or a softmax over all of them when ``normalize_routing_weights`` is 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

OPERATORS = ("MoE",)
