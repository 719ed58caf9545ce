"""The kit's step of PyTorch: PyTorch's tensors in the memory of an emulated GPU, with its streams and graphs."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import shutil
import types

import numpy as np
import onnx.parser
import pytest
import torch

import moec
from moec.runtime.tensors import over_runtime, tensor_at
from moec.simulators.cuda.driver import emulated_driver
from moec.targets.cuda.device.driver import CUDA

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

TOOLS = pathlib.Path(__file__).resolve().parent.parent / "tools"
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,4] x, int64[n] ids) => (float[n,4] y) {
    a = Exp (x)
    table = Constant <value = float[2,4] {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0}> ()
    row = Gather (table, ids)
    b = Add (a, row)
    y = Softmax (b)
}"""


class GpuTensor(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda", 0)

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def __dlpack__(self, **_options):
        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        return tensor_at(self.data_ptr(), self.shape, dtype, CUDA, self).__dlpack__()

    @property
    def __dlpack_c_exchange_api__(self):
        raise AttributeError("only functions of Python say where this tensor is")


class EmulatedTorchGpu:
    """PyTorch's module ``cuda``, on the emulated driver. ``replays``: whether graphs do."""

    def __init__(self, *, replays: bool) -> None:
        self._replays, self._streams = replays, [0]
        self.driver = emulated_driver()
        self.launched: list[int] = []

    def current_stream(self, _device: int = 0) -> types.SimpleNamespace:
        return types.SimpleNamespace(cuda_stream=self._streams[-1])

    def Stream(self) -> types.SimpleNamespace:  # noqa: N802  # PyTorch's name
        return types.SimpleNamespace(cuda_stream=98, wait_stream=lambda _other: None, synchronize=lambda: None)

    @contextlib.contextmanager
    def stream(self, stream: types.SimpleNamespace):
        self._streams.append(stream.cuda_stream)
        yield
        self._streams.pop()

    def CUDAGraph(self) -> types.SimpleNamespace:  # noqa: N802  # PyTorch's name
        graph = types.SimpleNamespace()
        graph.replay = lambda: self._replays and self._launch(graph.number)
        return graph

    @contextlib.contextmanager
    def graph(self, graph: types.SimpleNamespace):
        with self.stream(types.SimpleNamespace(cuda_stream=99)):
            self.driver._call("cuStreamBeginCapture_v2", 99, 0)
            yield
            graph.number = self.driver.end_capture(99)

    def synchronize(self) -> None:
        pass

    def _launch(self, graph: int) -> None:
        self.launched.append(graph)
        self.driver.launch(graph, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kit") / "artifacts"
    path.mkdir()
    moec.compile(onnx.parser.parse_model(TEXT), target="cuda", output=path / "small.moec", emulate=True)
    x, ids = np.random.default_rng(0).standard_normal((5, 4), np.float32), np.array([1, 0, 0, 1, 1])
    np.savez(path / "small.npz", in_x=x, in_ids=ids, out_y=x)
    return path.parent


@pytest.fixture
def take(folder, monkeypatch):
    """Take the step in this process. Returns its exit code and PyTorch's emulated GPU."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from kit.carried import torch_step

    def taken(*, replays: bool = True):
        gpu = EmulatedTorchGpu(replays=replays)
        load = lambda folder, name, **options: moec.load(  # noqa: E731
            folder / "artifacts" / f"{name}.moec", **{**options, "emulate": True}
        )
        monkeypatch.setattr(torch_step, "load_model", load)
        monkeypatch.setattr(torch_step, "options", lambda *_: argparse.Namespace(folder=folder, name="small"))
        monkeypatch.setattr(torch_step, "RUNS", 2)
        monkeypatch.setattr(torch, "cuda", gpu)
        monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor.clone().as_subclass(GpuTensor))
        monkeypatch.setattr(torch, "from_dlpack", _from_runtime)
        monkeypatch.setattr(torch, "randn", lambda *_sizes, device: torch.ones(8, 8))
        return torch_step.main(), gpu

    return taken


def _from_runtime(tensor) -> GpuTensor:
    return torch.from_numpy(over_runtime(tensor)).as_subclass(GpuTensor)


def test_tensors_stay_and_streams_and_graphs_of_the_caller_are_used(take, capsys):
    code, gpu = take()
    said = capsys.readouterr().out
    assert code == 0 and "DIFFERS" not in said, said
    assert len(gpu.launched) == 1
    for text in ("results stay on cuda:0", "repeated: bits", "on another stream: bits", "in torch.cuda.graph: bits"):
        assert f"* {text}\n" in said
    assert "host time of a run: " in said and "host time of a run as a graph: " in said


def test_a_graph_that_computes_nothing_is_noticed(take, capsys):
    code, _ = take(replays=False)
    assert code == 1 and "in torch.cuda.graph: bits, DIFFERS" in capsys.readouterr().out
