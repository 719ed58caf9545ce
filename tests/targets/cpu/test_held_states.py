"""States that grow in place: what a run with pages computes is what the same graph computes with everything copied."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import ArtifactError, InputError, MoecError
from moec.common.specs import HeldState, TensorSpec
from moec.ir.interpreter import run
from moec.ir.products import round_rows
from moec.passes import pipeline
from moec.runtime.device import Host
from moec.runtime.held import PAGE, HeldStates
from moec.runtime.state_memory import StateMemory

from ...runtime.forged_manifests import manifest_of, rewrite_program

HEAD = '<ir_version: 10, opset_import: ["" : 24]>\nagraph '
PASTS = "float[b,2,p,16] pk, float[b,2,p,16] pv"
NEW = "float[b,4,s,16] q, float[b,2,s,16] k, float[b,2,s,16] v"
RESULTS = "float[b,4,s,16] y, float[b,2,n,16] nk, float[b,2,n,16] nv"
JOINED = "nk = Concat<axis = 2>(pk, k)\n nv = Concat<axis = -2>(pv, v)\n "
BODIES = {
    "attention": 'y, nk, nv = Attention<is_causal = 1>(q, k, v, "", pk, pv)',
    "masked": f"{JOINED} y = Attention(q, nk, nv, mask)",
    "lengths": f'{JOINED} y = Attention<is_causal = 1>(q, nk, nv, "", "", "", used)',
    "another reader": f"{JOINED} twice = Add(nv, nv)\n y = Attention(q, nk, twice)",
}


def model(body: str, inputs: str = f"{NEW}, {PASTS}", results: str = RESULTS) -> onnx.ModelProto:
    inputs = f"{inputs}, float[b,1,s,n] mask" if "mask" in body else inputs
    inputs = f"{inputs}, int64[b] used" if "used" in body else inputs
    return onnx.parser.parse_model(f"{HEAD} ({inputs}) => ({results}) {{\n {body}\n}}")


def feeds(names: list[str], batch: int, new: int, past: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(new + 7 * past)
    shapes = {
        "q": (batch, 4, new, 16), "k": (batch, 2, new, 16), "v": (batch, 2, new, 16), "pk": (batch, 2, past, 16),
        "pv": (batch, 2, past, 16), "mask": (batch, 1, new, past + new),
    }  # fmt: skip
    used = np.maximum(past + new - np.arange(batch), new)  # rows of different lengths
    return {name: used if name == "used" else random.standard_normal(shapes[name], dtype=np.float32) for name in names}


def cached(compiled: Any) -> Any:
    return compiled._executor.held


def run_in_place(compiled: Any, inputs: Any, memory: StateMemory) -> Any:
    return compiled._executor.run_in_place(inputs, memory)


def held(compiled: moec.CompiledModel) -> list[str]:
    return [state.input for state in cached(compiled)]


def memory_of(compiled: moec.CompiledModel, values: dict[str, np.ndarray], room: int) -> StateMemory:
    """Memory that holds the pasts."""
    memory = StateMemory(cached(compiled), {name: values[name].shape for name in held(compiled)}, 0)
    memory._pages = {name: pages_of(values[name], room) for name in held(compiled)}
    memory.lengths = {name: values[name].shape[2] for name in held(compiled)}
    return memory


def pages_of(state: np.ndarray, room: int) -> np.ndarray:
    """The state [b, heads, p, size] in pages with room for so many more; NaN lies where nothing does."""
    length = state.shape[2]
    pages = np.full((-(-(length + room) // PAGE), *state.shape[:2], PAGE, state.shape[3]), np.nan, state.dtype)
    for number in range(length):
        pages[number // PAGE, :, :, number % PAGE] = state[:, :, number]
    return pages


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The artifact of an attention with its cache."""
    path = tmp_path_factory.mktemp("attending") / "art"
    moec.compile(model(BODIES["attention"]), output=path)
    return path


@pytest.mark.parametrize("body", BODIES)
def test_what_is_held_is_what_would_be_copied(body):
    graph = model(BODIES[body])
    compiled = moec.compile(graph)
    assert held(compiled) == ["pk", "pv"]
    for batch, new, past in (
        (1, 1, 0),
        (1, 1, 5),
        (2, 3, 300),
        (1, 40, 77),
        (0, 1, 4),
        (2, 0, 3),
        (1, 1, 2 * PAGE - 1),
    ):
        values = feeds([spec.name for spec in compiled.inputs], batch, new, past)
        actual, expected = compiled.run(values), run(moec.import_model(graph), values)
        for name in ("y", "nk", "nv"):
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        memory = memory_of(compiled, values, new)
        others = {name: array for name, array in values.items() if name not in held(compiled)}
        in_place = run_in_place(compiled, others, memory)
        assert list(in_place) == ["y"] and set(memory.lengths.values()) == {past + new}
        np.testing.assert_array_equal(in_place["y"], actual["y"])
        for name, result in (("pk", "nk"), ("pv", "nv")):
            np.testing.assert_array_equal(memory._pages[name], pages_of(actual[result], 0))


@pytest.mark.parametrize("size", [24, pytest.param(64, marks=pytest.mark.nightly)])
def test_rows_in_int8_are_what_the_graph_rounds(size):
    """Both forms of attention, over several pages, a page that is not whole, and rows that are no whole vectors,
    or, in nightly, are."""
    passes = "O2,cast-states{dtype=int8}"
    parts = [text.replace("16]", f"{size}]") for text in (f"{NEW}, {PASTS}", RESULTS)]
    graph = model(BODIES["attention"], *parts)
    compiled = moec.compile(graph, passes=passes)
    assert [state.dtype for state in cached(compiled)] == ["int8", "int8"]
    rounding = moec.import_model(graph)
    pipeline.run(rounding, pipeline.parse(passes))
    random = np.random.default_rng(0)
    for batch, new, past in ((1, 1, 0), (2, 3, 300), (1, 40, 77), (0, 1, 4), (2, 0, 3), (1, 1, 2 * PAGE - 1)):
        lengths = {"q": new, "k": new, "v": new, "pk": past, "pv": past}
        values = {
            name: random.standard_normal((batch, 4 if name == "q" else 2, length, size), dtype=np.float32)
            for name, length in lengths.items()
        }
        actual, expected = compiled.run(values), run(rounding, values)
        for name in ("nk", "nv"):
            np.testing.assert_array_equal(actual[name], expected[name])
        np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-4, atol=2e-5)
        memory = StateMemory(cached(compiled), {name: (batch, 2, 0, size) for name in ("pk", "pv")}, past + new)
        if past:
            queries = np.zeros((batch, 4, past, size), np.float32)
            run_in_place(compiled, {"q": queries, "k": values["pk"], "v": values["pv"]}, memory)
        in_place = run_in_place(compiled, {name: values[name] for name in "qkv"}, memory)
        np.testing.assert_array_equal(in_place["y"], actual["y"])


def test_a_row_in_int8_that_is_not_finite_becomes_nan():
    text = "(float[b,s,5] x, float[b,p,5] past) => (float[b,n,5] present, float[b,n,5] y)"
    graph = f"{HEAD} {text} {{\n present = Concat<axis = 1>(past, x)\n y = Neg(present)\n}}"
    compiled = moec.compile(onnx.parser.parse_model(graph), passes="O2,cast-states{dtype=int8}")
    rows = np.array([[1, -np.inf, 0, 2, 3], [np.nan, 0, 0, 0, 0], [0, 0, 0, 0, 0], [127, -3.4, 0.4, 126.6, 0]], "f")
    actual = compiled.run({"x": rows[None, 2:], "past": rows[None, :2]})
    expected = np.array([[np.nan] * 5, [np.nan] * 5, [0] * 5, [127, -3, 0, 127, 0]], "f")
    np.testing.assert_array_equal(actual["present"][0], expected)
    np.testing.assert_array_equal(actual["y"][0], -expected)


def test_pages_without_room_are_refused_before_anything_is_written(attending, monkeypatch):
    compiled = moec.load(attending)
    values = feeds([spec.name for spec in compiled.inputs], 1, 2, PAGE - 1)
    memory, untouched = memory_of(compiled, values, 0), memory_of(compiled, values, 0)
    monkeypatch.setattr(memory, "_pages_for", lambda name, _: memory._pages[name])
    with pytest.raises(InputError, match="a state outgrows its memory"):
        run_in_place(compiled, {name: values[name] for name in "qkv"}, memory)
    for name in held(compiled):
        np.testing.assert_array_equal(memory._pages[name], untouched._pages[name])
    assert memory.lengths == untouched.lengths


def test_memory_grows_where_its_end_is_not_known(attending):
    compiled = moec.load(attending)
    values = feeds([spec.name for spec in compiled.inputs], 1, 3 * PAGE, 0)
    memory = StateMemory(cached(compiled), {name: values[name].shape for name in held(compiled)}, None)
    memory._pages = {name: pages[:1] for name, pages in memory._pages.items()}
    whole = compiled.run(values)["y"]
    for start in range(0, 3 * PAGE, 100):
        part = {name: values[name][:, :, start : start + 100] for name in "qkv"}
        copy = memory.copy()
        actual = run_in_place(compiled, {name: np.ascontiguousarray(one) for name, one in part.items()}, memory)["y"]
        np.testing.assert_allclose(actual, whole[:, :, start : start + 100], rtol=1e-5, atol=1e-5)
        assert set(copy.lengths.values()) == {start}
    memory.truncate(5)
    again = run_in_place(compiled, {name: values[name][:, :, 5:6].copy() for name in "qkv"}, memory)["y"]
    np.testing.assert_allclose(again, whole[:, :, 5:6], rtol=1e-5, atol=1e-5)


def test_pages_are_handed_over_once_for_as_long_as_they_are_enough():
    states = [HeldState(name, f"n{name}", 2, "float32", "s") for name in ("pk", "pv")]
    memory = StateMemory(states, dict.fromkeys(("pk", "pv"), (1, 2, 0, 16)), 3 * PAGE)

    def pages(growth: int) -> dict[str, Any]:
        result = memory.pages({"pk": growth, "pv": growth})
        with memory.growing({"pk": growth, "pv": growth}):
            pass
        return result

    one = pages(PAGE - 1)
    assert pages(1) is one and [tuple(actual.shape) for actual in one.values()] == [(1, 1, 2, PAGE, 16)] * 2
    two = pages(1)
    assert pages(PAGE - 1) is two and two["pk"].data_ptr() == one["pk"].data_ptr() and two["pk"].shape[0] == 2
    assert memory.copy().pages({"pk": 0, "pv": 0})["pk"].data_ptr() != two["pk"].data_ptr()
    memory.truncate(1)
    assert pages(1)["pv"].shape[0] == 1


def test_one_of_the_states_that_are_alike_tells_all_sizes():
    shapes = {"x": (1, "s"), "pk": (1, "p"), "pv": (1, "p"), "other": (1, "q"), "faster": (1, "p")}
    inputs = [TensorSpec(name, "float32", shape) for name, shape in shapes.items()]
    growths = {"pk": "s", "pv": "s", "other": "s", "faster": "2*s"}
    states = [HeldState(name, f"n{name}", 1, "float32", growth) for name, growth in growths.items()]
    outputs = [TensorSpec(state.output, "float32", (1, "n")) for state in states]
    actual = HeldStates(states, inputs, outputs)
    assert [spec.name for spec in actual.size_inputs] == ["x", "pk", "other", "faster"]
    arrays = [np.zeros((1, size), np.float32) for size in (3, 5, 7, 5)]
    assert actual.growths(arrays) == {"pk": 3, "pv": 3, "other": 3, "faster": 6}
    pages = dict.fromkeys(growths, "pages")
    x, *others, lengths = actual.in_place(arrays, pages, {})
    assert x.shape == (1, 3) and others == ["pages"] * 4 and list(lengths) == [5, 7]
    told = HeldStates(states, inputs, outputs, lengths_in_memory=True).in_place(arrays, pages, {})
    assert [array.tolist() for array in told[-2:]] == [[5], [7]] and list(told[-3]) == [5, 7]


def test_memory_that_cannot_grow_stays_what_it_was(attending, monkeypatch):
    """There is memory for one state's pages and none for the other's; then there is for both."""
    compiled = moec.load(attending)
    values = feeds([spec.name for spec in compiled.inputs], 1, PAGE + 2, 0)
    whole = compiled.run(values)["y"]

    def part(start, end):
        return {name: np.ascontiguousarray(values[name][:, :, start:end]) for name in "qkv"}

    memory = StateMemory(cached(compiled), {name: (1, 2, 0, 16) for name in held(compiled)}, PAGE)
    run_in_place(compiled, part(0, PAGE - 1), memory)
    new, calls = memory._device.new, []

    def new_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return new(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(memory._device, "new", new_once)
        with pytest.raises(MoecError, match="there is no memory for 512 tokens of state"):
            run_in_place(compiled, part(PAGE - 1, PAGE + 2), memory)
    assert set(memory.lengths.values()) == {PAGE - 1}
    for start, end in ((PAGE - 1, PAGE), (PAGE, PAGE + 2)):
        actual = run_in_place(compiled, part(start, end), memory)["y"]
        np.testing.assert_allclose(actual, whole[:, :, start:end], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": "absent"}, "holds a state from 'absent' to 'nk', which it has not"),
        ({"input": "pv"}, "holds the state 'pv' twice"),
        ({"growth": "x"}, "grows by 'x', which no input says"),
        ({"dtype": "int8", "axis": 3}, "'pk' cannot be stored as it says"),
        ({"store": "page_state"}, "'pk' cannot be stored as it says"),
        ({"at_places": True, "window": 5}, "'pk' is written at places and read in a window"),
    ],
)
def test_forged_states_are_refused(attending, tmp_path, changes, message):
    shutil.copytree(attending, tmp_path / "art")
    first, second = manifest_of(tmp_path / "art").programs[0].held
    assert [first.input, second.input] == ["pk", "pv"]
    rewrite_program(tmp_path / "art", held=[dataclasses.replace(first, **changes), second])
    with pytest.raises(ArtifactError, match=message):
        moec.load(tmp_path / "art")


def test_more_tokens_than_any_machine_has_memory_for(attending):
    compiled = moec.load(attending)
    with pytest.raises(MoecError, match=r"no memory for \d+ tokens of state 'pk'.*max_tokens"):
        StateMemory(cached(compiled), {name: (1, 2, 0, 16) for name in held(compiled)}, 1 << 58)


@pytest.mark.parametrize(
    ("body", "pasts"),
    [
        ("nk = Concat<axis = 2>(pk, k, k)\n nv = Concat<axis = 2>(pv, v, v)\n y = Attention(q, nk, nv)", PASTS),
        (f"{JOINED} y = Attention(q, nk, nv)", PASTS.replace("p,", "5,")),
    ],
    ids=["by two parts", "from one size"],
)
def test_what_does_not_grow_by_one_part_or_has_one_size_is_copied(body, pasts):
    graph = model(body, f"{NEW}, {pasts}")
    compiled = moec.compile(graph)
    assert held(compiled) == []
    values = feeds([spec.name for spec in compiled.inputs], 1, 2, 5)
    np.testing.assert_allclose(
        compiled.run(values)["y"], run(moec.import_model(graph), values)["y"], rtol=1e-5, atol=1e-5
    )


def test_what_nothing_reads_is_copied():
    graph = model("one = Concat<axis = 2>(pk, k)", f"{NEW}, {PASTS}", "float[b,2,n,16] one")
    compiled = moec.compile(graph)
    assert held(compiled) == []
    values = feeds([spec.name for spec in compiled.inputs], 2, 3, 4)
    np.testing.assert_array_equal(compiled.run(values)["one"], np.concatenate([values["pk"], values["k"]], 2))
    rounding = moec.compile(graph, passes="O2,cast-states{dtype=int8}")
    assert held(rounding) == []
    expected = np.concatenate([round_rows(values["pk"]), round_rows(values["k"])], 2)
    np.testing.assert_array_equal(rounding.run(values)["one"], expected)


def test_a_past_that_is_continued_twice_is_held_for_one_of_them():
    results = "float[b,2,n,16] one, float[b,2,n,16] two, float[b,2,n,16] sum"
    body = "one = Concat<axis = 2>(pk, k)\n two = Concat<axis = 2>(pk, v)\n sum = Add(one, two)"
    graph = model(body, f"{NEW}, {PASTS}", results)
    compiled = moec.compile(graph)
    assert held(compiled) == ["pk"]
    values = feeds([spec.name for spec in compiled.inputs], 2, 3, 4)
    actual = compiled.run(values)
    np.testing.assert_array_equal(actual["one"], np.concatenate([values["pk"], values["k"]], 2))
    np.testing.assert_array_equal(actual["two"], np.concatenate([values["pk"], values["v"]], 2))


def test_any_input_may_be_the_one_that_grows():
    body = "nk = Concat<axis = 2>(k, pk)\n nv = Concat<axis = 2>(v, pv)\n y = Attention(q, nk, nv)"
    compiled = moec.compile(model(body))
    assert held(compiled) == ["k", "v"]
    values = feeds([spec.name for spec in compiled.inputs], 2, 3, 4)
    actual, expected = compiled.run(values), run(moec.import_model(model(body)), values)
    for name in ("y", "nk", "nv"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5)


ROOM = """(float[b,4,s,16] q, float[b,2,s,16] k, float[b,2,s,16] v, int64[b] at, float[b,2,c,16] pk, float[b,2,c,16] pv,
    int64[b] used) => (float[b,4,s,16] y, float[b,2,c,16] nk, float[b,2,c,16] nv)"""


def test_caches_with_room_are_written_where_they_lie():
    """Rows at places of their own, some of them outside; no entry outside is touched."""
    body = "nk = TensorScatter(pk, k, at)\n nv = TensorScatter(pv, v, at)\n "
    body += 'y = Attention<is_causal = 1>(q, nk, nv, "", "", "", used)'
    graph = onnx.parser.parse_model(f"{HEAD} {ROOM} {{\n {body}\n}}")
    compiled = moec.compile(graph)
    assert held(compiled) == ["pk", "pv"] and all(state.has_room for state in cached(compiled))
    random = np.random.default_rng(0)
    for new, room, at in ((1, 300, (7, 299, 0)), (3, 300, (254, -1, 298)), (40, 70, (0, 30, 11)), (2, 5, (-9, 3, 99))):
        values = {name: random.standard_normal((3, 2, new, 16), dtype=np.float32) for name in "kv"}
        values |= {name: random.standard_normal((3, 2, room, 16), dtype=np.float32) for name in ("pk", "pv")}
        values |= {"q": random.standard_normal((3, 4, new, 16), dtype=np.float32), "at": np.array(at)}
        values["used"] = np.clip(values["at"] + new, new, room)
        actual, memory = compiled.run(values), memory_of(compiled, values, 0)
        for name, past, added in (("nk", "pk", "k"), ("nv", "pv", "v")):
            expected = values[past].copy()
            for row, number in np.ndindex(3, new):
                if 0 <= at[row] + number < room:
                    expected[row, :, at[row] + number] = values[added][row, :, number]
            np.testing.assert_array_equal(actual[name], expected)
        in_place = run_in_place(compiled, {name: values[name] for name in ("q", "k", "v", "at", "used")}, memory)
        np.testing.assert_array_equal(in_place["y"], actual["y"])
        for name, result in (("pk", "nk"), ("pv", "nv")):
            np.testing.assert_array_equal(memory._pages[name], pages_of(actual[result], 0))
        assert set(memory.lengths.values()) == {room}


@pytest.mark.parametrize("reader", ["z = Neg(pk)", "z = TensorScatter(pk, k, used)"])
def test_a_cache_that_others_read_is_not_written_over(reader):
    body = f'nk = TensorScatter(pk, k, at)\n {reader}\n nv = Neg(pv)\n y = Attention(q, nk, nk, "", "", "", used)'
    graph = f"{HEAD} {ROOM.replace('nv)', 'nv, float[b,2,c,16] z)')} {{\n {body}\n}}"
    assert held(moec.compile(onnx.parser.parse_model(graph))) == []


APPENDED = """(float[b,2,s,16] q, float[b,2,s,16] k, float[b,t] mask, int64[b] at, float[b,2,p,16] past)
    => (float[b,2,s,16] y, float[b,2,t,16] present) <int64[1] nothing = {0}, int64[1] axis = {2}> {
    total = Shape <start = 1, end = 2> (mask)
    length = Shape <start = 2, end = 3> (past)
    new = Shape <start = 2, end = 3> (k)
    most = Max (total, length)
    missing = Sub (most, length)
    pads = Concat <axis = 0> (nothing, missing)
    room = Pad (past, pads, "", axis)
    present = TensorScatter (room, k, at)
    used = Add (at, new)
    y = Attention <is_causal = 1> (q, READ, READ, "", "", "", used)
}"""


@pytest.mark.nightly
def test_room_that_is_appended_holds_zeros():
    """Also where a past is longer than it has to be; whoever is not told what is in use could read the room."""
    graph = onnx.parser.parse_model(HEAD + APPENDED.replace("READ", "present"))
    compiled = moec.compile(graph)
    assert [(state.at_places, state.growth) for state in cached(compiled)] == [(True, "max(p, t) - p")]
    other = APPENDED.replace("READ", "twice").replace("used =", "twice = Add (present, present)\n used =")
    assert held(moec.compile(onnx.parser.parse_model(HEAD + other))) == []
    for change in ({'"", axis': "one, axis"}, {"nothing, missing": "missing, nothing"}):  # filled with 1; in front
        text = APPENDED.replace("READ", "present").replace("<int64[1]", "<float one = {1.0}, int64[1]")
        for old, new in change.items():
            text = text.replace(old, new)
        assert held(moec.compile(onnx.parser.parse_model(HEAD + text))) == []
    random = np.random.default_rng(0)
    for new, past, total, at in ((1, 4, 5, (4, 2)), (3, 0, 3, (0, 0)), (1, 9, 5, (4, 4)), (2, 300, 302, (300, 7))):
        values = {name: random.standard_normal((2, 2, new, 16), dtype=np.float32) for name in "qk"}
        values |= {"mask": np.ones((2, total), np.float32), "at": np.array(at)}
        values["past"] = random.standard_normal((2, 2, past, 16), dtype=np.float32)
        actual, expected = compiled.run(values), run(moec.import_model(graph), values)
        np.testing.assert_array_equal(actual["present"], expected["present"])
        np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-5, atol=1e-5)
        memory = memory_of(compiled, values, new)
        in_place = run_in_place(compiled, {name: one for name, one in values.items() if name != "past"}, memory)
        np.testing.assert_array_equal(in_place["y"], actual["y"])
        assert memory.lengths == {"past": max(past, total)}


@pytest.mark.parametrize("results", ["float[b,n] na, float[b,m] nb", "float[b,m] nb, float[b,n] na"])
def test_states_of_different_lengths(results):
    text = f"(float[b,s] x, float[b,p] pa, float[b,r] pb) => ({results}, float[b,n] a, float[b,m] b)"
    body = "na = Concat<axis = 1>(pa, x)\n nb = Concat<axis = 1>(pb, x)\n a = Neg(na)\n b = Neg(nb)"
    compiled = moec.compile(onnx.parser.parse_model(f"{HEAD} {text} {{\n {body}\n}}"))
    assert sorted(held(compiled)) == ["pa", "pb"]
    a, b, x = (np.arange(2 * size, dtype=np.float32).reshape(2, size) + size for size in (3, 300, 2))
    actual = compiled.run({"pa": a, "pb": b, "x": x})
    np.testing.assert_array_equal(-actual["a"], np.concatenate([a, x], 1))
    np.testing.assert_array_equal(-actual["b"], np.concatenate([b, x], 1))
    memory = StateMemory(cached(compiled), {"pa": (2, 0), "pb": (2, 0)}, None)
    for past in (a, b):  # each run puts as much behind both
        run_in_place(compiled, {"x": past}, memory)
    memory.lengths["pa"] = 3
    in_place = run_in_place(compiled, {"x": x}, memory)
    np.testing.assert_array_equal(-in_place["a"], np.concatenate([a, x], 1))
    np.testing.assert_array_equal(-in_place["b"], np.concatenate([a, b, x], 1))


def test_memory_that_cannot_be_had_is_named_with_its_size():
    class Full(Host):
        def new(self, *_arguments, **_options):
            raise MemoryError

    states = [HeldState("pk", "npk", 2, "float32", "s")]
    message = rf"no memory for {3 * PAGE} tokens of state 'pk' \(float32\[3, 1, 2, {PAGE}, 16\]\); .*max_tokens"
    with pytest.raises(MoecError, match=message):
        StateMemory(states, {"pk": (1, 2, 0, 16)}, 3 * PAGE, Full()).pages({"pk": 1})
