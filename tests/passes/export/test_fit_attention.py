"""The pass that fits attention to onnxruntime, which runs the result."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ..before_after import check
from .conftest import session_of

LOWEST = np.finfo(np.float32).min
QKV = "float[B,4,S,8] q, float[B,2,P,8] k, float[B,2,P,6] v"


def attention(mask: str, attributes: str = "scale = 0.5") -> str:
    return f"({QKV}, {mask} mask) => (float[B,4,S,6] y) {{ y = Attention <{attributes}> (q, k, v, mask) }}"


def operators(model) -> list[str]:
    return [node.op_type for node in model.graph]


def feeds(normal, mask: np.ndarray, B: int = 2, S: int = 3, P: int = 5) -> dict[str, np.ndarray]:
    return {"q": normal(B, 4, S, 8), "k": normal(B, 2, P, 8), "v": normal(B, 2, P, 6), "mask": mask}


def some(normal, lowest: float, *shape: int) -> np.ndarray:
    """A mask that hides some keys, and all of them from the first query."""
    mask = normal(*shape)
    mask[mask < -0.5] = lowest
    mask[..., 0, :] = lowest
    return mask


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (2, 1, 1, 5), (1, 4, 3, 5), (4, 1, 5), (2, 1, 3, 5)])
@pytest.mark.parametrize("lowest", [LOWEST, -np.inf, -1e4])
def test_masks_of_floats(exported, normal, shape, lowest):
    rows = "S" if shape[-2] == 3 else "1"
    text = attention(f"float[{','.join(map(str, shape[:-2]))}{',' if shape[:-2] else ''}{rows},P]")
    model, _ = exported(text, feeds(normal, some(normal, lowest, *shape)))
    assert ("Expand" in operators(model)) == (rows == "1") and "Where" in operators(model)


@pytest.mark.parametrize(("rows", "shape"), [("S", (2, 1, 3, 5)), ("1", (2, 1, 1, 5)), ("R", (2, 1, 1, 5))])
def test_masks_of_truth_values(exported, normal, rows, shape):
    """Also of as many rows as the shapes do not tell."""
    model, _ = exported(attention(f"bool[B,1,{rows},P]"), feeds(normal, some(normal, -1, *shape) > -0.5))
    assert ("Expand" in operators(model)) == (rows != "S") and "Where" not in operators(model)


@pytest.mark.parametrize("attributes", ["scale = -0.5", "scale = -0.5, softcap = 2.0", "is_causal = 1"])
def test_scales(exported, normal, attributes):
    model, _ = exported(attention("bool[S,P]", attributes), feeds(normal, np.ones((3, 5), bool), P=5))
    assert ("Neg" in operators(model)) == ("-" in attributes)


@pytest.mark.parametrize("fixed_sizes", ["BSP", "SP", "BP", "BS", ""])
def test_sizes_that_may_be_0_are_noted(exported, normal, fixed_sizes):
    """The note holds as long as onnxruntime refuses them."""
    text, full = attention("bool[S,P]"), np.ones((3, 5), bool)
    for name, size in {"B": 2, "S": 3, "P": 5}.items():
        text = re.sub(rf"\b{name}\b", str(size) if name in fixed_sizes else name, text)
    model, report = exported(text, feeds(normal, full))
    notes = [remark.message for remark in report.remarks]
    assert notes == ["onnxruntime refuses it for an empty batch or sequence"] * (fixed_sizes != "BSP")
    for size in set("BSP") - set(fixed_sizes):
        case = feeds(normal, full[: 0 if size == "S" else None, : 0 if size == "P" else None], **{size: 0})
        with pytest.raises(Exception, match="Attention"):
            session_of(model).run(None, case)


def test_rows_of_queries_side_by_side(exported, normal):
    text = """(float[B,S,16] q, float[B,P,8] k, float[B,P,8] v, float[B,1,1,P] mask) => (float[B,S,16] y) {
        y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, mask)
    }"""
    case = {"q": normal(2, 3, 16), "k": normal(2, 5, 8), "v": normal(2, 5, 8), "mask": normal(2, 1, 1, 5)}
    model, _ = exported(text, case)
    assert "Expand" in operators(model)


def test_what_onnxruntime_takes_stays(exported, normal):
    check("infer-shapes,fit-attention", attention("bool[B,1,S,P]"))
    text = (
        attention("float[2,3]")
        .replace(", float[2,3] mask", "")
        .replace("{ y =", "<float[2,3] mask = {0, 1, 2, 3, 4, 5}> { y =")
    )
    case = feeds(normal, np.zeros(0), S=2, P=3)
    model, _ = exported(text.replace("[B,4,S,", "[B,4,2,"), {name: case[name] for name in "qkv"})
    assert operators(model) == ["Attention"]


def test_attention_and_norms_that_are_spelled_out_become_operators(exported, normal):
    text = """(float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,3] v, float[S,P] mask) => (float[B,2,S,3] y)
       <float[3] scale, float epsilon = {0.01}, int64[1] last = {-1}> {
       t = Transpose <perm = [0, 1, 3, 2]> (k)
       products = MatMul (q, t)
       scores = Add (products, mask)
       p = Softmax <axis = -1> (scores)
       x = MatMul (p, v)
       squares = Mul (x, x)
       mean = ReduceMean (squares, last)
       guarded = Add (mean, epsilon)
       root = Sqrt (guarded)
       normal = Div (x, root)
       y = Mul (normal, scale)
    }"""
    mask = some(normal, LOWEST, 3, 5)
    case = {"q": normal(2, 2, 3, 4), "k": normal(2, 2, 5, 4), "v": normal(2, 2, 5, 3), "mask": mask}
    model, _ = exported(text, case)
    assert operators(model) == ["Equal", "Where", "Attention", "RMSNormalization"]
