"""States that a GPU keeps in place, emulated: sessions compute the same as on a CPU, and plain runs still work."""

from __future__ import annotations

import dataclasses
import gc
import itertools
from collections.abc import Sequence

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import moec
from moec.artifacts.loading import device_of
from moec.common.errors import InputError, MoecError
from moec.common.kernel_sizes import evaluate, kernel_sizes
from moec.runtime import state_memory
from moec.runtime.artifact import open_artifact
from moec.runtime.held import PAGE
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.runtime.on_device import OnDevice
from moec.targets.cuda import nvcc
from moec.targets.cuda.device.captured_runs import _Captured
from moec.targets.tvm.heavy import append

from ...runtime.emulated_gpu import Calls, numbers_of, on_gpu
from ..cpu.test_attention_windows import model_of
from ..cpu.test_held_states import pages_of

TABLE = ",".join(str(round(np.sin(3 * n), 3)) for n in range(40))
TEXT = f"""<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] ids, float[B,1,P,8] k, float[B,1,P,8] v) => (float[B,S,8] logits, float[B,1,R,8] pk, float[B,1,R,8] pv)
    <float[5,8] table = {{{TABLE}}}, int64[1] one = {{1}}> {{
    e = Gather (table, ids)
    x = Unsqueeze (e, one)
    q = Concat <axis = 1> (x, x)
    y, pk, pv = Attention <is_causal = 1> (q, x, x, "", k, v)
    logits = ReduceSum <keepdims = 0> (y, one)
}}"""
CAPTURING = LoadOptions(emulate=True, cuda_graphs=True)
NARROW = "O2,cast-states{dtype=fp16}"
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 5, (2, 3 * PAGE))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("held") / "art"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        moec.compile(onnx.parser.parse_model(TEXT), target="cuda", passes=NARROW, output=path, emulate=True)
    return path


@pytest.fixture(scope="module")
def on_cuda(artifact) -> CompiledModel:
    return moec.load(artifact, emulate=True)


@pytest.fixture(scope="module")
def on_cpu() -> CompiledModel:
    return moec.compile(onnx.parser.parse_model(TEXT), target="cpu:avx2", passes=NARROW)


def test_both_targets_hold_the_same_states(on_cuda, on_cpu):
    assert list(on_cuda._executor.held) == [
        dataclasses.replace(state, store="", restore="") for state in on_cpu._executor.held
    ]
    assert [state.dtype for state in on_cuda._executor.held] == ["float16", "float16"]


def test_attention_is_recorded_with_the_keys_of_a_plain_run(artifact):
    """The recorded sizes, from which launches are estimated, are those of one page with all keys, old and new."""
    operations = {}
    for kernel in open_artifact(artifact).program().kernels:
        if kernel["name"].startswith("attention") and kernel["sized_work"]["operations"] != "0":
            sizes = kernel_sizes(kernel, {"B": 2, "P": 500, "S": 40}, kernel["name"])
            operations[kernel["name"]] = evaluate(kernel["sized_work"]["operations"], sizes, kernel["name"])
    # Four heads in all, two sums of 8 numbers each; query i of 40 sees 500 older keys and i + 1 new ones.
    expected = 4 * 2 * (8 + 8) * (40 * 500 + 40 * 41 // 2)
    assert operations == {"attention_few": expected, "attention_tiled": expected}


def test_sessions_across_pages(on_cuda, on_cpu, monkeypatch):
    monkeypatch.setattr(state_memory, "_FIRST_PAGES", 1)
    sessions = [model.session(batch=2) for model in (on_cuda, on_cpu)]
    start = 0
    for new in (1, PAGE - 2, 1, 1, 17, PAGE):  # 1, 255, 256, 257 tokens in all, and more
        actual, expected = (session.run(IDS[:, start : start + new]) for session in sessions)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
        start += new
    forked, expected = (session.fork().run(IDS[:, :2]) for session in sessions)
    np.testing.assert_allclose(forked, expected, rtol=1e-4, atol=1e-4)
    for length in (PAGE, 3):
        for session in sessions:
            session.truncate(length)
        again, expected = (session.run(IDS[:, 5:6]) for session in sessions)
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-4)


def test_a_fork_has_pages_of_its_own(on_cuda):
    session = on_cuda.session(max_tokens=PAGE)
    session.run(IDS[:1, :7])
    other = session.fork()
    first, second = session.run(IDS[:1, 7:8]), other.run(IDS[:1, 9:10])
    np.testing.assert_array_equal(on_cuda.session().run(IDS[:1, :8]), first)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("past", "new"), [(0, 0), (0, 1), (PAGE - 1, 1), (PAGE, 2), (5, 40)])
def test_plain_runs_take_and_give_what_the_model_says(past, new, on_cuda, on_cpu):
    random = np.random.default_rng(past)
    pasts = {name: random.standard_normal((2, 1, past, 8), np.float32) for name in ("k", "v")}
    values = {"ids": IDS[:, :new], **pasts}
    expected, actual = on_cpu.run(values), on_cuda.run(values)
    there = on_cuda.run({name: on_gpu(np.ascontiguousarray(array)) for name, array in values.items()})
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=1e-4)
        assert there[name].__dlpack_device__() == (2, 0)
        np.testing.assert_array_equal(numbers_of(there[name]), actual[name])
    assert actual["pk"].dtype == np.float32


def test_pages_without_room_are_refused(on_cuda, monkeypatch):
    memory = on_cuda._executor.state_memory({"k": (1, 1, 0, 8), "v": (1, 1, 0, 8)}, PAGE)
    on_cuda._executor.run_in_place({"ids": IDS[:1, :PAGE]}, memory)
    monkeypatch.setattr(memory, "_pages_for", lambda name, _: memory._pages[name])
    with pytest.raises(InputError, match="a state outgrows its memory"):
        on_cuda._executor.run_in_place({"ids": IDS[:1, :1]}, memory)
    assert set(memory.lengths.values()) == {PAGE}


def test_more_tokens_than_a_gpu_has_memory_for(on_cuda):
    with pytest.raises(MoecError, match=r"no memory for \d+ tokens of state 'k'.*max_tokens"):
        on_cuda.session(max_tokens=1 << 50)


@pytest.fixture(scope="module")
def capturing(artifact) -> CompiledModel:
    return moec.load(artifact, emulate=True, cuda_graphs=True)


def test_runs_that_take_and_give_states_are_captured(capturing, on_cuda):
    with Calls() as calls:
        for turn in range(3):
            pasts = {name: np.full((2, 1, 4, 8), turn, np.float32) for name in ("k", "v")}
            actual, expected = (
                program.run({"ids": IDS[:, turn : turn + 2], **pasts}) for program in (capturing, on_cuda)
            )
            for name, array in expected.items():
                np.testing.assert_array_equal(actual[name], array)
    assert calls["cuGraphLaunch"] == 2


def decoded(model: CompiledModel, news: Sequence[int]) -> list[np.ndarray]:
    """The logits of a session's runs on so many new tokens each."""
    session, ends = model.session(batch=2), np.cumsum(news)
    return [session.run(IDS[:, end - new : end]) for new, end in zip(news, ends, strict=True)]


def test_a_session_is_captured_once_for_each_number_of_pages(capturing, on_cuda):
    """Steps of one number of pages have different lengths, which the graph reads in memory."""
    news = [PAGE - 5, 1, 1, 1, 1, 1, 1, 1, 1]
    expected = decoded(on_cuda, news)
    with Calls() as calls:
        actual = decoded(capturing, news)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert calls["cuStreamBeginCapture"] == 2, "one for one page, one for two"
    assert calls["cuGraphLaunch"] == 6, "all steps except the first of each number of pages"


def test_lengths_that_a_graph_kept_would_show(capturing, on_cuda, monkeypatch):
    news = [3, 1, 1, 1, 1]
    expected = decoded(on_cuda, news)
    monkeypatch.setattr(_Captured, "fill", fill_once(_Captured.fill))
    actual = decoded(capturing, news)
    equal = [np.array_equal(one, other) for one, other in zip(actual, expected, strict=True)]
    assert equal == [True, True, True, False, False]


def fill_once(fill):
    """A method that fills the arguments of a graph at its capture, and never again."""
    filled = {}

    def instead(captured, arguments):
        if captured not in filled:
            filled[captured] = fill(captured, arguments)
        return filled[captured]

    return instead


@pytest.mark.parametrize("has_graphs", [True, False])
def test_a_steady_session_allocates_nothing_and_copies_once_each_way(has_graphs, capturing, on_cuda):
    session = (capturing if has_graphs else on_cuda).session(batch=2)
    for start in range(4):
        session.run(IDS[:, start : start + 1])
    with Calls() as calls:
        for start in range(3):
            session.run(IDS[:, start : start + 1])
    for name in ("cudaMalloc", "cudaFree", "cuMemHostAlloc", "cuMemFreeHost"):
        assert calls[name] == 0, name
    assert calls["pageable copy from host"] == calls["pageable copy to host"] == 0
    assert calls["copy from host"] == calls["copy to host"] == calls["cudaStreamSynchronize"] == 3
    assert (calls["cuGraphLaunch"], calls["launch"] > 0) == ((3, False) if has_graphs else (0, True))


def test_graphs_go_with_their_session(capturing):
    decoded(capturing, [1, 1, 1])
    gc.collect()
    owners = capturing._executor._captured._graphs
    assert all(owner is capturing._executor for owner in owners)


MASKED = (
    TEXT.replace("int64[B,S] ids,", "int64[B,S] ids, int64[B,A] attention_mask,")
    .replace(
        """int64[1] one = {1}>""", "int64[1] one = {1}, int64 zero = {0}, int64 step = {1}, int64[2] axes = {1, 2}>"
    )
    .replace(
        """y, pk, pv = Attention <is_causal = 1> (q, x, x, "", k, v)""",
        """of_past = Shape <start = 2, end = 3> (k)
    past = Squeeze (of_past)
    of_new = Shape <start = 1, end = 2> (ids)
    new = Squeeze (of_new)
    total = Add (past, new)
    rows = Range (past, total, step)
    columns = Range (zero, total, step)
    below = Unsqueeze (rows, one)
    seen = LessOrEqual (columns, below)
    counts = Cast <to = 9> (attention_mask)
    across = Unsqueeze (counts, axes)
    mask = And (across, seen)
    y, pk, pv = Attention (q, x, x, mask, k, v)""",
    )
)


@pytest.mark.nightly
@pytest.mark.parametrize("passes", [NARROW, "O2"])
def test_masks_and_positions_of_a_captured_session(without_nvcc, passes):
    """The graph has masks for all the pages hold. The causal mask inside it and the positions follow from the length
    in memory; the attention mask is the session's, padded."""
    graph = onnx.parser.parse_model(MASKED)
    graph.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "P + S"
    plain = moec.compile(graph, target="cuda", passes=passes, emulate=True)
    assert plain.artifact.manifest.programs[0].fixed_lengths == []
    captured = CompiledModel(plain.artifact, CAPTURING, device_of(plain.artifact, CAPTURING))
    for hidden in (0, 2):
        mask = np.ones((2, 4), np.int64)
        mask[0, :hidden] = 0
        sessions = [model.session(batch=2) for model in (captured, plain)]
        first, other = (session.run(IDS[:, :4], attention_mask=mask) for session in sessions)
        np.testing.assert_array_equal(first, other)
        with Calls() as calls:
            for start in range(4, 10):
                actual, expected = (session.run(IDS[:, start : start + 1]) for session in sessions)
                np.testing.assert_array_equal(actual, expected)
        assert calls["cuGraphLaunch"] == 5


@pytest.mark.nightly
def test_a_session_whose_kernels_sum_over_the_past_runs_without_graphs(without_nvcc):
    text = (
        TEXT.replace("int64[1] one = {1}>", "int64[1] one = {1}, int64[1] two = {2}>")
        .replace(
            "logits = ReduceSum",
            "all = ReduceSum <keepdims = 1> (pk, two)\n    z = Add (y, all)\n    logits = ReduceSum",
        )
        .replace("(y, one)", "(z, one)")
    )
    plain = moec.compile(onnx.parser.parse_model(text), target="cuda", emulate=True)
    (program,) = plain.artifact.manifest.programs
    assert any("ReduceSum" in name for name in program.fixed_lengths)
    assert any("without CUDA graphs" in remark["message"] for remark in plain.remarks)
    captured = CompiledModel(plain.artifact, CAPTURING, device_of(plain.artifact, CAPTURING))
    with Calls() as calls:
        for one, other in zip(decoded(captured, [3, 1, 1, 1]), decoded(plain, [3, 1, 1, 1]), strict=True):
            np.testing.assert_array_equal(one, other)
    assert calls["cuGraphLaunch"] == 0


@pytest.mark.parametrize(("growth", "is_steady"), [("max(M, P) - P", False), ("M", True)])
def test_states_that_grow_to_the_size_of_an_input_keep_graphs_away(growth, is_steady, program_of):
    """As those of GroupQueryAttention do, which grow to the length of a mask."""
    model = ir.serde.deserialize_model(
        onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 24]>
        g (float[1,P,8] past, float[1,N,8] new, float[M] mask) => (float[1,A,8] present, float[1,A,8] y) {
            present = Concat <axis = 1> (past, new)
            y = Neg (present)
        }""")
    )
    model.graph.inputs[1].shape = ir.Shape([1, growth, 8])
    program = program_of(model)
    remarks = [warning for warning in program.warnings if "sessions run without CUDA graphs" in warning]
    if is_steady:
        assert not any("the state" in remark for remark in (*remarks, *program.fixed_lengths))
    else:
        assert "the state 'past'" in program.fixed_lengths
        assert any("the state 'past': growth by max(M, P) - P follows from the size of an input" in r for r in remarks)


ROOM = """<ir_version: 10, opset_import: ["" : 24]>
g (float[B,2,S,8] q, float[B,2,S,8] k, float[B,2,C,8] pk, int64[B] at, int64[B] used)
    => (float[B,2,S,8] y, float[B,2,C,8] nk) {
    nk = TensorScatter (pk, k, at)
    y = Attention (q, nk, nk, "", "", "", used)
}"""


@pytest.mark.nightly  # every run has the kernel (kernels/test_append.py), and the graph on a processor
def test_caches_with_room_are_written_where_they_lie(without_nvcc):
    """Each sequence is written from its own place on, and some of these places are outside. Entries outside are not
    written."""
    graph = onnx.parser.parse_model(ROOM)
    model, reference = moec.compile(graph, target="cuda", emulate=True), moec.compile(graph, target="cpu:avx2")
    assert [(state.input, state.at_places) for state in model._executor.held] == [("pk", True)]
    for new, room, at in ((1, 300, (7, 299, 0)), (3, 300, (254, -1, 298))):
        random = np.random.default_rng(new)
        shapes = {"q": (3, 2, new, 8), "k": (3, 2, new, 8), "pk": (3, 2, room, 8)}
        values = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        values |= {"at": np.array(at), "used": np.array([300, 5, 257])}
        actual, expected = model.run(values), reference.run(values)
        np.testing.assert_array_equal(actual["nk"], expected["nk"])
        np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-5, atol=1e-5)
        memory = model._executor.state_memory({"pk": (3, 2, room, 8)}, room)
        memory._device.assign(memory._pages["pk"], _there(model, pages_of(values["pk"], 0)))
        in_place = model._executor.run_in_place({name: array for name, array in values.items() if name != "pk"}, memory)
        np.testing.assert_array_equal(in_place["y"], actual["y"])


def _there(model: CompiledModel, array: np.ndarray) -> OnDevice:
    assert model._device is not None
    return OnDevice(model._device.place(array), array.dtype, array.shape, torch=False)


def test_a_state_may_grow_by_a_size_that_is_computed(program_of):
    """The state grows to the larger of two sizes, like the caches of GroupQueryAttention."""
    text = """<ir_version: 10, opset_import: ["" : 24]>
    g (float[1,P,8] past, float[1,N,8] new, float[S] s, float[R] r) => (float[1,A,8] present, float[1,A,8] y) {
        present = Concat <axis = 1> (past, new)
        y = Neg (present)
    }"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    model.graph.inputs[1].shape = ir.Shape([1, "max(S, R) - S", 8])
    (state,) = program_of(model).held
    assert state.growth == "max(S, R) - S"


def test_a_state_that_begins_with_the_axis_it_grows_along(emulated):
    model = ir.serde.deserialize_model(
        onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 24]>
        g (float[P,8] past, float[S,8] new) => (float[A,8] present, float[A,8] y) {
            present = Concat <axis = 0> (past, new)
            y = Neg (present)
        }""")
    )
    run = emulated(model)
    for P, S in ((0, 1), (3, 2), (5, 0)):
        past, new = (RANDOM.standard_normal((rows, 8), np.float32) for rows in (P, S))
        actual = run({"past": past, "new": new})
        np.testing.assert_array_equal(actual["present"], np.concatenate([past, new]))
        np.testing.assert_array_equal(actual["y"], -actual["present"])


@pytest.mark.nightly
def test_a_captured_session_keeps_the_keys_of_a_window_and_computes_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)
    ids, logits, state_bytes = np.random.default_rng(1).integers(0, 50, (1, 1028)), [], []
    for number in range(2):
        path = tmp_path / str(number)
        moec.compile(model_of(100), target="cuda", output=path, emulate=True)
        plain = moec.load(path, emulate=True)
        session = CompiledModel(plain.artifact, CAPTURING, device_of(plain.artifact, CAPTURING)).session()
        cuts = (0, 500, 501, 513, 760, 761, 762, 768, 1010, *range(1020, 1029))
        with Calls() as calls:
            logits.append([session.run(ids[:, start:end], last=None) for start, end in itertools.pairwise(cuts)])
        assert calls["cuGraphLaunch"] >= 6
        state_bytes.append(session.state_bytes)
        monkeypatch.setattr(append, "state_windows", lambda *_: {})
    for actual, expected in zip(*logits, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert state_bytes[0] == 2 * PAGE * 2 * 8 * 4 and state_bytes[1] == 5 * PAGE * 2 * 8 * 4
