"""Compile a tiny random model of every architecture of GGUF files, and one for every format of weights, compare logits
with llama.cpp's, and write benchmarks/results/gguf.md and the logits that tests expect (tests/golden/gguf_logits.npz).

    python tools/gguf_models.py          # needs llama-cpp-py-sync; some seconds for each model

llama.cpp computes everything in float32, keys and values too. A file in another format is decoded to float32 weights
for it, because llama.cpp rounds activations to 8 bits where weights are quantised.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENT, GOLDEN = ROOT / "benchmarks" / "results" / "gguf.md", ROOT / "tests" / "golden" / "gguf_logits.npz"
MARK = "<!-- rows -->"
Array = np.ndarray[Any, Any]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.path.insert(0, str(ROOT))
    tiny = importlib.import_module("tests.frontend.gguf.tiny_models")
    from moec.frontend.gguf.file.reader import BLOCKS

    expected, rows, formats = {}, [], [name for name, *_ in BLOCKS.values() if name != "F32"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.gguf")
        for name, (architecture, _, _) in tiny.MODELS.items():
            expected[name] = reference(tiny.write_model(name, path), tiny.IDS)
            rows.append(f"| `{architecture}` | {name} | {_row(path, tiny.IDS, expected[name])} |")
            print(rows[-1], flush=True)
        bits = [_format_row(tiny, pathlib.Path(folder), kind) for kind in formats]
        pruned = [*pruned_rows(tiny, pathlib.Path(folder))]
    np.savez_compressed(GOLDEN, **expected)
    head, *_ = DOCUMENT.read_text().split(MARK)
    tables = [ARCHITECTURES, *rows, "", FORMATS, *bits, "", PRUNED, *pruned]
    DOCUMENT.write_text(f"{head}{MARK}\n\n" + "\n".join(tables) + "\n")


ARCHITECTURES = "| architecture | model | MoE layers | error |\n|---|---|---|---|"
NOT_PRUNED = ("gemma4 with experts",)
"""Models that are refused because routing weights are multiplied by a factor of each expert."""
PRUNED = "| pruned model | experts | error |\n|---|---|---|"
FORMATS = "| format | bits in the file | in an artifact | error |\n|---|---|---|---|"


def _row(path: pathlib.Path, ids: Array, expected: Array) -> str:
    """Write the number of layers of experts, and the largest difference of logits, as a share of the largest."""
    import moec

    model = moec.compile(path, passes="O2")
    actual = model.run({"input_ids": ids[None]})["logits"][0]
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    return f"{len(model.describe()['moe_blocks'])} | {error:.0e}"


def pruned_rows(tiny: Any, folder: pathlib.Path) -> Iterator[str]:
    """Export models of twelve experts with nine of them, and write the difference between llama.cpp's logits of the new
    file and those of moec's reference interpreter after the same passes."""
    import moec
    from moec.frontend.gguf import import_file
    from moec.ir.dialect import has_experts
    from moec.ir.interpreter import run
    from moec.passes import pipeline

    source, pruned, passes = folder / "source.gguf", folder / "pruned.gguf", "O2,prune-experts{keep=0.75,method=random}"
    for name in tiny.MODELS:
        with mock.patch.multiple(tiny, EXPERTS=12, MOE={"expert_count": 12, "expert_used_count": 2}):
            graph = import_file(tiny.write_model(name, source))
        if not any(map(has_experts, graph.graph)) or name in NOT_PRUNED:
            continue
        pruned.unlink(missing_ok=True)
        parts = moec.export(source, pruned, passes=passes).parts
        expected = reference(pruned, tiny.IDS)
        pipeline.run(graph, pipeline.parse(passes))
        actual = run(graph, {"input_ids": tiny.IDS[None]})["logits"][0]
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        yield f"| {name} | {len(parts)} {parts[0].written_as} | {error:.0e} |"


def _format_row(tiny: Any, folder: pathlib.Path, kind: str) -> str:
    """Write the row of a format: a Mixtral whose matrices are in it, against llama.cpp on the same numbers in
    float32."""
    from moec.frontend.gguf.file import formats, reader

    files = importlib.import_module("tests.frontend.gguf.gguf_files")
    path, floats = folder / "model.gguf", folder / "floats.gguf"
    with mock.patch.multiple(tiny, **tiny.WIDE):
        file = reader.read_file(tiny.write_model("mixtral", path, kind))
    decoded = {name: files.stored(formats.decoded(tensor)) for name, tensor in file.tensors.items()}
    files.write_file(floats, file.metadata, decoded)
    bits, there = formats.stored_bits(kind)
    error = _row(path, tiny.IDS, reference(floats, tiny.IDS)).rsplit("| ", 1)[1]
    return f"| {kind} | {there:g} | {bits:g} | {error} |"


def reference(path: pathlib.Path, ids: Array) -> Array:
    """Compute llama.cpp's logits [S,V] of a file."""
    from llama_cpp_py_sync import _cffi_bindings

    llama, ffi = _cffi_bindings.get_lib(), _cffi_bindings.get_ffi()
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"{path}: llama.cpp does not load it")
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 256, 256, 256
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = 0
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.logits[place] = int(token), place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    if llama.llama_decode(context, batch):
        raise SystemExit(f"{path}: llama.cpp does not run it")
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = [ffi.unpack(llama.llama_get_logits_ith(context, i), size) for i in range(len(ids))]
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.array(rows, np.float32)


if __name__ == "__main__":
    main()
