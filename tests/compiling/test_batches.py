"""Graphs of batches: what is proved to compute each token alone, and what is refused, by the name of its node."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.common.specs import CONVOLVED, JOINED, LAST, POSITIONS, SEQUENCES, tensor_specs
from moec.compiling.batches import batched_model
from moec.compiling.compile_options import CompileOptions
from moec.compiling.compiler import write
from moec.frontend.gguf import import_file
from moec.frontend.onnx.conditions import Conditions
from moec.ir.batches import SINKS, WINDOW, is_batched
from moec.ir.graphs import is_op
from moec.ir.states import states_of
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.runtime.interface import Interface

from ..frontend.gguf.tiny_models import write_model
from ..runtime.tiny_decoder import WINDOW as SIZE
from ..runtime.tiny_decoder import tiny_decoder, tiny_hybrid


def batched(replaced: dict[str, str] | None = None) -> ir.Model:
    return batch_of(ir.from_proto(tiny_decoder(replaced or {})))


def batched_hybrid(replaced: dict[str, str] | None = None) -> ir.Model:
    return batch_of(ir.from_proto(tiny_hybrid(replaced or {})))


def batch_of(model: ir.Model) -> ir.Model:
    pipeline.run(model, pipeline.parse("O2"), Report())
    inputs, outputs = (tensor_specs(values) for values in (model.graph.inputs, model.graph.outputs))
    before = [str(node) for node in model.graph]
    result = batched_model(model, Interface(inputs, outputs, states_of(model)))
    assert [str(node) for node in model.graph] == before
    return result


def test_masks_become_the_causal_order_and_windows_and_positions_an_input():
    graph = batched().graph
    attentions = [node for node in graph if is_op(node, "Attention")]
    assert [node.attributes.get_int(WINDOW, 0) for node in attentions] == [0, SIZE]
    assert all(node.attributes.get_int("is_causal", 0) and node.inputs[3] is None for node in attentions)
    assert [value.name for value in graph.inputs] == ["input_ids", "key0", "value0", "key1", "value1", POSITIONS]
    assert not any(is_op(node, "Range", "LessOrEqual", "Where") for node in graph)


def test_sinks_of_a_file_of_llama_cpp_become_an_operand(tmp_path):
    model = batch_of(import_file(write_model("gpt-oss", tmp_path / "model.gguf"), cache=True))
    attentions = [node for node in model.graph if is_op(node, "Attention")]
    assert [node.attributes.get_int(WINDOW, 0) for node in attentions] == [5, 0]
    assert all(node.inputs[3] is None and node.inputs[SINKS] is not None for node in attentions)


def test_states_that_are_replaced_have_an_entry_for_each_sequence():
    graph = batched_hybrid().graph
    shapes = {value.name: str(value.shape) for value in (*graph.inputs, *graph.outputs)}
    assert {name: shape for name, shape in shapes.items() if SEQUENCES in shape} == {
        "conv": f"[{SEQUENCES},32,3]", "new_conv": f"[{SEQUENCES},32,3]", "state": f"[{SEQUENCES},4,8,8]",
        LAST: f"[{SEQUENCES},3]",
    }  # fmt: skip
    (convolution,) = (node for node in graph if is_op(node, "Conv"))
    places = [node.inputs[1].name for node in graph if is_op(node, "Gather") and node.inputs[1].is_graph_input()]
    assert places == ["input_ids", JOINED, LAST, CONVOLVED]
    assert convolution.inputs[0].producer().inputs[1].name == JOINED


def test_the_model_says_that_it_is_one_of_a_batch():
    assert is_batched(batched())
    assert not is_batched(ir.from_proto(tiny_decoder()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cuda:sm_80+sm_90a"}, "target 'cuda:sm_80.sm_90a' makes several or none; name one"),
        ({"target": "hls:zcu102"}, "target 'hls:zcu102' makes several or none; name one.*, or compile without batches"),
        ({"ranks": 2}, "compile without ranks, or without batches"),
        ({"plan": "plan.json"}, "compile without plan, or without batches"),
        ({"stages": 2}, "compile without stages, or without batches"),
    ],
)
def test_batches_are_for_one_process_on_a_processor(options, message, tmp_path):
    with pytest.raises(UnsupportedError, match=message):
        write(tiny_decoder(), tmp_path / "model.moec", CompileOptions(batches=True, **options))
    assert not any(tmp_path.iterdir())


HEAD = "logits = MatMul (x2, head)"
COMBINES, READS = "it may combine tokens of different sequences", "it reads the state of all tokens"


@pytest.mark.parametrize(
    ("before", "after", "operator", "reason"),
    [
        (HEAD, "m = ReduceMean (x2, last) z = Add (x2, m) logits = MatMul (z, head)", "ReduceMean", COMBINES),
        (HEAD, "z = CumSum (x2, one) logits = MatMul (z, head)", "CumSum", COMBINES),
        (HEAD, "z = Softmax <axis = 1> (x2) logits = MatMul (z, head)", "Softmax", COMBINES),
        ("k = 2, gate_layout", "k = 2, capacity = 3, gate_layout", "MoE", COMBINES),
        ("(places, place)", "(places, count)", "Gather", COMBINES),
        (HEAD, "w = Cast <to = 1> (t) z = Mul (x2, w) logits = MatMul (z, head)", "Mul", READS),
        (HEAD, "m = ReduceMax <keepdims = 0> (new_key0) z = Add (x2, m) logits = MatMul (z, head)", "ReduceMax", READS),
        ("up = LessOrEqual", "up = GreaterOrEqual", "Attention", "its mask is not known to be the causal order"),
        ("far = Sub (row, window)", "far = Mul (row, window)", "Attention", "its mask is not known"),
    ],
)
def test_what_may_combine_sequences_is_refused_by_its_name(before, after, operator, reason):
    with pytest.raises(UnsupportedError) as error:
        batched({before: after})
    assert str(error.value).startswith("no batches of sequences: node ")
    assert f"({operator}): {reason}" in str(error.value)


APART = "it may combine states of different sequences"
SECOND = {
    "float[B,32,3] new_conv,": "float[B,32,3] new_conv, float[B,32,2] new_short,",
    "float[B,32,3] conv,": "float[B,32,3] conv, float[B,32,2] short,",
    "read, new_state": """all = Concat <axis = 2> (short, inputs) begin = Constant <value_ints = [-2]> ()
        new_short = Slice (all, begin, end, channels) brief = Conv <group = 32> (all, two_taps)
        other_keys = Transpose <perm = [0, 2, 1]> (brief) read, new_state""",
    "(keys, keys, x2": "(other_keys, keys, x2",
    "mixed = Conv": "few = Constant <value_ints = [3]> () two_taps = Slice (taps, zeros, few, channels) mixed = Conv",
    "<int64[1] first = {-3},": "<int64[1] first = {-3}, int64[1] zeros = {0},",
}


def test_a_selection_of_keys_is_refused(tmp_path):
    """The keys that an indexer selects depend on their scores."""
    model = import_file(write_model("glm-dsa", tmp_path / "model.gguf"), cache=True)
    with pytest.raises(UnsupportedError, match=r"^no batches of sequences: node 'blk.0.attention' .*its mask is not"):
        batch_of(model)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (
            {
                "state, decay)": "mixed_states, decay)",
                "read,": "turned = Transpose <perm = [1, 0, 2, 3]> (state) mixed_states = Reshape (turned, same) read,",
                "<int64[1] first = {-3},": "<int64[1] first = {-3}, int64[4] same = {-1, 4, 8, 8},",
            },
            APART,
        ),
        ({"Neg (lost)": "CumSum (lost, one)"}, COMBINES),
        ({"x2, state": "seen_by_all, state", "read,": "seen_by_all = CumSum (x2, one) read,"}, COMBINES),
        ({"read,": "most = ReduceMax <keepdims = 0> (seen) read,", "Add (x2, read)": "Add (read, most)"}, APART),
        ({"<group = 32>": "<group = 32, strides = [2]>", "x2, state": "keys, state"}, APART),
        ({"<group = 32>": "<group = 32, pads = [1, 0]>", "x2, state": "keys, state"}, APART),
        ({"new_conv = Slice": "other = Slice", "mixed =": "new_conv = Neg (conv) mixed ="}, None),
        (SECOND, "convolutions keep 2, 3 inputs; expected the same number in all layers"),
    ],
)
def test_what_may_combine_states_is_refused_by_its_name(replaced, message):
    if message is None:
        assert is_batched(batched_hybrid(replaced))
        return
    with pytest.raises(UnsupportedError, match=f"^no batches of sequences: .*{message}"):
        batched_hybrid(replaced)


@pytest.mark.parametrize(
    ("notes", "reason"), [((), "compile it with its cache"), (("PyTorch could not export it",), "PyTorch could not .*")]
)
def test_models_without_states_are_refused_with_the_reason_for_having_none(notes, reason):
    model = ir.from_proto(tiny_decoder({}))
    Conditions(notes=notes).attach(model)
    inputs, outputs = (tensor_specs(values) for values in (model.graph.inputs, model.graph.outputs))
    with pytest.raises(UnsupportedError, match=f"^no batches of sequences: the model keeps no states; {reason}$"):
        batched_model(model, Interface(inputs, outputs, ()))
