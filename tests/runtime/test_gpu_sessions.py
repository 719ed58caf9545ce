"""Sessions on a GPU, emulated: their memory, what they copy, and the tokens that they select."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from unittest import mock

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import MoecError
from moec.common.specs import State
from moec.runtime import session
from moec.runtime.device_results import DeviceResults
from moec.runtime.generation import prefilled
from moec.runtime.held import PAGE
from moec.runtime.library import load_ffi
from moec.runtime.model import CompiledModel
from moec.runtime.run_memory import FEW_TOKENS, RunMemory
from moec.runtime.sampling import NOT_NUMBERS, Sampling
from moec.runtime.session import Session
from moec.runtime.session_states import SessionStates
from moec.runtime.token_selection import TokenSelection
from moec.simulators.cuda.driver import emulated_driver
from moec.targets.cuda import nvcc
from moec.targets.cuda.device.driver import CUDA

from .emulated_gpu import Calls, memory_left, numbers_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

VOCABULARY = 37
HIDDEN = 14 * VOCABULARY
TABLE = ",".join(str(round(np.sin(3 * n), 3)) for n in range(VOCABULARY * 8))
TEXT = f"""<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] ids, float[B,1,P,8] k, float[B,1,P,8] v)
    => (float[B,S,{VOCABULARY}] logits, float[B,1,R,8] pk, float[B,1,R,8] pv)
    <float[{VOCABULARY},8] table = {{{TABLE}}}, int64[1] one = {{1}}> {{
    e = Gather (table, ids)
    x = Unsqueeze (e, one)
    y, pk, pv = Attention <is_causal = 1> (x, x, x, "", k, v)
    z = Squeeze (y, one)
    across = Transpose <perm = [1, 0]> (table)
    wide = Concat <axis = 1> ({", ".join(["across"] * 14)})
    tall = Concat <axis = 0> ({", ".join(["table"] * 14)})
    hidden = MatMul (z, wide)
    positive = Relu (hidden)
    joined = MatMul (positive, tall)
    logits = MatMul (joined, across)
}}"""
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (1, 600))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("sessions") / "art"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        moec.compile(onnx.parser.parse_model(TEXT), target="cuda", output=path, emulate=True)
    return path


@pytest.fixture(scope="module")
def model(artifact) -> CompiledModel:
    return moec.load(artifact, emulate=True)


def test_prompts_of_many_lengths_share_memory(model):
    """The pool keeps blocks of few sizes, so that it stops to grow, and no run allocates when all sizes have come."""

    def allocated_by(lengths: range) -> int:
        with Calls() as calls:
            for length in lengths:
                session = model.session(max_tokens=PAGE)
                session.run(IDS[:, :length], last=None)
        return calls["cudaMalloc"] - len(lengths) * len(model.states)

    before = emulated_driver().free_memory()
    assert 0 < allocated_by(range(50, 1, -2)) < 25
    assert before - emulated_driver().free_memory() < 4 * 2 * 50 * HIDDEN * 4
    assert allocated_by(range(51, 2, -2)) == 0, "other lengths of the same powers of two"


@pytest.fixture(scope="module")
def capturing(artifact) -> CompiledModel:
    return moec.load(artifact, emulate=True, cuda_graphs=True)


PROMPTS = [[1, 2, 3], [4, 5], [6, 36, 8, 9]]
OPTIONS = [
    {},
    {"repetition_penalty": 2.0},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 5},
]


def selecting_on_the_host(model: CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model._executor.sampler == "sample"
    monkeypatch.setattr(model._executor, "sampler", "")


@pytest.mark.parametrize(
    "options", [*(pytest.param(each, marks=pytest.mark.nightly) for each in OPTIONS[:2]), OPTIONS[2]]
)
def test_a_gpu_generates_what_the_host_would_select(options, model, monkeypatch):
    """Prompts of three lengths side by side: some select while others still read their prompts."""
    actual = [text.ids for text in moec.generate(model, PROMPTS, max_new_tokens=6, **options)]
    selecting_on_the_host(model, monkeypatch)
    assert actual == [text.ids for text in moec.generate(model, PROMPTS, max_new_tokens=6, **options)]
    assert [len(ids) for ids in actual] == [6, 6, 6]


def steps(model: CompiledModel, options: dict, count: int) -> tuple[Calls, list[list[int]]]:
    """The calls of the last of ``count`` steps of two sequences, and the tokens of all."""
    prompts = [[1, 2], [3, 4]]
    session, selection = model.session(batch=2), TokenSelection(Sampling(**options), prompts, [0, 1])
    tokens, calls = [np.array(prompts)], Calls()
    for _ in range(count):
        with calls:
            selected = session.select(tokens[-1], selection, [0, 1])
        tokens.append(selected[:, None])
    return calls, [step.tolist() for step in tokens[1:]]


@pytest.mark.parametrize("options", [OPTIONS[1], pytest.param(OPTIONS[2], marks=pytest.mark.nightly)])
def test_a_decode_step_fetches_its_tokens_alone(options, capturing, monkeypatch):
    calls, tokens = steps(capturing, options, 5)
    assert calls["bytes of copy to host"] == 2 * 8
    assert (calls["cuGraphLaunch"], calls["launch"], calls["cudaStreamSynchronize"]) == (1, 1, 1)
    assert calls["cudaMalloc"] == calls["cudaFree"] == calls["cuMemHostAlloc"] == 0
    selecting_on_the_host(capturing, monkeypatch)
    calls, expected = steps(capturing, options, 5)
    assert tokens == expected
    assert calls["bytes of copy to host"] == 2 * VOCABULARY * 4
    assert (calls["cuGraphLaunch"], calls["launch"]) == (1, 0)


def test_logits_that_are_no_numbers_are_refused_on_a_gpu(model, monkeypatch):
    monkeypatch.setattr(model._device, "fetch_all", lambda tensors: [np.array([NOT_NUMBERS, 3]) for _ in tensors])
    prompts = [[1], [2]]
    for rows in ([0], [0, 1]):
        with pytest.raises(MoecError, match="not numbers"):
            model.session(batch=2).select(np.array(prompts), TokenSelection(Sampling(), prompts, [0, 1]), rows)
    tokens = model.session(batch=2).select(np.array(prompts), TokenSelection(Sampling(), prompts, [0, 1]), [1])
    assert tokens[1] == 3


@pytest.mark.parametrize("has_graphs", [False, True])
def test_logits_stay_on_the_gpu_where_the_caller_asks(has_graphs, model, capturing):
    """They belong to the caller: a later run, which may be the same graph, does not overwrite them."""
    sessions = [(capturing if has_graphs else model).session() for _ in range(2)]
    kept, expected = [], []
    for step in range(5):
        ids = IDS[:, step : step + 1]
        with Calls() as calls:
            kept.append(sessions[0].run(ids, device_outputs=True))
        assert calls["copy to host"] == calls["pageable copy to host"] == calls["cudaStreamSynchronize"] == 0
        expected.append(sessions[1].run(ids))
    for actual, logits in zip(kept, expected, strict=True):
        assert actual.__dlpack_device__() == (CUDA, 0)
        np.testing.assert_array_equal(numbers_of(actual), logits)


def test_states_that_pass_through_the_host_do_so_when_results_stay():
    """A state that is not held is fetched behind a run whose logits stay on the device."""
    device = SimpleNamespace(fetch_all=lambda tensors: [tensor + 1 for tensor in tensors])

    def run(values, last, ending):
        results = {"logits": values["ids"], "next": values["kept"]}
        return ending(DeviceResults(device, results, [], print))

    executor = SimpleNamespace(run=run)
    states = SessionStates(executor, [State("kept", "next", None)], {"kept": 5}, {}, None)
    value, after = states.run({"ids": 7}, 1, lambda results: results.tensors["logits"])
    assert (value, after.arrays, states.arrays) == (7, {"kept": 6}, {"kept": 5})


BATCH = 32
SEVERAL = np.random.default_rng(1).integers(0, VOCABULARY, (BATCH, 40))


@pytest.fixture
def parts(monkeypatch):
    """The numbers of tokens of all runs of sessions, of which the least is 4 for each sequence."""
    monkeypatch.setattr(session, "LEAST_TOKENS", 4 * BATCH)
    counts, outputs = [], Session._outputs
    monkeypatch.setattr(
        Session, "_outputs", lambda self, ids, *rest: counts.append(ids.shape[1]) or outputs(self, ids, *rest)
    )
    return counts


def bytes_for(model: CompiledModel, tokens: int) -> int:
    """The bytes of a run on so many tokens, at the end of 40."""
    return model._run_memory.bytes_of({"B": BATCH, "S": tokens, "P": 40})


def session_of_several(model: CompiledModel) -> Session:
    return model.session(max_tokens=PAGE, batch=BATCH)


def test_prompts_are_cut_by_the_memory_that_is_free(model, parts):
    """Half of it is taken. Where one kernel of attention serves all parts, results are the same bit for bit."""
    whole = prefilled(session_of_several(model), SEVERAL)
    assert parts == [40]
    for tokens, expected in ((40, [40]), (20, [32, 8]), (1, [4] * 10)):
        fresh, room = moec.load(model.artifact.folder, emulate=True), 2 * bytes_for(model, tokens)
        parts.clear()
        with mock.patch.object(type(model._device), "free_bytes", room):
            logits = prefilled(session_of_several(fresh), SEVERAL)
        assert parts == expected
        np.testing.assert_allclose(logits, whole, rtol=1e-5, atol=1e-3)


@pytest.mark.nightly
def test_parts_of_one_kernel_have_the_same_bits(model, parts):
    logits = []
    for cut in (40, 23, 20):
        with mock.patch.object(RunMemory, "tokens", lambda *_, cut=cut: cut):
            logits.append(prefilled(session_of_several(model), SEVERAL))
    assert parts == [40, 23, 17, 20, 20]
    np.testing.assert_array_equal(logits[1], logits[0])
    np.testing.assert_array_equal(logits[2], logits[0])


def test_a_prompt_for_which_memory_does_not_suffice_runs_in_smaller_parts(model, parts):
    """Two blocks for 40 tokens have 131,072 bytes; other programs may have taken what was free."""
    several = session_of_several(model)
    load_ffi().get_global_func("vm.builtin.memory_manager.clear")()
    with memory_left(120_000), mock.patch.object(RunMemory, "tokens", lambda *_: 40):
        logits = prefilled(several, SEVERAL)
    assert parts[:2] == [40, 20] and len(parts) < 10
    np.testing.assert_allclose(logits, prefilled(session_of_several(model), SEVERAL), rtol=1e-5, atol=1e-3)


def test_steps_of_few_tokens_have_the_same_bits(model):
    """Drafts take part in steps of up to FEW_TOKENS tokens."""
    session = model.session(1000)
    session.run(IDS[:, :300])
    alone = session.fork()
    expected = np.concatenate([alone.run(IDS[:, at : at + 1]) for at in range(300, 300 + FEW_TOKENS)], axis=1)
    for count in (3, FEW_TOKENS):
        together = session.fork().run(IDS[:, 300 : 300 + count], last=None)
        np.testing.assert_array_equal(together, expected[:, :count])
