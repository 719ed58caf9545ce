"""The step of measurements for the launch model's constants: memory, L2 cache, launches, fences, allocations.

python -m carried.measures_step
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from .places import open_device, options
from .timing import Stopwatch

_MEMORY_BYTES, _CACHE_BYTES = 4 << 30, 16 << 20
_LAUNCHES = 100


def main() -> int:
    asked = options(__doc__, "measures")
    device = open_device(emulate=asked.emulate)
    code = asked.folder / "code" / f"{asked.measures}.fatbin"
    for text in figures(device, code, Stopwatch(device, code)):
        print(f"* {text}", flush=True)
    return 0


def figures(device: Any, code: Any, watch: Stopwatch) -> Iterator[str]:
    """Measure everything, one text each."""
    yield device.name
    data = device.memory(_MEMORY_BYTES)
    device.clear(data, _MEMORY_BYTES)
    blocks = device.multiprocessors * 4

    def read(size: int, rounds: int) -> None:
        arguments = [["pointer", data], ["pointer", data], ["int64", size // 16], ["int32", rounds]]
        device.launch(code, "kit_read", arguments, {"blockIdx.x": blocks, "threadIdx.x": 512})

    _, median = watch.seconds(lambda: read(_MEMORY_BYTES, 1))
    yield f"memory: {_MEMORY_BYTES / median / 1e12:.2f} TB/s read"
    few, many = (
        watch.seconds(lambda rounds=rounds: read(_CACHE_BYTES, rounds), flushes=False)[1] for rounds in (2, 66)
    )
    yield f"L2 cache: {64 * _CACHE_BYTES / (many - few) / 1e12:.2f} TB/s read"
    for early in (False, True):
        yield from _launches(device, code, watch, early=early)
    for fence in (0, 1):
        arguments = [["pointer", data], ["int32", 1000], ["int32", fence]]
        grid = {"blockIdx.x": device.multiprocessors, "threadIdx.x": 128}
        _, median = watch.seconds(lambda a=arguments, g=grid: device.launch(code, "kit_fence", a, g))
        yield f"a store by all blocks{', with a fence of the device' if fence else ''}: {median * 1e6:.2f} ns each"
    allocation = _host(lambda: device.free(device.memory(1 << 20)))
    yield f"cuMemAlloc and cuMemFree of 1 MiB: {allocation * 1e6:.1f} us"


def _launches(device: Any, code: Any, watch: Stopwatch, *, early: bool) -> Iterator[str]:
    """Time empty kernels that follow each other in a graph and, on the host, one by one."""
    name = "that begin early" if early else "one after the other"
    grid = {"blockIdx.x": device.multiprocessors, "threadIdx.x": 128}

    def launch() -> None:
        device.launch(code, "kit_empty", [["int32", int(early)]], grid, begins_early=early)

    def several() -> None:
        for _ in range(_LAUNCHES):
            launch()

    _, median = watch.seconds(device.captured(several), flushes=False)
    yield f"kernels {name}, in a graph: {median / _LAUNCHES * 1e6:.2f} us each"
    device.finish()
    yield f"kernels {name}, on the host (Python and the driver): {_host(launch) * 1e6:.2f} us each"
    device.finish()


def _host(work: Callable[[], None]) -> float:
    """The median seconds of a call on the host."""
    times = []
    for _ in range(_LAUNCHES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
