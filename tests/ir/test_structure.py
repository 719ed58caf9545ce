"""Parts and layers follow from how nodes depend on each other, whatever their names say."""

from __future__ import annotations

from moec.ir.structure import parts_of
from moec.ir.text import parse_model

HEAD = """<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
g (int64[t] ids) => (float[t,V] y)
<
   float[9,4] table = ["location": "sha256:0000000000000001"],
   float[4,4] wa = ["location": "sha256:0000000000000002"],
   float[4,4] wb = ["location": "sha256:0000000000000003"],
   float[4,4] wc = ["location": "sha256:0000000000000004"],
   float[4,4] wd = ["location": "sha256:0000000000000005"],
   float[4,9] wh = ["location": "sha256:0000000000000006"],
   float[2,4] wr = ["location": "sha256:0000000000000007"],
   float[2,8,4] up = ["location": "sha256:0000000000000008"],
   float[2,4,8] down = ["location": "sha256:0000000000000009"],
   float[4] scale = {1, 1, 1, 1},
   float[t,4] e, float[t,4] n, float[t,4] q, float[t,4] k, float[t,4] a, float[t,4] o, float[t,4] x, float[t,4] m,
   float[t,4] g1, float[t,4] u, float[t,4] h, float[t,4] d, float[t,4] z, float[t,2] l, float[t,4] b, float[t,4] z2
>
{
"""
ATTENTION = """
   e = Gather (table, ids)
   n = RMSNormalization (e, scale)
   q = MatMul (n, wa)
   k = MatMul (n, wb)
   a = Attention <q_num_heads = 1, kv_num_heads = 1> (q, k, k)
   o = MatMul (a, wc)
   x = Add (e, o)
"""


def divided(body: str, states: tuple[str, ...] = ()) -> list[tuple[object, str, list[str]]]:
    """The layer and kind of each part of a graph, and its operators."""
    parts = parts_of(parse_model(f"{HEAD}{body}}}").graph, states)
    return [(part.layer, part.kind, [node.op_type for node in part.nodes]) for part in parts]


def test_projections_and_norms_belong_to_what_they_alone_lead_to():
    assert divided(ATTENTION + "   y = MatMul (x, wh)\n") == [
        ("input", "embedding", ["Gather"]),
        (0, "attention", ["RMSNormalization", "MatMul", "MatMul", "Attention", "MatMul"]),
        ("output", "head", ["Add", "MatMul"]),
    ]


def test_products_that_stem_from_each_other_are_one_dense_part():
    body = """
   g1 = MatMul (x, wa)
   u = MatMul (x, wb)
   h = Mul (g1, u)
   d = MatMul (h, wd)
   z = Add (x, d)
   y = MatMul (z, wh)
"""
    assert divided(ATTENTION + body)[2:] == [
        (0, "dense", ["MatMul", "MatMul", "Mul", "MatMul"]),
        (0, "rest", ["Add"]),
        ("output", "head", ["Add", "MatMul"]),
    ]


def test_a_dense_part_beside_a_moe_block_is_shared():
    body = """
   l = MatMul (x, wr_t)
   b = moec.MoE <k = 1> (x, l, , up, down)
   u = MatMul (x, wb)
   m = Add (b, u)
   z = Add (x, m)
   y = MatMul (z, wh)
""".replace("wr_t", "wl")
    text = HEAD.replace("float[4] scale", 'float[4,2] wl = ["location": "sha256:000000000000000a"], float[4] scale')
    parts = parts_of(parse_model(f"{text}{ATTENTION}{body}}}").graph, ())
    assert [(part.layer, part.kind) for part in parts] == [
        ("input", "embedding"),
        (0, "attention"),
        (0, "moe"),
        (0, "shared"),
        (0, "rest"),
        ("output", "head"),
    ]
    block = parts[2]
    assert [node.op_type for node in block.nodes] == ["MatMul", "MoE"]
    assert {weight.name for weight in block.weights} == {"wl", "up", "down"}


def test_a_gate_of_one_column_belongs_to_what_it_multiplies_and_frequencies_are_no_product():
    body = """
   f = MatMul (freq, p)
   g1 = MatMul (x, w1)
   g2 = Sigmoid (g1)
   u = MatMul (x, wb)
   h = Mul (u, g2)
   z = Add (x, h)
   y = MatMul (z, wh)
"""
    text = HEAD.replace("float[4] scale", 'float[4,1] w1 = ["location": "sha256:000000000000000b"], float[4] scale')
    text = text.replace("float[4] scale", "float[4,1] freq = {1, 1, 1, 1}, float[4] scale")
    text = text.replace("int64[t] ids", "int64[t] ids, float[1,t] p").replace(
        "=> (float[t,V] y", "=> (float[t,V] y, float[4,t] f"
    )
    parts = parts_of(parse_model(f"{text}{ATTENTION}{body}}}").graph, ())
    (dense,) = (part for part in parts if part.kind == "dense")
    assert [node.op_type for node in dense.nodes] == ["MatMul", "Sigmoid", "MatMul", "Mul"]
    assert [weight.name for weight in dense.weights] == ["w1"]
    assert [weight.name for weight in dense.shared] == ["wb"]


def test_a_second_attention_begins_a_layer_and_a_gate_does_not():
    body = """
   u = MatMul (x, wa)
   a2 = Attention <q_num_heads = 1, kv_num_heads = 1> (u, u, u)
   g1 = MatMul (x, wb)
   g2 = Sigmoid (g1)
   h = Mul (a2, g2)
   d = MatMul (h, wd)
   z = Add (x, d)
   y = MatMul (z, wh)
"""
    text = HEAD.replace("float[t,4] e,", "float[t,4] e, float[t,4] a2, float[t,4] g2,")
    parts = parts_of(parse_model(f"{text}{ATTENTION}{body}}}").graph, ())
    second = next(part for part in parts if part.layer == 1)
    assert (second.kind, len(second.nodes)) == ("attention", 6)
    assert {weight.name for weight in second.weights} == {"wd"}
    assert {weight.name for weight in second.shared} == {"wa", "wb"}
    assert not [part for part in parts if part.kind == "dense"]


def test_every_node_and_weight_is_in_one_part(char_lm):
    text = (char_lm / "ir").glob("*.onnxtxt")
    graph = parse_model(max(text).read_text(encoding="utf-8")).graph
    parts = parts_of(graph, ())
    assert sorted(node.name or "" for part in parts for node in part.nodes) == sorted(node.name or "" for node in graph)
    read = {value.name for node in graph for value in node.inputs if value is not None}
    assert {weight.name for part in parts for weight in part.weights} == read & set(graph.initializers)
