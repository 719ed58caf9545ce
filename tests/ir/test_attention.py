"""The interpreter's Attention against onnx.reference, and where that is wrong against plain loops."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from moec.ir.attention import attention

B, H, G, S, L, h = 2, 4, 2, 3, 5, 8


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32)


def operands(length: int = L) -> list[np.ndarray]:
    return [normal(B, H, S, h), normal(B, G, length, h), normal(B, G, length, h) * 2]


def reference(*inputs: np.ndarray | None, **attributes: float) -> np.ndarray:
    """The output of onnx.reference for inputs in the order of the operator."""
    feeds = {f"input_{position}": array for position, array in enumerate(inputs) if array is not None}
    names = [f"input_{position}" if array is not None else "" for position, array in enumerate(inputs)]
    declared = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("Attention", names, ["y"], **attributes)
    graph = onnx.helper.make_graph([node], "g", declared, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)])
    return ReferenceEvaluator(model).run(None, feeds)[0]


@pytest.mark.parametrize(
    "attributes",
    [{}, {"is_causal": 1}, {"scale": 0.3}, {"scale": 0.0}, {"softcap": 2.0, "is_causal": 1}],
    ids=str,
)
@pytest.mark.parametrize("mask", [None, normal(B, H, S, L), normal(B, H, S, L) > 0, normal(S, L - 2)])
def test_masks(attributes, mask):
    actual, keys, _ = attention(*operands(), mask, **attributes)
    np.testing.assert_allclose(actual, reference(*operands(), mask, **attributes), atol=1e-5)
    assert keys.shape == (B, G, L, h)


def test_a_cache_inside():
    past = [normal(B, G, 2, h), normal(B, G, 2, h) * 3]
    actual, keys, values = attention(*operands(S), None, *past, is_causal=1)
    np.testing.assert_allclose(actual, reference(*operands(S), None, *past, is_causal=1), atol=1e-5)
    assert keys.shape == values.shape == (B, G, S + 2, h)


def test_lengths_of_a_cache_outside():
    lengths = np.array([3, 5])
    actual, _, _ = attention(*operands(), None, None, None, lengths, is_causal=1)
    np.testing.assert_allclose(actual, reference(*operands(), None, None, None, lengths, is_causal=1), atol=1e-5)


def test_three_axes():
    q, k, v = normal(B, S, H * h), normal(B, S, G * h), normal(B, S, G * h)
    heads = {"q_num_heads": H, "kv_num_heads": G}
    np.testing.assert_allclose(attention(q, k, v, **heads)[0], reference(q, k, v, **heads), atol=1e-5)


def test_a_causal_mask_that_is_the_same_for_all_queries():
    mask = normal(1, H, 1, L)
    whole = np.broadcast_to(mask, (B, H, S, L))
    lengths = np.array([4, 5])
    actual, expected = (
        attention(*operands(), attention_mask, None, None, lengths, is_causal=1)[0] for attention_mask in (mask, whole)
    )
    np.testing.assert_array_equal(actual, expected)


def test_a_query_that_sees_nothing_gives_zeros():
    mask = np.ones((S, L), bool)
    mask[1] = False
    actual = attention(*operands(), mask)[0]
    assert not actual[:, :, 1].any() and np.isfinite(actual).all() and actual[:, :, 0].any()


def test_narrow_types_are_computed_in_float32():
    narrow = [array.astype(ml_dtypes.bfloat16) for array in operands()]
    actual = attention(*narrow)[0]
    wide = attention(*(array.astype(np.float32) for array in narrow))[0]
    np.testing.assert_array_equal(actual, wide.astype(ml_dtypes.bfloat16))


def test_the_matrix_of_scores_is_refused():
    with pytest.raises(NotImplementedError, match="qk_matmul_output"):
        attention(*operands(), qk_matmul_output_mode=1)
