"""Windows of attention in whole models: sessions whose keys lie in pages, against the interpreter, and sessions that
keep the keys of a window alone, against those that keep all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import InputError
from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.pipeline import LEVELS
from moec.runtime.model import CompiledModel
from moec.targets.tvm.heavy import append
from moec.targets.tvm.heavy.attention_windows import state_windows
from moec.targets.tvm.lowering.held_states import Holding, held_states
from moec.targets.tvm.lowering.lowering import Lowering

from ...frontend.gguf.tiny_models import write_model

TEXT = """<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] input_ids, float[B,2,P,8] past) => (float[B,S,16] logits, float[B,2,R,8] present)
<int64 zero = {0}, int64 one = {1}, int64 size = {SIZE}, int64[1] last = {1}, float shown = {0.0},
 float hidden = {-3.4028235e38}, int64[4] split = {0, -1, 2, 8}, int64[3] flat = {0, 0, 16}, float[50,16] table> {
    rows = Gather (table, input_ids) heads = Reshape (rows, split) k = Transpose <perm = [0, 2, 1, 3]> (heads)
    present = Concat <axis = 2> (past, k)
    before = Shape <start = 2, end = 3> (past) new = Shape <start = 1, end = 2> (input_ids)
    p = Squeeze (before) s = Squeeze (new) t = Add (p, s) columns = Range (zero, t, one) count = Range (zero, s, one)
    place = Add (count, p) row = Unsqueeze (place, last) far = Sub (row, size)
    up = LessOrEqual (columns, row) inside = Greater (columns, far) both = And (up, inside)
    mask = Where (both, shown, hidden) y = Attention (k, present, present, mask)
    joined = Transpose <perm = [0, 2, 1, 3]> (y) logits = Reshape (joined, flat)
}"""
IDS = np.random.default_rng(1).integers(0, 50, (2, 320))
CUTS = (0, 300, 301, 302, 306, 320)
"""A prompt, steps of one token, of a few and of many."""


def model_of(size: int, replaced: Mapping[str, str] = MappingProxyType({})) -> onnx.ModelProto:
    text = TEXT.replace("SIZE", str(size))
    for before, after in replaced.items():
        assert before in text
        text = text.replace(before, after)
    proto = onnx.parser.parse_model(text)
    table = np.random.default_rng(0).standard_normal((50, 16), dtype=np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    del proto.graph.value_info[:]
    return proto


@pytest.mark.nightly
@pytest.mark.parametrize("size", [1, 5, 100, 1000])
def test_sessions_compute_what_the_graph_does(size):
    proto, logits = model_of(size), {}
    feeds = {"input_ids": IDS, "past": np.zeros((2, 2, 0, 8), np.float32)}
    expected = interpreter.run(ir.from_proto(proto), feeds)["logits"]
    for name, passes in (("window", LEVELS["O2"]), ("mask", LEVELS["O2"].replace("raise-masks,", ""))):
        model = moec.compile(proto, passes=passes)
        session = model.session(batch=2)
        steps = [session.run(IDS[:, start:end], last=end - start) for start, end in itertools.pairwise(CUTS)]
        logits[name] = np.concatenate(steps, axis=1)
    np.testing.assert_allclose(logits["window"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(logits["window"], logits["mask"])


LONG = np.random.default_rng(2).integers(0, 50, (2, 1600))
STEPS = (0, 300, 301, 302, 304, 320, 511, 512, 513, *range(1015, 1035), 1500, 1501, 1600)


def run_in_steps(model: CompiledModel, batch: int) -> tuple[np.ndarray, int]:
    """Logits of all tokens, and the bytes of the states afterwards."""
    session = model.session(batch=batch)
    parts = [session.run(LONG[:batch, start:end], last=None) for start, end in itertools.pairwise(STEPS)]
    return np.concatenate(parts, axis=1), session.state_bytes


def with_whole_caches(source: object, **options: str) -> CompiledModel:
    """The model, compiled such that sessions keep all keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(append, "state_windows", lambda *_: {})
        return moec.compile(source, **options)


def windows_of(model: CompiledModel) -> list[int]:
    return [state.window for state in model._executor.held]


@pytest.fixture(scope="module")
def near() -> CompiledModel:
    return moec.compile(model_of(100))


def test_a_session_keeps_the_keys_of_a_window_and_computes_the_same_bits(near):
    whole = with_whole_caches(model_of(100))
    assert windows_of(near) == [100] and windows_of(whole) == [0]
    actual, kept = run_in_steps(near, 2)
    expected, all_kept = run_in_steps(whole, 2)
    np.testing.assert_array_equal(actual, expected)
    assert kept <= 4 * 256 * 2 * 2 * 8 * 4 < all_kept == 7 * 256 * 2 * 2 * 8 * 4


def test_a_session_goes_back_as_far_as_it_keeps_keys(near):
    session = near.session()
    for start in range(0, 1500, 500):
        session.run(LONG[:1, start : start + 500])
    expected = session.run(LONG[:1, 1500:1504], last=None)
    fork = session.fork()
    for length in (1501, 1500):
        session.truncate(length)
        np.testing.assert_array_equal(session.run(LONG[:1, length:1504], last=None), expected[:, length - 1500 :])
    with pytest.raises(InputError, match=r"cannot be truncated to 700 tokens.*expected \d+ tokens or more, or 0"):
        session.truncate(700)
    assert session.length == 1504
    np.testing.assert_array_equal(session.run([7]), fork.run([7]))
    session.truncate(0)
    np.testing.assert_array_equal(session.run(LONG[:1, :20]), near.session().run(LONG[:1, :20]))


def test_plain_runs_take_and_return_whole_states(near):
    past = np.random.default_rng(3).standard_normal((1, 2, 300, 8), np.float32)
    feeds = {"input_ids": LONG[:1, :3], "past": past}
    expected = interpreter.run(ir.from_proto(model_of(100)), feeds)
    for name, array in near.run(feeds).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)


HOLDING = Holding(lambda *_: None, state_windows)
TWO_READERS = """one_back = Sub (row, one) at_most_one = Greater (columns, one_back) alone = And (up, at_most_one)
    nearer = Where (alone, shown, hidden) y0 = Attention (k, present, present, mask)
    y1 = Attention (k, present, present, nearer) y = Add (y0, y1)"""


@pytest.mark.parametrize(
    ("before", "after", "window"),
    [
        ("mask = ", "mask = ", 40),
        ("Attention (k, present, present, mask)", "Attention (k, present, present, both)", 40),
        (
            "joined = Transpose <perm = [0, 2, 1, 3]> (y)",
            "top = ReduceMax (present) raised = Add (y, top) joined = Transpose <perm = [0, 2, 1, 3]> (raised)",
            0,
        ),
        ("both = And (up, inside)", "both = Identity (up)", 0),
        ("float hidden = {-3.4028235e38}", "float hidden = {-10.0}", 0),
        ("Attention (k,", "Attention <is_causal = 1> (k,", 0),
        ("y = Attention (k, present, present, mask)", TWO_READERS, 0),
        ("y = Attention (k, present, present, mask)", TWO_READERS.replace("nearer)", "mask)"), 40),
    ],
    ids=[
        "a window",
        "truth values",
        "another reader",
        "no window",
        "keys not hidden",
        "counted from the first key",
        "two windows",
        "two readers",
    ],
)
def test_states_of_which_all_readers_see_a_window(before, after, window):
    model = ir.from_proto(model_of(40, {before: after}))
    pipeline.run(model, pipeline.parse("O2"), Report())
    states = held_states(model.graph, HOLDING)
    found = state_windows(Lowering(model, {}), model.graph, states)
    assert [state.name for state in states] == ["past"] and [*found.values()] == [window] * (window > 0)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [1, 5, 255, 256, 257, 300, 301, 512, 1000, 1600, 5000])
@pytest.mark.parametrize("batch", [1, 2])
def test_windows_of_many_sizes_compute_the_same_bits(size, batch):
    actual, kept = run_in_steps(moec.compile(model_of(size)), batch)
    expected, all_kept = run_in_steps(with_whole_caches(model_of(size)), batch)
    np.testing.assert_array_equal(actual, expected)
    assert kept <= all_kept


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt-oss", "phi3"])
@pytest.mark.parametrize("passes", ["O2", "O2,cast-states{dtype=int8}", "O2,cast-states{dtype=fp16}"])
def test_models_with_windows_in_some_layers_compute_the_same_bits(name, passes, tmp_path):
    path = write_model(name, tmp_path / "model.gguf")
    model = moec.compile(path, passes=passes)
    assert {5} <= set(windows_of(model)) <= {0, 5}
    vocabulary = model.session().vocabulary
    results = []
    for compiled in (model, with_whole_caches(path, passes=passes)):
        session = compiled.session()
        ids = LONG[:1] % vocabulary
        parts = [session.run(ids[:, start:end], last=None) for start, end in itertools.pairwise(STEPS)]
        results.append((np.concatenate(parts, axis=1), session.state_bytes))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] < results[1][1]
