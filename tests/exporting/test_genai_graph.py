"""Inputs and outputs as onnxruntime-genai names and sizes them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.exporting.genai_graph import Decoder, name_for_genai

IDS, LOGITS = "int64[batch,length] input_ids", "float[batch,length,5] logits"
MODEL = """<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs})
<int64[2] axes = {{1, 3}}, int64[1] last = {{2}}, float[1,1,5] ones = {{1, 1, 1, 1, 1}}> {{
    new = Cast <to = 1> (input_ids)
    column = Unsqueeze (new, last)
    entry = Unsqueeze (new, axes)
    {nodes}
    logits = Mul (column, ones)
}}"""
KEYS = "float[batch,1,past,{width}] past_{kind}_{layer}", "float[batch,1,total,{width}] present_{kind}_{layer}"


def model_of(inputs: list[str], outputs: list[str], nodes: str = "") -> ir.Model:
    return ir.from_onnx_text(
        MODEL.format(inputs=", ".join([IDS, *inputs]), outputs=", ".join([LOGITS, *outputs]), nodes=nodes)
    )


def keeping(*states: tuple[str, int, int]) -> ir.Model:
    """Make a model whose states, by kind, layer and width, get each id as all elements of a new entry."""
    fields = [{"kind": kind, "layer": layer, "width": width} for kind, layer, width in states]
    nodes = "".join(
        f"""shape_{kind} = Constant <value_ints = [1, 1, 1, {width}]> ()
            wide_{kind} = Expand (entry, shape_{kind})
            present_{kind}_{layer} = Concat <axis = 2> (past_{kind}_{layer}, wide_{kind})
        """.replace("length", "")
        for kind, layer, width in states
    )
    return model_of([KEYS[0].format(**field) for field in fields], [KEYS[1].format(**field) for field in fields], nodes)


def run(model: ir.Model, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize(("key", "value"), [(3, 2), (2, 3), (3, 3)])
def test_keys_and_values_get_one_width(key, value):
    model = keeping(("key", 4, key), ("value", 4, value))
    assert name_for_genai(model) == Decoder(5, 5, 1, 3)
    past = np.full((1, 1, 1, 3), 7, np.float32)
    inputs = {"past_key_values.4.key": past, "past_key_values.4.value": past}
    results = run(model, input_ids=np.array([[9]]), attention_mask=np.ones((1, 2), np.int64), **inputs)
    for kind, width in (("key", key), ("value", value)):
        expected = np.array([[7.0] * width + [0.0] * (3 - width), [9.0] * width + [0.0] * (3 - width)])
        np.testing.assert_array_equal(results[f"present.4.{kind}"][0, 0], expected)


def test_keys_alone_are_values_too():
    model = keeping(("key", 0, 3))
    assert name_for_genai(model) == Decoder(5, 1, 1, 3)
    past = np.zeros((2, 1, 0, 3), np.float32)
    inputs = {"past_key_values.0.key": past, "past_key_values.0.value": past}
    results = run(model, input_ids=np.array([[9], [8]]), attention_mask=np.ones((2, 1), np.int64), **inputs)
    np.testing.assert_array_equal(results["present.0.key"], results["present.0.value"])


@pytest.mark.parametrize("length", [1, 3])
def test_keys_of_indexers_are_a_further_layer(length):
    model = keeping(("key", 4, 3), ("value", 4, 3))
    graph = model.graph
    past, total = (ir.Shape(["batch", size, 4]) for size in ("past", "total"))
    index = ir.Value(name="past_index_4", type=ir.TensorType(ir.DataType.FLOAT), shape=past)
    twice = ir.node("Add", [index, index])
    twice.outputs[0].name, twice.outputs[0].type, twice.outputs[0].shape = "present_index_4", index.type, total
    graph.append(twice)
    graph.inputs.append(index)
    graph.outputs.append(twice.outputs[0])
    assert name_for_genai(model) == Decoder(5, 6, 1, 3)
    caches = {f"past_key_values.4.{kind}": np.zeros((1, 1, length, 3), np.float32) for kind in ("key", "value")}
    keys = np.arange(4 * length, dtype=np.float32).reshape(1, 1, length, 4)
    halves = {"past_key_values.5.key": keys[..., :2], "past_key_values.5.value": keys[..., 2:]}
    mask = np.ones((1, length + 1), np.int64)
    results = run(model, input_ids=np.array([[9]]), attention_mask=mask, **caches, **halves)
    np.testing.assert_array_equal(results["present.5.key"], 2 * keys[..., :2])
    np.testing.assert_array_equal(results["present.5.value"], 2 * keys[..., 2:])


@pytest.mark.parametrize(
    ("past", "length", "fails"),
    [(0, 5, False), (0, 9, False), (2, 6, False), (2, 7, True), (8, 1, True), (9, 1, False)],
)
def test_a_text_grows_up_to_the_switch_and_beyond_it_but_not_across(past, length, fails):
    model = keeping(("key", 0, 3))
    name_for_genai(model, switches_after=8)
    cache = np.zeros((1, 1, past, 3), np.float32)
    inputs = {"past_key_values.0.key": cache, "past_key_values.0.value": cache}
    inputs |= {"input_ids": np.ones((1, length), np.int64), "attention_mask": np.ones((1, past + length), np.int64)}
    if not fails:
        assert run(model, **inputs)["logits"].shape == (1, length, 5)
        return
    with pytest.raises(Exception, match="a text that grows beyond 8 tokens has to be given anew"):
        run(model, **inputs)


def replaced(conv: str, state: str) -> ir.Model:
    """Make a model with states of layers 2 and 5, of these shapes, that each run adds 1 to and doubles."""
    return model_of(
        [f"float[{conv}] past_conv_2", f"float[{state}] past_state_5"],
        [f"float[{conv}] present_conv_2", f"float[{state}] present_state_5"],
        "one = Constant <value_float = 1.0> ()\n"
        "present_conv_2 = Add (past_conv_2, one)\npresent_state_5 = Add (past_state_5, past_state_5)",
    )


def test_states_of_convolutions_and_recurrences_are_pairs():
    model = replaced("batch,4,3", "batch,2,2,2")
    assert name_for_genai(model) == Decoder(5)
    names = {value.name for value in model.graph.inputs}
    assert names == {
        "input_ids",
        "attention_mask",
        *(f"past_key_values.0.{kind}_state" for kind in ("conv", "recurrent")),
    }
    states = {"past_key_values.0.conv_state": np.ones((1, 4, 3), np.float32)}
    states["past_key_values.0.recurrent_state"] = np.ones((1, 2, 2, 2), np.float32)
    results = run(model, input_ids=np.array([[9]]), attention_mask=np.ones((1, 1), np.int64), **states)
    assert (results["present.0.conv_state"] == 2).all() and (results["present.0.recurrent_state"] == 2).all()


@pytest.mark.parametrize("shapes", [((4, 3), (2, 5)), ((2, 3, 2), (2, 3, 2))])
def test_states_of_several_shapes_or_many_axes_are_rows(shapes):
    texts = [",".join(map(str, ("batch", *shape))) for shape in shapes]
    model = model_of([f"float[{text}] past_conv_{layer}" for layer, text in enumerate(texts)],
                     [f"float[{text}] present_conv_{layer}" for layer, text in enumerate(texts)],
                     "present_conv_0 = Neg (past_conv_0)\npresent_conv_1 = Add (past_conv_1, past_conv_1)")  # fmt: skip
    name_for_genai(model)
    rows = np.arange(1, 25, dtype=np.float32).reshape(2, 1, 12)
    states = {f"past_key_values.{layer}.conv_state": rows for layer in (0, 1)}
    states |= {f"past_key_values.{layer}.recurrent_state": np.zeros((2, 1, 1), np.float32) for layer in (0, 1)}
    results = run(model, input_ids=np.array([[9], [8]]), attention_mask=np.ones((2, 1), np.int64), **states)
    np.testing.assert_array_equal(results["present.0.conv_state"], -rows)
    size = int(np.prod(shapes[1]))
    np.testing.assert_array_equal(results["present.1.conv_state"][..., :size], 2 * rows[..., :size])
    assert not results["present.1.conv_state"][..., size:].any()


def test_an_empty_state_takes_the_missing_place():
    model = model_of(["float[batch,4] past_state_1"], ["float[batch,4] present_state_1"],
                     "present_state_1 = Neg (past_state_1)")  # fmt: skip
    name_for_genai(model)
    empty = np.zeros((1, 1, 1), np.float32)
    states = {"past_key_values.0.conv_state": empty, "past_key_values.0.recurrent_state": np.ones((1, 4), np.float32)}
    results = run(model, input_ids=np.array([[9]]), attention_mask=np.ones((1, 1), np.int64), **states)
    np.testing.assert_array_equal(results["present.0.conv_state"], empty)
    assert (results["present.0.recurrent_state"] == -1).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_of([], []), "it keeps nothing from run to run"),
        (model_of(["float[batch,2] past_other_0"], ["float[batch,2] present_other_0"],
                  "present_other_0 = Neg (past_other_0)"), "no value for input past_other_0"),
        (model_of(["float[batch,past,3] past_index_0"], ["float[batch,past,3] present_index_0"],
                  "present_index_0 = Neg (past_index_0)"), "keys of an indexer .*; expected .batch, past, even width"),
        (model_of(["float[batch,2] mask"], []), "no value for input mask"),
        (keeping(("value", 0, 3)), "values without keys"),
        (replaced("batch,4,any", "batch,2,2,2"), "states of fixed shapes"),
    ],
)  # fmt: skip
def test_what_genai_has_no_place_for_is_refused(model, message):
    with pytest.raises(UnsupportedError, match=message):
        name_for_genai(model)
