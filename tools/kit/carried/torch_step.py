"""The step of PyTorch beside moec: tensors that stay on the GPU, streams, and a user's ``torch.cuda.graph``.

python -m carried.torch_step NAME
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .loaded import load_model
from .places import options

RUNS = 200


def main() -> int:
    asked = options(__doc__, "name")
    stored = np.load(asked.folder / "artifacts" / f"{asked.name}.npz")
    inputs = {name.removeprefix("in_"): stored[name] for name in stored.files if name.startswith("in_")}
    right = True
    for check in (_stays, _streams, _captured, _host_time):
        try:
            for text, agrees in check(asked, inputs):
                print(f"* {text}{'' if agrees else ', DIFFERS'}", flush=True)
                right &= agrees
        except Exception as error:  # each check is a result of its own
            print(f"* {check.__name__.strip('_')}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            right = False
    return 0 if right else 1


def _on_gpu(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arrays as tensors; bfloat16, stored as its bits, as such."""
    import torch

    tensors = {}
    for name, array in inputs.items():
        is_bfloat16 = array.dtype == np.uint16
        tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array).cuda()
        tensors[name] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    return tensors


def _result(model: Any, tensors: dict[str, Any]) -> Any:
    return model.run(tensors)[model.outputs[0].name]


def _bits(tensor: Any) -> bytes:
    import torch

    return bytes(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())


def _stays(asked: Any, inputs: dict[str, np.ndarray]) -> Iterator[tuple[str, bool]]:
    model, tensors = load_model(asked.folder, asked.name, emulate=False), _on_gpu(inputs)
    first, second = _result(model, tensors), _result(model, tensors)
    yield f"results stay on {first.device}", first.device.type == "cuda"
    yield "repeated: bits", _bits(first) == _bits(second)


def _streams(asked: Any, inputs: dict[str, np.ndarray]) -> Iterator[tuple[str, bool]]:
    """Compute inputs on another stream, after a long product, and read results there."""
    import torch

    model, tensors = load_model(asked.folder, asked.name, emulate=False), _on_gpu(inputs)
    expected = _bits(_result(model, tensors))
    stream, busy = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(10):
            busy = busy @ busy / 64
        y = _result(model, {name: tensor.clone() for name, tensor in tensors.items()}).clone()
    stream.synchronize()
    yield "on another stream: bits", _bits(y) == expected


def _captured(asked: Any, inputs: dict[str, np.ndarray]) -> Iterator[tuple[str, bool]]:
    """Capture a run in a graph of the user's."""
    import torch

    model, tensors = load_model(asked.folder, asked.name, emulate=False), _on_gpu(inputs)
    expected = _bits(_result(model, tensors))
    _result(model, tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = _result(model, tensors)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    yield "in torch.cuda.graph: bits", _bits(y) == expected


def _host_time(asked: Any, inputs: dict[str, np.ndarray]) -> Iterator[tuple[str, bool]]:
    """Time runs with tensors on the GPU, launched one by one and as a graph."""
    import torch

    for graphs in (False, True):
        model, tensors = load_model(asked.folder, asked.name, emulate=False, cuda_graphs=graphs), _on_gpu(inputs)
        run: Callable[[], Any] = lambda model=model, tensors=tensors: _result(model, tensors)  # noqa: E731
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        yield f"host time of a run{' as a graph' if graphs else ''}: {statistics.median(times) * 1e6:.0f} us", True


if __name__ == "__main__":
    sys.exit(main())
