"""One MoE layer (router logits and tokens in, tokens out): moec against onnxruntime's MoE operator and PyTorch.

    python benchmarks/moe_layer.py [--threads 2] [--tokens 1 16 128 512] [--layers granite olmoe] [--json FILE]

swiglu, fp32, random weights. Contestants run in turn on the same inputs; every repetition has other logits, so that a
layer with few tokens meets other experts each time and reads their weights from memory, as decoding a text does.
onnxruntime and PyTorch are optional: what is not installed is left out, with a message.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from timing import interleaved, peak_memory_mb, print_markdown, summary, write_json

LAYERS = {"granite": (1024, 512, 32, 8), "olmoe": (2048, 1024, 64, 8)}
"""Hidden size d, intermediate size f, experts E, experts per token k."""
CASES = 16
"""Different inputs that the repetitions go through."""

Call = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make_weights(d: int, f: int, E: int) -> dict[str, np.ndarray]:
    """``fc1`` [E, 2f, d], gate and up interleaved; ``fc2`` [E, d, f]."""
    random = np.random.default_rng(0)
    fc1 = random.standard_normal((E, 2 * f, d), dtype=np.float32) / np.float32(np.sqrt(d))
    return {"fc1": fc1, "fc2": random.standard_normal((E, d, f), dtype=np.float32) / np.float32(np.sqrt(f))}


def save_model(path: pathlib.Path, weights: dict[str, np.ndarray], k: int) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    E, d, _ = weights["fc2"].shape
    node = helper.make_node(
        "MoE", ["x", "logits", "fc1", "", "fc2"], ["y"], "moe", domain="com.microsoft", k=k, activation_type="swiglu",
        normalize_routing_weights=1, swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0,
    )  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", d]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", E]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", d])]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "layer", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin")


def onnxruntime_call(path: pathlib.Path, threads: int) -> Call | None:
    if importlib.util.find_spec("onnxruntime") is None:
        print("onnxruntime is not installed and left out")
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x, logits: session.run(None, {"x": x, "logits": logits})[0]


def pytorch_call(weights: dict[str, np.ndarray], k: int, threads: int) -> Call | None:
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed and left out")
        return None
    import torch

    torch.set_num_threads(threads)
    fc1, fc2 = torch.from_numpy(weights["fc1"]), torch.from_numpy(weights["fc2"])

    @torch.no_grad()
    def call(x: np.ndarray, logits: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(x)
        scores, chosen = torch.topk(torch.softmax(torch.from_numpy(logits), -1), k)
        scores = scores / scores.sum(-1, keepdim=True)
        y = torch.zeros_like(tokens)
        for expert in chosen.unique().tolist():
            rows, slots = torch.where(chosen == expert)
            hidden = torch.nn.functional.linear(tokens[rows], fc1[expert])
            hidden = torch.nn.functional.silu(hidden[:, 0::2]) * hidden[:, 1::2]
            out = torch.nn.functional.linear(hidden, fc2[expert])
            y.index_add_(0, rows, out * scores[rows, slots, None])
        return y.numpy()

    return call


def measure(layer: str, tokens: int, calls: dict[str, Call], seconds: float) -> dict[str, Any]:
    """One row of the table."""
    d, f, E, k = LAYERS[layer]
    random = np.random.default_rng(tokens)
    cases = [
        (random.standard_normal((tokens, d), dtype=np.float32), random.standard_normal((tokens, E), dtype=np.float32))
        for _ in range(CASES)
    ]
    results = {name: call(*cases[0]) for name, call in calls.items()}
    turns = {name: itertools.cycle(cases) for name in calls}
    bound = {name: (lambda name=name, call=call: call(*next(turns[name]))) for name, call in calls.items()}
    times = {name: summary(values) for name, values in interleaved(bound, seconds).items()}
    row: dict[str, Any] = {"layer": f"{layer} (d={d}, f={f}, E={E}, k={k})", "tokens": tokens}
    for name, value in times.items():
        row |= {f"{name} min ms": value["min_ms"], f"{name} median ms": value["median_ms"]}
    for name in calls:
        if name != "moec":
            row[f"{name} / moec"] = times[name]["median_ms"] / times["moec"]["median_ms"]
            row[f"difference to {name}"] = float(np.abs(results[name] - results["moec"]).max())
    return row


def bench_layer(layer: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    import moec

    d, f, E, k = LAYERS[layer]
    weights = make_weights(d, f, E)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "layer.onnx")
        save_model(path, weights, k)
        start = time.perf_counter()
        model = moec.compile(str(path), threads=args.threads)
        compile_seconds, memory = time.perf_counter() - start, peak_memory_mb()
        calls: dict[str, Call | None] = {
            "moec": lambda x, logits: model.run({"x": x, "logits": logits})["y"],
            "onnxruntime": onnxruntime_call(path, args.threads),
            "pytorch": pytorch_call(weights, k, args.threads),
        }
    present = {name: call for name, call in calls.items() if call is not None}
    rows = [measure(layer, tokens, present, args.seconds) for tokens in args.tokens]
    return [row | {"compile s": compile_seconds, "peak memory MB": memory} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 128, 512])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--seconds", type=float, default=3.0, help="least time per row")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = [row for layer in args.layers for row in bench_layer(layer, args)]
    print_markdown(rows)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
