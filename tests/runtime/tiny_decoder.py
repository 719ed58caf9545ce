"""A language model of two layers, the second with a window, whose caches grow: token ids, a mask and positions that it
counts itself, attention, and experts. Another one has a recurrence behind a convolution, too."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx
import onnx.parser

VOCABULARY, WINDOW, LONGEST = 50, 70, 2000
_LAYER = """
    rows{n} = RMSNormalization <axis = -1> (x{n}, norm)
    q{n} = MatMul (rows{n}, wq{n}) k{n} = MatMul (rows{n}, wk{n}) v{n} = MatMul (rows{n}, wv{n})
    qs{n} = Reshape (q{n}, four) ks{n} = Reshape (k{n}, two) vs{n} = Reshape (v{n}, two)
    qh{n} = Transpose <perm = [0, 2, 1, 3]> (qs{n}) kh{n} = Transpose <perm = [0, 2, 1, 3]> (ks{n})
    vh{n} = Transpose <perm = [0, 2, 1, 3]> (vs{n})
    new_key{n} = Concat <axis = 2> (key{n}, kh{n}) new_value{n} = Concat <axis = 2> (value{n}, vh{n})
    y{n} = Attention <scale = 0.4> (qh{n}, new_key{n}, new_value{n}, mask{n})
    joined{n} = Transpose <perm = [0, 2, 1, 3]> (y{n}) flat{n} = Reshape (joined{n}, wide)
    h{n} = Add (x{n}, flat{n}) tokens{n} = Reshape (h{n}, rows)
    scores{n} = MatMul (tokens{n}, router{n})
    m{n} = moec.MoE <k = 2, gate_layout = "separate"> (tokens{n}, scores{n}, , up{n}, down{n}, gate{n})
    size{n} = Shape (h{n}) mixed{n} = Reshape (m{n}, size{n}) x{m} = Add (h{n}, mixed{n})
"""
_MODEL = """<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
g (int64[B,S] input_ids, int64[B,L] attention_mask, float[B,2,P,8] key0, float[B,2,P,8] value0, float[B,2,P,8] key1,
   float[B,2,P,8] value1) => (float[B,S,50] logits, float[B,2,R,8] new_key0, float[B,2,R,8] new_value0,
   float[B,2,R,8] new_key1, float[B,2,R,8] new_value1)
<int64 zero = {0}, int64 one = {1}, int64 window = {WINDOW}, int64[1] last = {1}, int64[2] middle = {1, 2},
 float shown = {0.0}, float hidden = {-3.4028235e38}, int64[4] four = {0, 0, 4, 8}, int64[4] two = {0, 0, 2, 8},
 int64[3] wide = {0, 0, 32}, int64[2] rows = {-1, 32}> {
    before = Shape <start = 2, end = 3> (key0) new = Shape <start = 1, end = 2> (input_ids)
    p = Squeeze (before) s = Squeeze (new) t = Add (p, s) columns = Range (zero, t, one) count = Range (zero, s, one)
    place = Add (count, p) row = Unsqueeze (place, last) far = Sub (row, window)
    up = LessOrEqual (columns, row) inside = Greater (columns, far) both = And (up, inside)
    counts = Cast <to = 9> (attention_mask) there = Unsqueeze (counts, middle)
    causal = And (up, there) near = And (both, there)
    mask0 = Where (causal, shown, hidden) mask1 = Where (near, shown, hidden)
    embedded = Gather (table, input_ids) placed = Gather (places, place) x0 = Add (embedded, placed)
    LAYERS
    logits = MatMul (x2, head)
}"""


_HEAD = "logits = MatMul (x2, head)"
_RECURRENT = {
    '"" : 24': '"" : 27',
    "float[B,2,P,8] key0,": "float[B,32,3] conv, float[B,4,8,8] state, float[B,2,P,8] key0,",
    "=> (float[B,S,50] logits,": "=> (float[B,S,50] logits, float[B,32,3] new_conv, float[B,4,8,8] new_state,",
    "<int64 zero = {0},": """<int64[1] first = {-3}, int64[1] end = {9223372036854775807}, int64[1] channels = {2},
 int64 zero = {0},""",
    _HEAD: """
    inputs = Transpose <perm = [0, 2, 1]> (x2) seen = Concat <axis = 2> (conv, inputs)
    new_conv = Slice (seen, first, end, channels) mixed = Conv <group = 32> (seen, taps)
    keys = Transpose <perm = [0, 2, 1]> (mixed) gates = MatMul (x2, gate) lost = Softplus (gates) decay = Neg (lost)
    read, new_state = LinearAttention <q_num_heads = 4, kv_num_heads = 4, scale = 0.01, update_rule = "gated">
        (keys, keys, x2, state, decay)
    x3 = Add (x2, read) logits = MatMul (x3, head)""",
}


def tiny_hybrid(replaced: Mapping[str, str] = MappingProxyType({})) -> onnx.ModelProto:
    """Make the model with a recurrence behind its layers, whose states each run replaces."""
    return tiny_decoder({**_RECURRENT, **replaced})


def tiny_decoder(replaced: Mapping[str, str] = MappingProxyType({}), units: int = 24) -> onnx.ModelProto:
    """Make the model. ``replaced``: texts of it, and what takes their place. ``units``: of an expert."""
    text = _MODEL.replace("LAYERS", "".join(_LAYER.replace("{n}", n).replace("{m}", m) for n, m in ("01", "12")))
    text = text.replace("WINDOW", str(WINDOW))
    for before, after in replaced.items():
        assert before in text
        text = text.replace(before, after)
    is_recurrent = "LinearAttention" in text
    proto, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {"table": (VOCABULARY, 32), "places": (LONGEST, 32), "head": (32, VOCABULARY), "norm": (32,)}
    shapes |= {"taps": (32, 1, 4), "gate": (32, 4)} if is_recurrent else {}
    for n in "01":
        shapes |= {f"wq{n}": (32, 32), f"wk{n}": (32, 16), f"wv{n}": (32, 16), f"router{n}": (32, 6)}
        shapes |= {f"gate{n}": (6, units, 32), f"up{n}": (6, units, 32), f"down{n}": (6, 32, units)}
    for name, shape in shapes.items():
        array = random.normal(size=shape, scale=2 / np.sqrt(shape[-1])).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto
