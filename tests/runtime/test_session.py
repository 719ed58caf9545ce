"""Sessions: consecutive runs compute the same as one run of all tokens."""

from __future__ import annotations

import gc
import tempfile
import threading

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import InputError
from moec.runtime.model import CompiledModel
from moec.runtime.sampling import Sampling
from moec.runtime.token_selection import TokenSelection

HEADER = '<ir_version: 10, opset_import: ["" : 24]>\ngraph '
TABLE = "<float[5,4] table = {" + ",".join(str(round(np.sin(3 * n), 3)) for n in range(20)) + "}, {}> {{ "
BODY = "e = Gather (table, ids) x = Unsqueeze (e, one) "


def compiled(inputs: str, outputs: str, body: str, constants: str = "int64[1] one = {1}") -> CompiledModel:
    text = f"{HEADER}({inputs}) => ({outputs}) {TABLE.replace('{}', constants).replace('{{', '{')}{body} }}"
    return moec.compile(onnx.parser.parse_model(text))


@pytest.fixture(scope="module")
def attending() -> CompiledModel:
    """Make causal attention over keys and values that grow, under a mask."""
    cache = "float[B,1,P,4] k, float[B,1,P,4] v"
    return compiled(
        f"int64[B,S] ids, int64[B,M] attention_mask, {cache}",
        "float[B,S,4] logits, float[B,1,R,4] pk, float[B,1,R,4] pv",
        BODY + "seen = Cast <to = 9> (attention_mask) mask = Unsqueeze (seen, places) "
        "y, pk, pv = Attention <is_causal = 1> (x, x, x, mask, k, v) logits = Squeeze (y, one)",
        "int64[1] one = {1}, int64[2] places = {1, 2}",
    )


@pytest.fixture(scope="module")
def recurrent() -> CompiledModel:
    """Make the sum of everything before, as a state that is replaced."""
    return compiled(
        "int64[B,S] ids, float[B,1,4] kept",
        "float[B,S,4] logits, float[B,1,4] next",
        "e = Gather (table, ids) sum = ReduceSum <keepdims = 1> (e, one) next = Add (kept, sum) "
        "so_far = CumSum (e, axis) logits = Add (so_far, kept)",
        "int64[1] one = {1}, int64 axis = {1}",
    )


@pytest.fixture(scope="module")
def stateless() -> CompiledModel:
    return compiled(
        "int64[B,S] ids, int64[B,S] position_ids",
        "float[B,S,4] logits",
        "e = Gather (table, ids) p = Cast <to = 1> (position_ids) q = Unsqueeze (p, two) "
        "so_far = CumSum (e, axis) logits = Add (so_far, q)",
        "int64[1] two = {2}, int64 axis = {1}",
    )


@pytest.fixture(params=["attending", "recurrent", "stateless"])
def model(request) -> CompiledModel:
    return request.getfixturevalue(request.param)


IDS = np.array([[1, 2, 3, 4, 0, 1], [4, 4, 0, 1, 2, 2]])


def test_runs_go_on_from_those_before(model):
    whole = model.session(batch=2).run(IDS, last=None)
    assert whole.shape == (2, 6, 4) and whole.dtype == np.float32
    session = model.session(batch=2)
    parts = [session.run(IDS[:, start:end], last=None) for start, end in ((0, 3), (3, 4), (4, 6))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-6)
    assert session.length == 6
    assert repr(session) == "<Session with 6 tokens, 2 sequences side by side>"
    assert repr(model.session(max_tokens=9)) == "<Session with 0 tokens of at most 9>"
    alone = model.session()
    alone.run(IDS[0, :5])
    np.testing.assert_allclose(alone.run(IDS[0, 5:])[0], whole[0, 5:], rtol=1e-5, atol=1e-6)


def test_a_session_keeps_the_files_of_its_model(attending, tmp_path, monkeypatch):
    """A program reads some of its files at its first run. Those of a zip lie in a folder that goes with the model."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    attending.save(tmp_path / "art.zip")
    session = moec.load(tmp_path / "art.zip").session()
    gc.collect()
    assert len([*tmp_path.glob("moec-scratch-*")]) == 1
    np.testing.assert_array_equal(session.run([1, 2]), attending.session().run([1, 2]))
    del session
    gc.collect()
    assert not [*tmp_path.glob("moec-scratch-*")]


def test_a_processor_selects_by_logits_which_are_arrays_all_the_same(model):
    logits = model.session().run([1, 2], device_outputs=True)
    np.testing.assert_array_equal(logits, model.session().run([1, 2]))
    selection = TokenSelection(Sampling(), [[1, 2]], [0])
    assert model.session().select([1, 2], selection, [0]).tolist() == [int(logits.argmax())]


def test_bytes_of_states_are_those_of_pages_in_use(attending, recurrent, stateless):
    session = attending.session(max_tokens=600)
    assert session.state_bytes == 0
    session.run(np.zeros((1, 256), np.int64))
    assert session.state_bytes == 2 * 256 * 4 * 4
    session.run([0])
    assert session.state_bytes == session.fork().state_bytes == 4 * 256 * 4 * 4
    assert (recurrent.session().state_bytes, stateless.session().state_bytes) == (16, 0)


def test_forks_go_their_own_ways(model):
    session = model.session()
    session.run([1, 2])
    other = session.fork()
    first, second = session.run([3]), other.run([4])
    assert session.length == other.length == 3
    np.testing.assert_array_equal(model.session().run([1, 2, 3]), first)
    np.testing.assert_array_equal(model.session().run([1, 2, 4]), second)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", ["attending", "stateless"])
def test_truncated_tokens_are_forgotten(name, request):
    model = request.getfixturevalue(name)
    session = model.session()
    session.run([1, 2, 3])
    session.truncate(1)
    assert session.length == 1
    np.testing.assert_allclose(session.run([4])[0, 0], model.session().run([1, 4])[0, 0], rtol=1e-5)
    with pytest.raises(InputError, match="truncate to 3 of type int tokens; expected a whole number from 0 to 2"):
        session.truncate(3)


def test_a_state_that_could_become_either_of_two_is_given_to_each_run():
    """The program can hold the other state; the session cannot tell which output it becomes, so each run takes it as an
    input."""
    model = compiled(
        "int64[B,S] ids, float[B,P,4] past, float[B,Q,4] other",
        "float[B,S,4] logits, float[B,R,4] present, float[B,T,4] either, float[B,T,4] or",
        "x = Gather (table, ids) present = Concat <axis = 1> (past, x) turned = Neg (x) "
        "either = Concat <axis = 1> (other, x) or = Concat <axis = 1> (other, turned) "
        "a = ReduceSum <keepdims = 1> (present, one) b = ReduceSum <keepdims = 1> (either, one) "
        "c = ReduceSum <keepdims = 1> (or, one) d = Add (a, b) e = Add (d, c) logits = Add (x, e)",
    )
    assert {state.input for state in model._executor.held} > {state.input for state in model.states} == {"past"}
    ids, other = np.array([[1, 2, 3]]), np.ones((1, 3, 4), np.float32)
    whole, parts = model.session(), model.session()
    parts.run(ids[:, :2], other=other)
    np.testing.assert_allclose(
        parts.run(ids[:, 2:], other=other)[:, -1], whole.run(ids, other=other)[:, -1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["attending", "recurrent"])
def test_a_run_without_states_begins_a_text(name, request):
    model = request.getfixturevalue(name)
    masks = {"attention_mask": np.ones(IDS.shape, np.int64)} if name == "attending" else {}
    outputs = model.run({"ids": IDS, **masks})
    np.testing.assert_array_equal(outputs["logits"], model.session(batch=2).run(IDS, last=None))


def test_some_states_are_not_enough(attending):
    with pytest.raises(InputError, match="input 'v' is missing"):
        attending.run(
            {"ids": IDS, "attention_mask": np.ones(IDS.shape, np.int64), "k": np.zeros((2, 1, 0, 4), np.float32)}
        )


def test_a_state_that_is_replaced_cannot_be_truncated(recurrent):
    session = recurrent.session()
    session.run([1, 2])
    session.truncate(2)
    with pytest.raises(InputError, match="cannot be truncated: state kept <- next, replaced by each run; fork it"):
        session.truncate(1)
    assert session.length == 2


def test_padding_on_the_left_does_not_count(attending):
    session = attending.session(batch=2)
    mask = np.ones((2, 3), np.int64)
    mask[0, :2] = 0
    first = session.run(IDS[:, :3], last=None, attention_mask=mask)
    then = session.run(IDS[:, 3:], last=None)
    whole = attending.session().run(IDS[:1, 2:], last=None)
    np.testing.assert_allclose(np.concatenate([first[0, 2:], then[0]]), whole[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"'attention_mask' is int64\[2, 2\]; expected numbers \[2, 3\]"):
        session.run(IDS[:, :3], attention_mask=mask[:, :2])


@pytest.fixture(scope="module")
def counting() -> CompiledModel:
    """Make grouped queries over a cache, whose lengths are counts of a mask's ones."""
    text = """<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>
        graph (int64[B,S] ids, int64[B,M] attention_mask, float[B,1,P,4] k, float[B,1,P,4] v)
        => (float[B,S,4] logits, float[B,1,R,4] pk, float[B,1,R,4] pv) <TABLE, int64[1] one = {1}, int64 last = {-1}> {
        x = Gather (table, ids) ones = ReduceSum <keepdims = 0> (attention_mask, one) before = Add (ones, last)
        lengths = Cast <to = 6> (before) size = Shape (attention_mask) total = Gather (size, one)
        all = Cast <to = 6> (total) logits, pk, pv =
            com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1> (x, x, x, k, v, lengths, all) }"""
    table = TABLE[1 : TABLE.index(", {}")]
    return moec.compile(onnx.parser.parse_model(text.replace("TABLE", table)))


def test_padding_where_ones_are_counted(counting):
    session, mask = counting.session(batch=2), np.ones((2, 3), np.int64)
    mask[0, 0] = 0
    refusal = "'attention_mask' is 0 where the model cannot leave a token out: it counts the ones to tell how long"
    with pytest.raises(InputError, match=refusal):
        session.run(IDS[:, :3], attention_mask=mask)
    first = session.run(IDS[:, :3], last=None, attention_mask=mask[:, ::-1])
    with pytest.raises(InputError, match=refusal):
        session.run(IDS[:, 3:5], attention_mask=np.array([[1, 0], [1, 1]]))
    assert [state.at_places for state in counting._executor.held] == [True, True]
    fork = session.fork()
    then = session.run(IDS[:, 3:], last=None)
    np.testing.assert_array_equal(fork.run(IDS[:, 3:], last=None), then)
    fork.truncate(3)
    np.testing.assert_array_equal(fork.run(IDS[:, 3:], last=None), then)
    for row, ids in enumerate([np.delete(IDS[0], 2), IDS[1]]):
        actual = np.concatenate([first[row, : 3 - (row == 0)], then[row]])
        np.testing.assert_allclose(actual, counting.session().run(ids, last=None)[0], rtol=1e-5, atol=1e-6)


def test_positions_count_what_the_mask_leaves_in(stateless, attending):
    roles = stateless.session()._roles
    mask = np.array([[False, True, True, True], [True, True, True, True]])
    np.testing.assert_array_equal(roles.values(mask, 2)["position_ids"], [[1, 2], [2, 3]])
    assert attending.session()._roles.values(mask, 2)["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize(("dtype", "number"), [("float16", 10), ("bfloat16", 16)])
def test_caches_that_the_model_has_in_16_bits(dtype, number):
    model = compiled(
        f"int64[B,S] ids, {dtype}[B,P,4] past",
        f"float[B,S,4] logits, {dtype}[B,R,4] present",
        f"e = Gather (table, ids) narrow = Cast <to = {number}> (e) present = Concat <axis = 1> (past, narrow) "
        "wide = Cast <to = 1> (present) total = ReduceSum <keepdims = 1> (wide, one) logits = Add (e, total)",
    )
    assert [state.dtype for state in model._executor.held] == [dtype]
    whole, session = model.session(batch=2).run(IDS, last=None), model.session(batch=2)
    session.run(IDS[:, :4])
    np.testing.assert_array_equal(session.fork().run(IDS[:, 4:])[:, -1], whole[:, -1])


def test_caches_with_room():
    model = compiled(
        "int64[B,S] ids, int64[B] write_indices, float[B,C,4] cache",
        "float[B,S,4] logits, float[B,C,4] next",
        "e = Gather (table, ids) next = TensorScatter <axis = 1> (cache, e, write_indices) "
        "s = ReduceSum <keepdims = 1> (next, one) logits = Add (e, s)",
    )
    with pytest.raises(InputError, match="has room for as many tokens as it is told; give max_tokens"):
        model.session()
    assert [state.has_room for state in model._executor.held] == [True]
    session = model.session(max_tokens=3)
    session.run([1, 2])
    fork, expected = session.fork(), model.session(4).run([1, 2, 3], last=None)
    np.testing.assert_allclose(session.run([3]), expected[:, 2:], rtol=1e-5)
    np.testing.assert_allclose(fork.run([3]), expected[:, 2:], rtol=1e-5)
    fork.truncate(1)
    np.testing.assert_allclose(fork.run([2, 3], last=None), expected[:, 1:], rtol=1e-5)
    with pytest.raises(InputError, match=r"hold 4 tokens \(3 and 1 new ones\), and its max_tokens is 3"):
        session.run([1])


def test_caches_whose_length_is_told():
    """Attention over a cache with room: nonpad_kv_seqlen says how much of it is used."""
    model = compiled(
        "int64[B,1] ids, int64[B] write_indices, int64[B] nonpad_kv_seqlen, float[B,1,5,4] cache",
        "float[B,1,4] logits, float[B,1,5,4] next",
        BODY + "next = TensorScatter (cache, x, write_indices) "
        'y = Attention (x, next, next, "", "", "", nonpad_kv_seqlen) logits = Squeeze (y, one)',
    )
    session = model.session()
    assert (session.max_tokens, session.fixed_length) == (5, 1)
    alone = session.fork().run([3])
    np.testing.assert_allclose(alone[0, 0], model.session().run([3])[0, 0], rtol=1e-6)  # one key: its own value
    session.run([1])
    session.run([2])
    session.truncate(1)
    other = model.session()
    other.run([1])
    np.testing.assert_array_equal(session.run([3]), other.run([3]))
    assert not np.array_equal(alone, other.run([3]))


def test_what_cannot_be_run_leaves_the_session_as_it_was(model):
    session = model.session(max_tokens=4)
    session.run([1, 2])
    for ids, message in (
        ([1, 2, 3], r"would hold 5 tokens \(2 and 3 new ones\), and its max_tokens is 4"),
        ([5], "token id 5 is outside of the vocabulary; expected 0 to 4"),
        ([-1], "token id -1 is outside"),
        ([], r"token ids are float64\[1, 0\]"),
        ([1.5], r"token ids are float64\[1, 1\]; expected integers \[1, 1 or more\]"),
        ([[1], [2]], r"token ids are int64\[2, 1\]"),
        ([[1], [2, 3]], "token ids are of type list"),
    ):
        with pytest.raises(InputError, match=message):
            session.run(ids)
    with pytest.raises(InputError, match="unknown input 'other'"):
        session.run([1], other=1)
    assert session.length == 2
    np.testing.assert_array_equal(session.run([3]), model.session().run([1, 2, 3]))


def test_inputs_that_nothing_tells_are_asked_for():
    model = compiled(
        "int64[B,S] ids, float scale", "float[B,S,4] logits", "e = Gather (table, ids) logits = Mul (e, scale)"
    )
    session = model.session()
    with pytest.raises(InputError, match=r"give them by name: scale float32\[\]"):
        session.run([1])
    twice = session.run([1], scale=np.array(2, np.float32))
    np.testing.assert_allclose(twice, 2 * model.session().run([1], scale=np.array(1, np.float32)))


def test_other_models_have_no_sessions():
    with pytest.raises(InputError, match="has no inputs that could be token ids"):
        compiled("float[B,S] x", "float[B,S] y", "y = Neg (x)").session()
    with pytest.raises(InputError, match="has no outputs that could be logits"):
        compiled("int64[B,S] ids", "int64[B,S] y", "e = Gather (table, ids) y = Neg (ids)").session()


def test_one_thread_at_a_time(attending):
    session, refused = attending.session(), []

    def intrude() -> None:
        for use in (lambda: session.run([1]), session.fork, lambda: session.truncate(0)):
            try:
                use()
            except InputError as error:
                refused.append(str(error))

    with session._used():
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert len(refused) == 3 and all("used by another thread" in message for message in refused)
    session.run([1])


@pytest.mark.parametrize("options", [{"batch": 0}, {"max_tokens": 0}, {"batch": True}, {"max_tokens": 1.5}])
def test_counts_are_whole_numbers(attending, options):
    with pytest.raises(InputError, match=f"{next(iter(options))} is .*; expected a whole number from 1 up"):
        attending.session(**options)
