"""Choices for rotary embeddings and attention."""

from __future__ import annotations

import numpy as np

from .configurations import Choices, Configuration
from .contrib_arithmetic import attributes, tolerance
from .one_node import Fill, Input, Node, Sizes, element_type, integers, normal

_LIMIT = 96  # positions that the caches of cosines and sines have


def _angles(function: np.ufunc, dtype: str, columns: int) -> Input:
    angles = np.arange(_LIMIT)[:, None] / 10.0 ** np.arange(columns)[None, :]
    return Input((_LIMIT, columns), lambda *_: function(angles).astype(element_type(dtype)), constant=True)


ROTARY_EMBEDDING: Choices = {
    "dtype": ("float32", "float16"),
    "sizes": (
        ({"B": 1, "T": 1},),
        ({"B": 2, "T": 3}, {"B": 1, "T": 0}, {"B": 3, "T": 17}),
        ({"B": 0, "T": 2}, {"B": 1, "T": 64}),
    ),
    "rank": (3, 4),
    "heads": (2, 1, 3),
    "head": (8, 2, 16, 64),
    "rotated": ("all", "half", "half by the attribute alone"),
    "num_heads": (False, True),
    "interleaved": (None, 1),
    "scale": (None, 2.0),
    "is_packed_batching": (None, 1),
    "positions": ("each", "offset"),
}


def rotary_embedding(c: Configuration) -> Node:
    heads, head = c["heads"], c["head"]
    rows = ("B", "T", heads * head) if c["rank"] == 3 else ("B", heads, "T", head)
    columns = head // 2 if c["rotated"] != "half" else max(1, head // 4)
    inputs: dict[str, Input | None] = {
        "input": Input(rows, normal(c["dtype"])),
        "position_ids": Input(("B", "T") if c["positions"] == "each" else (1,), integers(0, 20)),
        "cos_cache": _angles(np.cos, c["dtype"], columns),
        "sin_cache": _angles(np.sin, c["dtype"], columns),
    }
    settings = attributes(c, "interleaved", "scale", "is_packed_batching")
    if c["num_heads"]:
        settings["num_heads"] = heads
    if c["rotated"] != "all":
        settings["rotary_embedding_dim"] = max(2, head // 2)
    return Node("RotaryEmbedding", inputs, ["output"], settings, c["sizes"], tolerance=tolerance(c["dtype"]))


GROUP_QUERY_ATTENTION: Choices = {
    "dtype": ("float32", "float16"),
    "sizes": (
        ({"B": 1, "S": 3, "P": 0, "T": 3},),
        ({"B": 1, "S": 1, "P": 4, "T": 5},),
        ({"B": 2, "S": 5, "P": 0, "T": 5}, {"B": 1, "S": 1, "P": 7, "T": 8}, {"B": 2, "S": 1, "P": 0, "T": 1}),
        ({"B": 1, "S": 3, "P": 4, "T": 7}, {"B": 3, "S": 17, "P": 0, "T": 17}),
        ({"B": 0, "S": 1, "P": 2, "T": 3}, {"B": 2, "S": 0, "P": 3, "T": 3}),
    ),
    "heads": ((2, 2), (4, 2), (1, 1), (6, 2)),
    "head": (32, 16, 64),
    "packed": (False, True),
    "past": (True, False),
    "lengths": ("equal", "padded"),
    "do_rotary": (None, 1),
    "rotary_interleaved": (None, 1),
    "partial": (False, True),
    "positions": (False, True),
    "bias": (None, "full", "one head", "one batch", "wider"),
    "sink": (False, True),
    "smooth_softmax": (None, 1),
    "local_window_size": (None, 1, 3),
    "softcap": (None, 2.0),
    "scale": (None, 0.3),
    "present": (True, False),
    "qk_output": (None, 1),
}


def group_query_attention(c: Configuration) -> Node:
    (H, G), h = c["heads"], c["head"]
    fill, columns = normal(c["dtype"]), h // (4 if c["partial"] else 2)
    biases = {"full": ("B", H, "S", "T"), "one head": ("B", 1, "S", "T"), "one batch": (1, H, "S", "T")}
    biases["wider"] = (1, 1, "S", "T")
    past = Input(("B", G, "P", h), fill) if c["past"] else None
    rotary = bool(c["do_rotary"])
    inputs: dict[str, Input | None] = {
        "query": Input(("B", "S", (H + 2 * G) * h if c["packed"] else H * h), fill),
        "key": None if c["packed"] else Input(("B", "S", G * h), fill),
        "value": None if c["packed"] else Input(("B", "S", G * h), fill),
        "past_key": past,
        "past_value": past,
        "seqlens_k": Input(("B",), _last_positions(c["lengths"] == "padded")),
        "total_sequence_length": Input((), lambda _, shape, sizes: np.full(shape, sizes["T"], np.int32)),
        "cos_cache": _angles(np.cos, c["dtype"], columns) if rotary else None,
        "sin_cache": _angles(np.sin, c["dtype"], columns) if rotary else None,
        "position_ids": Input(("B", "S"), _positions) if c["positions"] else None,
        "attention_bias": Input(biases[c["bias"]], fill) if c["bias"] else None,
        "head_sink": Input((H,), normal(c["dtype"], 2.0), constant=True) if c["sink"] else None,
    }
    names = ("do_rotary", "rotary_interleaved", "smooth_softmax", "local_window_size", "softcap", "scale")
    settings = attributes(c, *names, "qk_output") | {"num_heads": H, "kv_num_heads": G}
    present = c["present"] or c["past"]  # without these, onnxruntime computes with memory that nobody wrote
    outputs = ["output", *(("keys", "values") if present else ("", "")), "qk" if c["qk_output"] else ""]
    within, sizes = max(tolerance(c["dtype"]), 5e-5), c["sizes"]
    return Node("GroupQueryAttention", inputs, outputs, settings, sizes, tolerance=within, meaningful=_real_tokens)


def _last_positions(padded: bool) -> Fill:
    """The last position of each sequence; some are shorter than the longest, where there is room for that."""

    def fill(generator: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
        shortest = (1 if sizes["P"] == 0 else sizes["S"]) if padded else sizes["T"]
        lengths = generator.integers(min(shortest, sizes["T"]), sizes["T"] + 1, shape)
        lengths[:1] = sizes["T"]
        return (lengths - 1).astype(np.int32)

    return fill


def _positions(generator: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    return generator.integers(0, 20, shape)


def _real_tokens(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Select the elements to compare: not those after the end of a sequence that is shorter than the longest."""
    B, S = inputs["query"].shape[:2]
    total, lengths = int(inputs["total_sequence_length"]), inputs["seqlens_k"] + 1
    first = np.zeros(B, np.int64) if total == S else lengths - S
    tokens = (first[:, None] + np.arange(S) < lengths[:, None])[:, :, None]
    positions = (np.arange(total) < lengths[:, None])[:, None, :, None]
    return {"output": tokens, "keys": positions, "values": positions}


MULTI_HEAD_ATTENTION: Choices = {
    "dtype": ("float32", "float16"),
    "sizes": (
        ({"B": 1, "S": 3, "L": 3, "P": 0},),
        ({"B": 2, "S": 5, "L": 4, "P": 0}, {"B": 1, "S": 1, "L": 1, "P": 0}),
        ({"B": 2, "S": 1, "L": 1, "P": 4}, {"B": 1, "S": 2, "L": 2, "P": 7}),
    ),
    "heads": (2, 1, 3),
    "head": (16, 8),
    "value_head": ("same", "other"),
    "bias": (False, True),
    "padding": (None, "lengths", "mask"),
    "attention_bias": (None, "full", "one head", "one batch"),
    "past": (False, True),
    "unidirectional": (None, 1),
    "scale": (None, 0.3),
    "mask_filter_value": (None, -5.0),
    "present": (False, True),
}


def multi_head_attention(c: Configuration) -> Node:
    H, h = c["heads"], c["head"]
    w = h if c["value_head"] == "same" else 2 * h
    fill = normal(c["dtype"])
    total: str = "L" if not c["past"] else "T"
    biases = {"full": ("B", H, "S", total), "one head": ("B", 1, "S", total), "one batch": (1, H, "S", total)}
    paddings = {"lengths": Input(("B",), _lengths), "mask": Input(("B", total), integers(0, 2, "int32"))}
    inputs: dict[str, Input | None] = {
        "query": Input(("B", "S", H * h), fill),
        "key": Input(("B", "L", H * h), fill),
        "value": Input(("B", "L", H * w), fill),
        "bias": Input((H * (2 * h + w),), fill, constant=True) if c["bias"] else None,
        "key_padding_mask": paddings[c["padding"]] if c["padding"] else None,
        "attention_bias": Input(biases[c["attention_bias"]], fill) if c["attention_bias"] else None,
        "past_key": Input(("B", H, "P", h), fill) if c["past"] else None,
        "past_value": Input(("B", H, "P", w), fill) if c["past"] else None,
    }
    settings = attributes(c, "unidirectional", "scale", "mask_filter_value") | {"num_heads": H}
    outputs = ["output", *(("keys", "values") if c["present"] else ())]
    sizes = [{**size, "T": size["P"] + size["L"]} for size in c["sizes"]]
    return Node("MultiHeadAttention", inputs, outputs, settings, sizes, tolerance=max(tolerance(c["dtype"]), 5e-5))


def _lengths(generator: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    return generator.integers(1, sizes["L"] + 1, shape).astype(np.int32)


ATTENTION: Choices = {
    "dtype": ("float32", "float16"),
    "sizes": (({"B": 1, "S": 3},), ({"B": 2, "S": 5}, {"B": 1, "S": 1})),
    "heads": (2, 1),
    "head": (8, 16),
    "bias": (True, False),
    "mask": (None, "lengths", "mask"),
    "unidirectional": (None, 1),
    "scale": (None, 0.3),
}


def attention(c: Configuration) -> Node:
    H, h = c["heads"], c["head"]
    width, fill = H * h, normal(c["dtype"])
    masks = {"lengths": Input(("B",), lambda g, shape, s: g.integers(1, s["S"] + 1, shape).astype(np.int32))}
    masks["mask"] = Input(("B", "S"), integers(0, 2, "int32"))
    inputs: dict[str, Input | None] = {
        "input": Input(("B", "S", width), fill),
        "weights": Input((width, 3 * width), normal(c["dtype"], 0.3), constant=True),
        "bias": Input((3 * width,), fill, constant=True) if c["bias"] else None,
        "mask_index": masks[c["mask"]] if c["mask"] else None,
    }
    settings = attributes(c, "unidirectional", "scale") | {"num_heads": H}
    return Node("Attention", inputs, ["output"], settings, c["sizes"], tolerance=max(tolerance(c["dtype"]), 5e-5))
