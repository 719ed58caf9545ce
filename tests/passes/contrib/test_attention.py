"""Rotary embeddings, and attention with grouped queries and a cache, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

B, H, G, h, LIMIT = 2, 4, 2, 16, 16
TYPES = {"float32": "float", "int32": "int32", "int64": "int64"}


def caches(columns: int = h // 2) -> dict[str, np.ndarray]:
    angles = np.arange(LIMIT)[:, None] / 10.0 ** np.arange(columns)[None, :]
    return {"cosine": np.cos(angles).astype(np.float32), "sine": np.sin(angles).astype(np.float32)}


def declared(inputs: dict[str, np.ndarray]) -> str:
    shapes = {name: f"[{','.join(map(str, array.shape))}]" if array.ndim else "" for name, array in inputs.items()}
    return ", ".join(f"{TYPES[array.dtype.name]}{shapes[name]} {name}" for name, array in inputs.items())


def attention(inputs: dict[str, np.ndarray], attributes: str) -> str:
    slots = ["query", "key", "value", "past_key", "past_value", "last", "total", "cosine", "sine"]
    slots += ["positions", "bias", "sink"]
    given = inputs.keys() | caches()
    arguments = ", ".join(slot if slot in given else '""' for slot in slots)
    operator = f"com.microsoft.GroupQueryAttention <num_heads = {H}, kv_num_heads = {G}{attributes}>"
    outputs = "float[] y, float[] keys, float[] values"
    return f"({declared(inputs)}) => ({outputs}) {{ y, keys, values = {operator} ({arguments}) }}"


def tokens(normal, new: int, past: int, packed: bool = False, capacity: int | None = None) -> dict[str, np.ndarray]:
    """The inputs of a call with ``new`` tokens after ``past`` ones."""
    if packed:
        inputs = {"query": normal(B, new, (H + 2 * G) * h)}
    else:
        inputs = {"query": normal(B, new, H * h), "key": normal(B, new, G * h), "value": normal(B, new, G * h)}
    cache = past if capacity is None else capacity
    inputs |= {"past_key": normal(B, G, cache, h), "past_value": normal(B, G, cache, h)}
    if capacity is not None:
        for name in ("past_key", "past_value"):
            inputs[name][:, :, past:] = 0
    return inputs | {"last": np.full(B, new + past - 1, np.int32), "total": np.array(new + past, np.int32)}


ATTRIBUTES = [
    "",
    ", scale = 0.3, local_window_size = 3",
    ", softcap = 2.0",
    ", smooth_softmax = 1",
    ", do_rotary = 1",
    ", do_rotary = 1, rotary_interleaved = 1, local_window_size = 2",
]


@pytest.mark.parametrize(("new", "past"), [(5, 0), (1, 4)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("attributes", ATTRIBUTES)
def test_prompt_and_next_token(decompose, normal, attributes, packed, new, past):
    inputs = tokens(normal, new, past, packed)
    model = decompose(attention(inputs, attributes), inputs, caches())
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    assert node.attributes.get_int("is_causal") == 1


@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize(("new", "past"), [(5, 0), (1, 4)])
def test_sinks(decompose, normal, window, new, past):
    inputs = tokens(normal, new, past) | {"sink": 2 * normal(H)}
    decompose(attention(inputs, f", do_rotary = 1, local_window_size = {window}"), inputs, caches())


@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("heads", [1, H])
@pytest.mark.parametrize(("new", "past"), [(5, 0), (1, 4)])
def test_an_attention_bias(decompose, normal, heads, new, past, window, sink):
    inputs = tokens(normal, new, past) | {"bias": normal(1, heads, new, new + past)}
    inputs |= {"sink": 2 * normal(H)} if sink else {}
    decompose(attention(inputs, f", local_window_size = {window}"), inputs, caches())


@pytest.mark.parametrize(("new", "past"), [(3, 0), (1, 4)])
def test_positions_that_are_given(decompose, normal, new, past):
    """They turn queries and keys, and which keys a query sees stays as it is. A prompt counts from the first one."""
    inputs = tokens(normal, new, past) | {"positions": np.array([[4, 0, 7], [1, 1, 1]])[:, :new]}
    decompose(attention(inputs, ", do_rotary = 1, local_window_size = 2"), inputs, caches())


def test_a_cache_that_has_room(decompose, normal):
    """onnxruntime then writes into the given buffer; elements after the last token have no meaning."""
    inputs = tokens(normal, 1, 4, capacity=9)
    decompose(attention(inputs, ", do_rotary = 1"), inputs, caches(), expected=lambda name, y: y[:, :, :5])


@pytest.mark.parametrize("room", [9, 5])
def test_a_cache_of_a_window_holds_all_tokens(decompose, normal, room):
    """As long as nothing is evicted, both keep the same."""
    inputs = tokens(normal, 1, 4, capacity=room)
    attributes = ", do_rotary = 1, local_window_size = 3, sliding_window_cache = 1"
    decompose(attention(inputs, attributes), inputs, caches(), expected=lambda name, y: y[:, :, :5])


def test_sequences_of_different_lengths(decompose, normal):
    """The first sequence has 2 past tokens, the second 4: new keys follow those of their own sequence."""
    inputs = tokens(normal, 1, 4) | {"last": np.array([2, 4], np.int32)}
    for name in ("past_key", "past_value"):
        inputs[name][0, :, 2:] = 0

    def meaningful(name: str, y: np.ndarray) -> np.ndarray:
        return y if name == "y" else np.concatenate([y[0, :, :3], y[1]], axis=1)

    decompose(attention(inputs, ", do_rotary = 1"), inputs, caches(), expected=meaningful)


def test_prompts_of_different_lengths(decompose, normal):
    inputs = tokens(normal, 5, 0) | {"last": np.array([2, 4], np.int32)}

    def meaningful(name: str, y: np.ndarray) -> np.ndarray:
        tokens_axis_first = y if name == "y" else np.swapaxes(y, 1, 2)
        return np.concatenate([tokens_axis_first[0, :3], tokens_axis_first[1]])

    decompose(attention(inputs, ", do_rotary = 1"), inputs, caches(), expected=meaningful)


@pytest.mark.parametrize("positions", [np.array([3]), np.array([[1, 2, 3], [4, 6, 8]])], ids=["offset", "each"])
@pytest.mark.parametrize("attributes", ["", "<interleaved = 1>", "<num_heads = 2, rotary_embedding_dim = 8>"])
def test_rotary_embedding(decompose, normal, positions, attributes):
    partial = "rotary" in attributes
    x = normal(B, 3, 2 * h) if partial else normal(B, 2, 3, h)
    shape = ",".join(map(str, x.shape))
    kind = f"int64[{','.join(map(str, positions.shape))}]"
    text = f"(float[{shape}] x, {kind} p) => (float[{shape}] y) {{ y = com.microsoft.RotaryEmbedding {attributes}"
    constants = caches(4 if partial else h // 2)
    decompose(f"{text} (x, p, cosine, sine) }}", {"x": x, "p": positions}, constants)


@pytest.mark.parametrize("positions", [np.array([3]), np.array([[1, 2, 3], [4, 6, 8]])], ids=["offset", "each"])
def test_rotary_embedding_whose_heads_follow_from_the_caches(decompose, normal, positions):
    """A head of [B,S,hidden] is twice as wide as the caches where nothing else says how many there are."""
    kind = f"int64[{','.join(map(str, positions.shape))}]"
    text = f"(float[{B},S,{3 * h}] x, {kind} p) => (float[{B},S,{3 * h}] y)"
    model = decompose(
        f"{text} {{ y = com.microsoft.RotaryEmbedding (x, p, cosine, sine) }}",
        {"x": normal(B, 3, 3 * h), "p": positions},
        caches(),
    )
    assert next(node for node in model.graph if node.op_type == "RotaryEmbedding").attributes.get_int("num_heads") == 3
