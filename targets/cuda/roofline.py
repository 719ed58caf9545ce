"""Measurement of a GPU's limits: the bandwidth of copies in its memory, and the rate of products of large matrices.

PyTorch does the work, with NVIDIA's own library of matrix products. So the peak is a rate that the best known code
reaches, not a figure of a data sheet.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

from moec.common.errors import MoecError
from moec.common.roofline import Peak, Roofline
from moec.targets.cuda.device.driver import open_driver

_DTYPES = ("float32", "float16", "bfloat16")
_COPY_BYTES = 1 << 30
_SIZE = 8192
"""Rows and columns of the matrices."""
_REPETITIONS = 10


def measure_roofline(threads: int) -> Roofline:
    """Measure the limits of the first GPU, in a second or two. A copied byte counts twice: once read, once written.

    Raises MoecError if there is no GPU, or no PyTorch that can use it.
    """
    torch = _torch_on_gpu()
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * _COPY_BYTES / _least_seconds(torch, lambda: target.copy_(source))
    peaks = tuple(_measure_peak(torch, dtype) for dtype in _DTYPES)
    return Roofline(threads, {"copied on the GPU": bandwidth}, peaks)


def _torch_on_gpu() -> ModuleType:
    if not open_driver().gpus():
        raise MoecError("the limits of a GPU cannot be measured: the driver finds none")
    if importlib.util.find_spec("torch") is None:
        raise MoecError("measuring the limits of a GPU needs PyTorch; install it with: pip install torch")
    import torch

    if not torch.cuda.is_available():
        raise MoecError(f"PyTorch {torch.__version__} cannot use the GPU; install one that is built with CUDA")
    return torch


def _measure_peak(torch: Any, dtype: str) -> Peak:
    left = torch.randn(_SIZE, _SIZE, dtype=getattr(torch, dtype), device="cuda")
    right = torch.randn_like(left)
    return Peak(dtype, "matrix product", 2 * _SIZE**3 / _least_seconds(torch, lambda: left @ right))


def _least_seconds(torch: Any, call: Callable[[], Any]) -> float:
    """The time of the fastest of several calls; a first call to warm up does not count."""
    times = []
    for _ in range(1 + _REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return min(times[1:])
