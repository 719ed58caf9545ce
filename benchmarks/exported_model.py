"""A model before and after ``moec export --for onnxruntime``, both run by onnxruntime alone.

    python benchmarks/exported_model.py MODEL.onnx [--tokens 1 16 256] [--threads 1]

MODEL is a text model with a cache, such as the graphs of mobius-onnx (tests/instruments/mobius_models.py builds them).
The export is a folder, whose weights onnxruntime maps. Session creation and runs of both take turns. Two times are
printed, each as minimum / median: by the clock, and of the process, which other programs of a busy machine disturb
less.
"""

from __future__ import annotations

import argparse
import gc
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_VOCABULARY = 99
_RUNS = {1: 20, 16: 7}
"""Runs by the number of tokens; 3 of others."""

Times = list[tuple[float, float]]


def session(path: pathlib.Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(inputs: Sequence[Any], tokens: int) -> dict[str, np.ndarray]:
    """Inputs of one sequence without earlier tokens."""
    arrays: dict[str, np.ndarray] = {}
    for value in inputs:
        past = "past" in value.name
        sizes = [
            size if isinstance(size, int) else 1 if size == "batch" else 0 if past else tokens for size in value.shape
        ]
        if value.name == "input_ids":
            arrays[value.name] = np.random.default_rng(0).integers(0, _VOCABULARY, sizes)
        elif value.name == "position_ids":
            arrays[value.name] = np.broadcast_to(np.arange(tokens), sizes).astype(np.int64)
        else:
            arrays[value.name] = np.zeros(sizes, np.float32) if past else np.ones(sizes, np.int64)
    return arrays


def timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    start = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - start[0], time.process_time() - start[1])


def line(label: str, times: dict[str, Times]) -> str:
    """Both contestants' times in milliseconds, and the quotients of the minima."""
    parts, least = [], {}
    for name, taken in times.items():
        columns = [[1e3 * pair[at] for pair in taken] for at in (0, 1)]
        least[name] = [min(column) for column in columns]
        shown = [f"{min(column):.4g} / {statistics.median(column):.4g}" for column in columns]
        parts.append(f"{name}: clock {shown[0]}, process {shown[1]}")
    quotients = [f"{a / b:.1f}" for a, b in zip(least["original"], least["export"], strict=True)]
    return f"{label}: {'; '.join(parts)}; times faster: clock {quotients[0]}, process {quotients[1]}"


def measure(paths: dict[str, pathlib.Path], tokens: Sequence[int], threads: int) -> None:
    sessions: dict[str, Any] = {}
    times: dict[str, Times] = {name: [] for name in paths}
    for _ in range(3):
        for name, path in paths.items():
            sessions.pop(name, None)
            gc.collect()
            sessions[name], taken = timed(lambda path=path: session(path, threads))
            times[name].append(taken)
    print(line("session creation", times), flush=True)
    for count in tokens:
        times, outputs = {name: [] for name in paths}, {}
        for _ in range(_RUNS.get(count, 3)):
            for name, contestant in sessions.items():
                inputs = feeds(contestant.get_inputs(), count)
                outputs[name], taken = timed(
                    lambda contestant=contestant, inputs=inputs: contestant.run(None, inputs)[0]
                )
                times[name].append(taken)
        gap = np.abs(outputs["original"] - outputs["export"]).max() / np.abs(outputs["original"]).max()
        print(f"{line(f'{count} tokens', times)}; outputs differ by {gap:.1e} of the largest", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import moec

    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "export"
        result = moec.export(arguments.model, output, form="onnxruntime")
        print(*(f"{part.name}: {part.written_as or part.reason}" for part in result.parts), sep="\n")
        paths = {"original": arguments.model, "export": output / "model.onnx"}
        measure(paths, arguments.tokens, arguments.threads)


if __name__ == "__main__":
    main()
