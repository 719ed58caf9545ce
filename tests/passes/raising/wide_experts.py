"""A block of four unrolled experts with weights wide enough for a miniature, for each way to spell an expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from moec.passes.raising.block import Block
from moec.passes.raising.candidates import candidate_blocks, find_logits
from moec.passes.raising.dataflow import DataFlow

D, F = 96, 112
MIX = """
    at_{e} = Equal (chosen, expert_{e})
    hit_{e} = Cast <to = 1> (at_{e})
    share_{e} = Mul (w, hit_{e})
    column_{e} = ReduceSum <keepdims = 1> (share_{e}, minus_one)
    y_{e} = Mul (o_{e}, column_{e})
"""
SPLIT = "u_{e} = MatMul (x, both_{e})\n l_{e}, r_{e} = Split <axis = -1, num_outputs = 2> (u_{e})"
SLICES = (
    "u_{e} = MatMul (x, both_{e})\n l_{e} = Slice (u_{e}, zero, f, minus_one)\n r_{e} = Slice (u_{e}, f, f2, minus_one)"
)
IN_TURNS = (
    "u_{e} = MatMul (x, both_{e})\n l_{e} = Slice (u_{e}, zero, end, minus_one, two)\n"
    "r_{e} = Slice (u_{e}, one, end, minus_one, two)"
)
GATED = "\n s_{e} = Sigmoid (l_{e})\n g_{e} = Mul (l_{e}, s_{e})\n a_{e} = Mul (g_{e}, r_{e})\n"
PLAIN = "l_{e} = MatMul (x, up_{e})\n a_{e} = Relu (l_{e})\n"
DOWN = "o_{e} = MatMul (a_{e}, down_{e})\n"
ALIKE = {
    "plain": PLAIN + DOWN,
    "gated": "l_{e} = MatMul (x, up_{e})\n r_{e} = MatMul (x, gate_{e})" + GATED + DOWN,
    "biases": "l_{e} = Gemm (x, up_{e}, up_bias_{e})\n a_{e} = Gelu (l_{e})\n b_{e} = MatMul (a_{e}, down_{e})\n"
    "o_{e} = Add (b_{e}, down_bias_{e})\n",
    "halves": SPLIT + GATED + DOWN,
    "slices": SLICES + GATED + DOWN,
    "in turns": IN_TURNS + GATED + DOWN,
    "limits": "p_{e} = MatMul (x, up_{e})\n q_{e} = MatMul (x, gate_{e})\n l_{e} = Min (p_{e}, high)\n"
    "r_{e} = Clip (q_{e}, low, high)" + GATED + DOWN,
}
"""Experts all of whose columns are made alike."""


def text_of(router: str, body: str, other: str | None = None) -> str:
    """The nodes of a block of experts; ``other``: the last one, where it is not like the others."""
    bodies = [body, body, body, other or body]
    experts = "\n".join((body + MIX).replace("{e}", str(e)) for e, body in enumerate(bodies))
    return f"{router}{experts}\n y01 = Add (y_0, y_1)\n y23 = Add (y_2, y_3)\n y = Add (y01, y23)\n"


def weights_of(normal: Callable[..., np.ndarray], d: int = D, f: int = F) -> dict[str, np.ndarray]:
    shapes = {"up": (d, f), "gate": (d, f), "both": (d, 2 * f), "down": (f, d), "up_bias": (f,), "down_bias": (d,)}
    each = {f"{name}_{e}": normal(*shape) for e in range(4) for name, shape in shapes.items()}
    numbers: Mapping[str, np.ndarray] = {
        "f": np.array([f]),
        "f2": np.array([2 * f]),
        "end": np.array([np.iinfo(np.int64).max]),
        "low": np.float32(-1),
        "high": np.float32(1),
    }
    return {"router": normal(d, 4), **each, **numbers}


def block_of(model: ir.Model) -> Block:
    dataflow = DataFlow(model.graph)
    anchor = next(node for node in model.graph if node.op_type == "TopK")
    return next(candidate_blocks(dataflow, anchor, find_logits(dataflow, anchor)[0]))
