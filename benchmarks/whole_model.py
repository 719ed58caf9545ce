"""A whole MoE language model: moec against onnxruntime and PyTorch on the same graph, fp32, random weights.

    python benchmarks/whole_model.py [--layers 4] [--threads 2] [--json FILE]

The model has the shape of Granite-3.1-1B-A400M (d 1024, f 512, 32 experts, top-8, vocabulary 49155) with fewer layers;
transformers builds it and PyTorch exports it. Needs the extra ``torch``. Every contestant sees the same token ids in
interleaved runs; the figures are milliseconds per forward pass over the whole sequence, without a KV cache.
The exported graph copies every chosen expert's weights per token, so onnxruntime sits out the rows where those copies
alone would fill the memory.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
from timing import interleaved, peak_memory_mb, print_markdown, summary, write_json

VOCABULARY, HIDDEN, INTERMEDIATE, TOP_K = 49155, 1024, 512, 8


def fits_in_memory(tokens: int) -> bool:
    """Whether the gathered fp32 gate and up weights of one layer take less than half of the machine's memory."""
    gathered = tokens * TOP_K * 2 * HIDDEN * INTERMEDIATE * 4
    return gathered < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def build_module(layers: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GraniteMoeConfig

    torch.manual_seed(0)
    config = GraniteMoeConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=8, num_local_experts=32, num_experts_per_tok=TOP_K,
        max_position_embeddings=4096, use_cache=False,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def export(module: Any, path: pathlib.Path) -> None:
    import torch

    dynamic = torch.export.Dim.DYNAMIC
    module.set_experts_implementation("batched_mm")
    torch.onnx.export(
        module, (), path, kwargs={"input_ids": torch.zeros(2, 7, dtype=torch.int64)}, dynamo=True, external_data=True,
        dynamic_shapes={"input_ids": {0: dynamic, 1: dynamic}}, verbose=False,
    )  # fmt: skip
    module.set_experts_implementation("eager")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 128, 512])
    parser.add_argument("--seconds", type=float, default=5.0, help="least time per row")
    parser.add_argument("--json")
    args = parser.parse_args()

    import onnxruntime
    import torch

    import moec

    torch.set_num_threads(args.threads)
    module = build_module(args.layers)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.onnx")
        export(module, path)
        before = peak_memory_mb()
        start = time.perf_counter()
        model = moec.compile(str(path), threads=args.threads)
        compile_seconds = time.perf_counter() - start
        compile_memory = peak_memory_mb()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (value["name"] for value in model.describe()["inputs"])

    rows = []
    for tokens in args.tokens:
        ids = np.random.default_rng(tokens).integers(0, VOCABULARY, (1, tokens))
        tensor = torch.from_numpy(ids)
        calls = {
            "moec": lambda ids=ids: next(iter(model.run({name: ids}).values())),
            "pytorch eager": lambda tensor=tensor: module(tensor).logits.numpy(),
        }
        if fits_in_memory(tokens):
            calls["onnxruntime"] = lambda ids=ids: session.run(None, {name: ids})[0]
        with torch.no_grad():
            ours, theirs = calls["moec"](), calls["pytorch eager"]()
            times = {key: summary(values) for key, values in interleaved(calls, args.seconds, least=3).items()}
        best = min(value["min_ms"] for key, value in times.items() if key != "moec")
        row: dict[str, Any] = {"tokens": tokens}
        for key in ("moec", "onnxruntime", "pytorch eager"):
            row[f"{key} min"] = times[key]["min_ms"] if key in times else "no memory"
            row[f"{key} median"] = times[key]["median_ms"] if key in times else "no memory"
        row["speed-up over best"] = best / times["moec"]["min_ms"]
        row["max difference"] = float(np.abs(ours - theirs).max())
        rows.append(row)
    print(f"Granite-shaped, {args.layers} layers, fp32, {args.threads} threads; milliseconds")
    print_markdown(rows)
    print(
        f"\ncompile {compile_seconds:.1f} s; "
        f"peak memory {compile_memory:.0f} MB, of which {before:.0f} MB before compiling"
    )
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
