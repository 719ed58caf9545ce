"""Tensors on a GPU are used and returned in place, in the order of the caller's stream. The emulator is the GPU."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import sys
import types

import numpy as np
import onnx.parser
import pytest

import moec
from moec.artifacts.loading import device_of
from moec.common.errors import DefectError, InputError, UnsupportedError
from moec.runtime.artifact import open_artifact
from moec.runtime.executor import Executor
from moec.runtime.interface import Interface
from moec.runtime.library import load_ffi
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.runtime.streams import DEFAULT
from moec.runtime.tensors import new_tensor
from moec.simulators.cuda.driver import emulated_driver
from moec.targets.cuda.device.driver import CUDA, Driver
from moec.targets.cuda.device.gpu import CudaGpu

from .emulated_gpu import Calls, Foreign, numbers_of, on_gpu

EMULATED = LoadOptions(emulate=True)
CAPTURING = LoadOptions(emulate=True, cuda_graphs=True)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,4] x, float[m,4] more) => (float[n,4] y, float[m,4] same) {
    a = Exp (x)
    y = Softmax (a)
    same = Identity (more)
}"""
DATA_DEPENDENT = '<ir_version: 10, opset_import: ["" : 21]> g (float[n] x) => (int64[1,k] y) { y = NonZero (x) }'


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("on_device") / "model.moec"
    moec.compile(onnx.parser.parse_model(TEXT), target="cuda", output=path, emulate=True)
    return path


@pytest.fixture(scope="module")
def model(artifact):
    return moec.load(artifact, emulate=True)


def inputs(rows: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    return {"x": random.standard_normal((rows, 4), np.float32), "more": random.standard_normal((2, 4), np.float32)}


def expected(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(np.exp(x.astype(np.float64)))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def all_on_gpu(values):
    return {name: on_gpu(array) for name, array in values.items()}


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_tensors_there_give_tensors_there(model, rows):
    values = inputs(rows)
    outputs = model.run({name: Foreign(tensor) for name, tensor in all_on_gpu(values).items()})
    assert all(output.__dlpack_device__() == (2, 0) for output in outputs.values())
    np.testing.assert_allclose(numbers_of(outputs["y"]), expected(values["x"]), rtol=1e-5)
    np.testing.assert_array_equal(numbers_of(outputs["same"]), values["more"])


def test_arrays_give_arrays_and_a_mixture_gives_tensors(model):
    values = inputs()
    assert all(isinstance(output, np.ndarray) for output in model.run(values).values())
    mixed = model.run({"x": on_gpu(values["x"]), "more": values["more"]})
    np.testing.assert_allclose(numbers_of(mixed["y"]), expected(values["x"]), rtol=1e-5)
    np.testing.assert_array_equal(numbers_of(mixed["same"]), values["more"])


def test_inputs_are_read_where_they_are_and_never_handed_out(model):
    values = all_on_gpu(inputs())
    seen = []
    model.probe.watch_kernels(values, lambda _name, arguments: seen.extend(arguments))
    assert any(np.array_equal(argument.array, numbers_of(values["x"])) for argument in seen)
    assert model.run(values)["same"].data_ptr() != values["more"].data_ptr()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: new_tensor((3, 5), load_ffi().dtype("float32"), CUDA), "has size 5 on axis 1; expected 4"),
        (lambda: new_tensor((3, 4), load_ffi().dtype("float16"), CUDA), "has dtype float16; expected float32"),
        (
            lambda: new_tensor((3, 4), load_ffi().dtype("float4_e2m1fn"), CUDA),
            "has dtype float4_e2m1fn; expected one",
        ),
        (
            lambda: load_ffi().get_global_func("runtime.TVMTensorCreateView")(
                on_gpu(np.zeros(20, np.float32)), load_ffi().Shape((3, 4)), load_ffi().dtype("float32"), 4
            ),
            r"not a multiple of 16 bytes.*call \.clone\(\) on it",
        ),
    ],
    ids=["size", "dtype", "unknown dtype", "misaligned"],
)
def test_tensors_that_do_not_fit_are_named(model, make, message):
    with pytest.raises(InputError, match=f"input 'x' .*{message}"):
        model.run({**inputs(), "x": make()})


class TorchTensor(Foreign):
    requires_grad = False


class TorchResult(Foreign):
    def clone(self):
        return TorchResult(on_gpu(numbers_of(self.tensor)))


@pytest.fixture
def torch_on_gpu(monkeypatch):
    """Emulate a PyTorch whose tensors are on the GPU, and whose current stream is number 99."""
    fake = types.ModuleType("torch")
    stream = types.SimpleNamespace(cuda_stream=99)
    fake.Tensor, fake.from_dlpack = TorchTensor, TorchResult
    fake.cuda = types.SimpleNamespace(current_stream=lambda _device: stream)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(CudaGpu.streams, "_used", {DEFAULT})


def test_pytorch_gets_its_own_tensors_on_its_stream(model, torch_on_gpu, monkeypatch):
    waits, used = [], []
    monkeypatch.setattr(CudaGpu.streams, "let_wait", lambda stream, other: waits.append((stream, other)))
    values = inputs()
    tensors = {name: TorchTensor(tensor) for name, tensor in all_on_gpu(values).items()}
    model.probe.watch_kernels(tensors, lambda *_: used.append(CudaGpu.streams.current()))
    assert set(used) == {99}
    assert waits == [(99, DEFAULT)]
    outputs = model.run(tensors)
    assert all(type(output) is TorchResult for output in outputs.values())
    np.testing.assert_allclose(numbers_of(outputs["y"].tensor), expected(values["x"]), rtol=1e-5)
    assert outputs["same"].tensor.data_ptr() != tensors["more"].tensor.data_ptr()
    model.run(values)
    assert waits[-1] == (DEFAULT, 99), "work on another stream comes behind"
    assert CudaGpu.streams.current() == DEFAULT


@pytest.fixture
def data_dependent():
    return moec.compile(onnx.parser.parse_model(DATA_DEPENDENT), target="cuda", emulate=True)


def test_a_program_that_reads_its_own_results_runs_on_the_default_stream(data_dependent, torch_on_gpu, monkeypatch):
    model, waits, used = data_dependent, [], []
    monkeypatch.setattr(CudaGpu.streams, "let_wait", lambda stream, other: waits.append((stream, other)))
    x = TorchTensor(on_gpu(np.array([0, 1, 0, 2], np.float32)))
    model.probe.watch_kernels({"x": x}, lambda *_: used.append(CudaGpu.streams.current()))
    assert set(used) == {DEFAULT}
    assert waits == [(99, 0), (0, 99), (99, 0)]
    np.testing.assert_array_equal(numbers_of(model.run({"x": x})["y"].tensor), [[1, 3]])
    with pytest.raises(UnsupportedError, match=r"cannot be captured .*tensor_to_shape.*load it without cuda_graphs"):
        CompiledModel(model.artifact, CAPTURING, device_of(model.artifact, CAPTURING))


@pytest.mark.parametrize(
    ("message", "kind", "meaning"),
    [
        ("CUDA Runtime Error: out of memory", moec.MoecError, "the GPU is out of memory"),
        ("CUDA: an illegal memory access was encountered", DefectError, "a kernel failed on the GPU"),
        ("nobody knows", DefectError, "the compiled program failed on inputs of sizes x"),
    ],
)
def test_what_fails_while_it_runs_is_explained(artifact, monkeypatch, message, kind, meaning):
    def fails(*_tensors):
        raise RuntimeError(message)

    model = moec.load(artifact, emulate=True)
    monkeypatch.setattr(model._executor._program, "_main", fails)
    with pytest.raises(kind, match=meaning):
        model.run(inputs())


def test_weights_that_do_not_fit_are_explained(artifact, monkeypatch):
    def fails(_array):
        raise RuntimeError("CUDA: out of memory")

    opened = open_artifact(artifact)
    device = device_of(opened, EMULATED)
    monkeypatch.setattr(device, "place", fails)
    with pytest.raises(moec.MoecError, match="the GPU is out of memory"):
        Executor(opened.object_paths(opened.program()), Interface([], []), [np.zeros(4, np.float32)], device=device)


@pytest.fixture
def captured(artifact, monkeypatch):
    """Load a model that captures its runs, with a list of the calls for graphs."""
    calls: list[str] = []

    def spy(name, text):
        original = getattr(Driver, name)

        def spied(driver, *arguments):
            calls.append(text.format(*arguments))
            return original(driver, *arguments)

        monkeypatch.setattr(Driver, name, spied)

    spy("begin_capture", "capture")
    spy("launch", "launch on stream {1}")
    spy("forget", "forget")
    return moec.load(artifact, emulate=True, cuda_graphs=True), calls


@pytest.mark.parametrize("place", [dict, all_on_gpu], ids=["arrays", "tensors"])
def test_runs_are_captured_once_per_sizes_and_launched_from_then_on(captured, model, place):
    compiled, calls = captured
    read = (lambda array: array) if place is dict else numbers_of
    kept = []
    for turn, rows in enumerate([3, 3, 5, 3, 5, 3]):
        values = {name: array + turn for name, array in inputs(rows).items()}
        outputs = compiled.run(place(values))
        kept.append((outputs, model.run(values)))
    for outputs, plain in kept:  # every run owns its results, even after later ones
        for name, array in plain.items():
            np.testing.assert_array_equal(read(outputs[name]), array)
    launch = "launch on stream 0"
    assert calls == ["capture", launch, launch, "capture", launch, launch]


def test_pytorch_owns_the_results_of_a_captured_run(captured, torch_on_gpu):
    compiled, calls = captured
    values = {name: TorchTensor(tensor) for name, tensor in all_on_gpu(inputs()).items()}
    first, second, third = (compiled.run(values)["y"].tensor for _ in range(3))
    assert calls[-1] == "launch on stream 99"
    assert len({tensor.data_ptr() for tensor in (first, second, third)}) == 3
    np.testing.assert_array_equal(numbers_of(third), numbers_of(first))


def test_memory_of_a_captured_run_stays_its_own(captured):
    compiled, _ = captured
    for _ in range(2):
        compiled.run(inputs())
    (graphs,) = compiled._executor._captured._graphs.values()
    (run,) = graphs.captured.values()
    assert len(run.memory) == 3, "that of two results, and of exp's, which the run let go of"


def test_the_graph_that_was_not_used_for_the_longest_goes(captured, monkeypatch):
    compiled, calls = captured
    monkeypatch.setattr("moec.targets.cuda.device.captured_runs._MOST", 2)
    for rows in (1, 1, 2, 2, 1, 3, 3):
        compiled.run(inputs(rows))
    assert calls.count("forget") == 1
    compiled.run(inputs(1))
    assert calls.count("capture") == 3, "that of one row is still there"


def test_other_crossovers_are_captured_anew(captured):
    """The host reads crossovers only during capture."""
    compiled, calls = captured
    for _ in range(2):
        compiled.run(inputs())
    compiled.probe.set_crossovers({})
    compiled.run(inputs())
    assert calls[-4:] == ["launch on stream 0", "forget", "capture", "launch on stream 0"]


def test_a_run_that_fails_while_captured_leaves_nothing_behind(captured, monkeypatch):
    compiled, calls = captured
    compiled.run(inputs())
    launch = compiled._executor._program._main
    turns = iter([launch, None])
    monkeypatch.setattr(compiled._executor._program, "_main", lambda *tensors: next(turns)(*tensors))
    with pytest.raises(moec.MoecError):
        compiled.run(inputs())
    assert calls[-1] == "forget"
    monkeypatch.undo()
    np.testing.assert_allclose(compiled.run(inputs())["y"], expected(inputs()["x"]), rtol=1e-5)


GLOBAL, OF_THREAD, RELAXED = range(3)


class CallersGraph:
    """A graph that a caller of moec captures on stream 99, as ``torch.cuda.graph`` does."""

    def __init__(self, mode: int) -> None:
        self.driver, self._mode = emulated_driver(), mode

    def __enter__(self):
        self.driver._call("cuStreamBeginCapture_v2", 99, self._mode)
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.graph = self.driver.end_capture(99)
        else:
            with contextlib.suppress(moec.MoecError):
                self.driver.end_capture(99)

    def launch(self):
        self.driver.launch(self.graph, 99)


def overwrite(tensor, array):
    ctypes.memmove(tensor.data_ptr(), array.ctypes.data, array.nbytes)


@pytest.mark.parametrize("mode", [GLOBAL, OF_THREAD, RELAXED])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_caller_captures_a_run_in_a_graph_of_its_own(artifact, torch_on_gpu, mode, cuda_graphs):
    """The run waits for nothing outside of the graph and may allocate. Its memory stays its own: runs in between, of
    which some results are kept, neither change the graph's results nor are changed by it."""
    model, values = moec.load(artifact, emulate=True, cuda_graphs=cuda_graphs), inputs(5)
    tensors = {name: TorchTensor(on_gpu(array)) for name, array in values.items()}
    other = model.run({name: on_gpu(array) for name, array in inputs(5).items()})["y"]  # on the default stream
    kept = numbers_of(other)
    with CallersGraph(mode) as graph, Calls() as calls:
        outputs = model.run(tensors)
    assert calls["launch"] == calls["cudaStreamWaitEvent"] == calls["cudaStreamSynchronize"] == 0
    for turn in range(1, 3):
        later = {name: np.ascontiguousarray(array / turn) for name, array in values.items()}
        for name, array in later.items():
            overwrite(tensors[name].tensor, array)
        graph.launch()
        np.testing.assert_allclose(numbers_of(outputs["y"].tensor), expected(later["x"]), rtol=1e-5, atol=1e-30)
        np.testing.assert_array_equal(numbers_of(outputs["same"].tensor), later["more"])
        between = model.run({name: on_gpu(array) for name, array in inputs(5).items()})["y"]
        graph.launch()
        np.testing.assert_array_equal(numbers_of(between), kept)
    np.testing.assert_array_equal(numbers_of(other), kept)


def test_a_capture_that_would_keep_numbers_of_the_host_is_refused(model, torch_on_gpu):
    values = inputs(4)
    mixed = {"x": TorchTensor(on_gpu(values["x"])), "more": values["more"]}
    with (
        CallersGraph(GLOBAL),
        pytest.raises(InputError, match="input 'more' is in host memory while the model is captur"),
    ):
        model.run(mixed)
    np.testing.assert_allclose(numbers_of(model.run(mixed)["y"].tensor), expected(values["x"]), rtol=1e-5)


def test_the_emulated_driver_refuses_what_a_capture_forbids():
    driver, streams = emulated_driver(), CudaGpu.streams
    for forbidden, mode in (
        (lambda: new_tensor((3, 4), load_ffi().dtype("float32"), CUDA), GLOBAL),
        (lambda: driver.new_pinned(64), GLOBAL),
        (lambda: streams.finish(99), RELAXED),
        (lambda: streams.let_wait(99, DEFAULT), RELAXED),
        (lambda: driver.copy_from_host(on_gpu(np.ones(4)).data_ptr(), np.ones(4).ctypes.data, 32, 99), RELAXED),
    ):
        graph = CallersGraph(mode)
        graph.__enter__()
        with pytest.raises(Exception, match=r"CUDA|cu\w+"):
            forbidden()
        with pytest.raises(moec.MoecError, match="cuStreamEndCapture"):
            driver.end_capture(99)
    with CallersGraph(RELAXED):
        new_tensor((3, 4), load_ffi().dtype("float32"), CUDA)


def test_a_processor_captures_nothing(tmp_path):
    moec.compile(onnx.parser.parse_model(TEXT), target="cpu:avx2", output=tmp_path / "art")
    with pytest.raises(UnsupportedError, match="CUDA graphs need a GPU; load it without cuda_graphs"):
        moec.load(tmp_path / "art", cuda_graphs=True)
