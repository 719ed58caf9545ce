"""Whole MoE language models with random weights: moec against onnxruntime on the same graph, and PyTorch eager.

    python benchmarks/whole_model.py [--models granite-3.1-1b-a400m] [--formats fp32 int4] [--layers 2]
                                     [--seconds 5] [--output benchmarks/results/whole_model]

Two rows per model and format: the first pass over a prompt, and one more token after it with the keys and values of the
prompt in a cache. Logits are those of the last token. Every repetition has other tokens, and contestants run in turn.
Needs the extra ``torch``. Every row is written to OUTPUT.json when it is done, and what is there already is not
measured again; OUTPUT.md is the table.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from language_models import SHAPES, Shape, WithCache, empty_cache, export
from results import Results
from timing import interleaved, peak_memory_mb, summary, timed

FORMATS = ("fp32", "int4")
PHASES = ("prefill", "decode")
PROMPT = 512
PAUSE_SECONDS = 0.06
"""Idle time before every call: onnxruntime's threads spin for 40 ms after a run, and contestants share a process."""
CASES = 8
"""Number of different token ids that the repetitions cycle through."""

Feeds = dict[str, np.ndarray]
Call = Callable[[Feeds], np.ndarray]


def contestants(path: pathlib.Path, model: torch.nn.Module | None, threads: int) -> tuple[dict[str, Call], float]:
    """Make functions from feeds to logits, and time moec's compilation in seconds. ``model`` is left out if None."""
    import onnxruntime

    import moec

    start = time.perf_counter()
    compiled = moec.compile(str(path), threads=threads)
    seconds = time.perf_counter() - start
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # All outputs are requested, because a step needs the cache of the step before it.
    calls: dict[str, Call] = {
        "moec": lambda feeds: compiled.run(feeds)["logits"],
        "onnxruntime": lambda feeds: session.run(None, feeds)[0],
    }
    if model is not None:
        with_cache = WithCache(model)

        def eager(feeds: Feeds) -> np.ndarray:
            ids, *past = (torch.from_numpy(array) for array in feeds.values())
            return with_cache(ids, past)[0].numpy()

        calls["pytorch eager"] = eager
    return calls, seconds


def cases(model: torch.nn.Module, vocabulary: int, phase: str, names: list[str]) -> list[Feeds]:
    random = np.random.default_rng(0)
    past = [tensor.numpy() for tensor in empty_cache(model, 0 if phase == "prefill" else PROMPT)]
    past = [random.standard_normal(tensor.shape, dtype=np.float32) for tensor in past]
    length = PROMPT if phase == "prefill" else 1
    ids = (random.integers(0, vocabulary, (1, length)) for _ in range(CASES))
    return [dict(zip(names, [ids_of_call, *past], strict=True)) for ids_of_call in ids]


def measure(calls: dict[str, Call], inputs: list[Feeds], seconds: float) -> dict[str, Any]:
    """Measure times by contestant, and the largest difference of its logits to onnxruntime's, relative to the largest
    logit."""
    results = {name: call(inputs[0]) for name, call in calls.items()}
    expected = results["onnxruntime"]
    turns = {name: itertools.cycle(inputs) for name in calls}
    runs = {name: timed(lambda name=name, call=call: call(next(turns[name]))) for name, call in calls.items()}
    return {
        name: {**summary(times), "runs": len(times), "difference": _difference(results[name], expected)}
        for name, times in interleaved(runs, seconds, before=lambda: time.sleep(PAUSE_SECONDS)).items()
    }


def _difference(result: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def measure_model(shape: Shape, args: argparse.Namespace, results: Results) -> None:
    missing = {form: results.missing(shape.name, form, PHASES) for form in args.formats}
    if not any(missing.values()):
        return
    model = shape.build(args.layers)
    for form, phases in missing.items():
        if not phases:
            continue
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            path = pathlib.Path(folder, "model.onnx")
            export(model, shape, path, four_bits=form == "int4")
            calls, compile_seconds = contestants(path, model if form == "fp32" else None, args.threads)
            for phase in phases:
                inputs = cases(model, shape.vocabulary, phase, input_names(path))
                figures = {
                    "layers": len(empty_cache(model)) // 2,
                    "compile_seconds": compile_seconds,
                    "peak_memory_mb": peak_memory_mb(),
                    "contestants": measure(calls, inputs, args.seconds),
                }
                results.add(shape.name, form, phase, figures)
                print(f"{shape.name} {form} {phase}: {figures['contestants']}", flush=True)
            del calls


def input_names(path: pathlib.Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(path, load_external_data=False).graph.input]


def markdown(results: Results) -> Iterator[str]:
    names = ("moec", "onnxruntime", "pytorch eager")
    heads = ("model", "layers", "format", "phase", *names, "onnxruntime / moec", "difference of logits", "compile s")
    yield f"| {' | '.join(heads)} |"
    yield "|" + " --- |" * len(heads)
    for row in results:
        figures = row["contestants"]
        times = [f"{figures[n]['min_ms']:.3g} / {figures[n]['median_ms']:.3g}" if n in figures else "-" for n in names]
        ratio = figures["onnxruntime"]["min_ms"] / figures["moec"]["min_ms"]
        cells = [row["layer"], str(row["layers"]), row["format"], row["tokens"], *times, f"**{ratio:.2f}**"]
        cells += [f"{figures['moec']['difference']:.1e}", f"{row['compile_seconds']:.0f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"Milliseconds, minimum / median; prompts of {PROMPT} tokens; ratios of minima."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--layers", type=int, help="default: what fits into memory")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=5.0, help="least time per contestant and row")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("whole_model"), help="path without suffix")
    parser.add_argument("--scratch", help="folder for models, up to 5 GB; default: the system's")
    args = parser.parse_args()
    logging.disable(logging.INFO)  # onnxruntime's quantiser logs every node
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    results = Results(args.output.with_suffix(".json"))
    try:
        for name in args.models:
            measure_model(SHAPES[name], args, results)
    finally:
        text = "\n".join(markdown(results))
        args.output.with_suffix(".md").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
