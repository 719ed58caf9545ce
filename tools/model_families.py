"""Compile a tiny random model of each family of MoE language models in the installed transformers, from a folder that
save_pretrained wrote, compare it with PyTorch's eager mode, and write a row for each into benchmarks/results/models.md.

    python tools/model_families.py            # all families, half a minute each where nothing else runs
    python tools/model_families.py mixtral    # these alone; other rows stay as they are
    python tools/model_families.py --check --sample 6    # compare with the table instead: six families, others each day
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tiny_families import expert_layers, families, random_model, speaking_part

DOCUMENT = pathlib.Path(__file__).parent.parent / "benchmarks" / "results" / "models.md"
SECONDS = 300
"""Seconds of the processor, for one family."""
NO_MODEL = "no tiny model"
LARGEST_ERROR = 1e-4
"""Largest error of logits, as a share of the largest: the order of sums causes less."""
HEAD = """# Families of MoE language models

A tiny model of each, with random weights and two layers or so, written by `save_pretrained` and compiled as a folder:
does it compile, how many of its MoE layers became one operator or a graph over dispatched rows, and how far off is the
largest of all logits from PyTorch's eager mode, as a share of the largest logit, at 1 x 1, 2 x 7, 3 x 40 and 1 x 300
tokens (both in float32). Where indexers choose what attention sees, they choose less than all.

All but `deepseek_v4`, `minimax_m3_vl_text` and `qwen4_exp_text`, whose attention to blocks of keys is exported without
a cache, keep their states: keys and values, keys of indexers, the last inputs of convolutions, states of recurrences.
Texts in parts have the logits of the whole, as far as they have them in transformers (`doge`'s mask is not causal
there).
Of models that see images, too (`llama4`, `qwen3_vl_moe`, ...), the language model is compiled, from the whole folder.
`python tools/model_families.py` makes the rows with the transformers that is installed (5.24 has these: all families of
language models that have experts, and those that see of which the tool can make a tiny one). Each row says when it was
made and with what; one that does not is older than such notes. A nightly test makes some of them anew, others each day,
and fails where a row says something else (`--check`). Files of llama.cpp: [gguf.md](gguf.md).

| model type | compiles | raised of MoE layers | error | made | reason or remark |
|---|---|---|---|---|---|"""
SHAPES = ((1, 1), (2, 7), (3, 40), (1, 300))
"""Batch and length of the comparisons; the last is longer than models' chunks and windows."""


def examine(family: str) -> dict[str, Any]:
    """Compile a tiny model of one family and compare it with PyTorch."""
    import numpy as np
    import torch

    import moec

    row: dict[str, Any] = {"family": family, "compiles": False, "raised": 0, "layers": 0, "error": None, "reason": ""}
    try:
        module = random_model(family)
    except Exception as error:
        return row | {"reason": f"{NO_MODEL}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    row["layers"] = expert_layers(module)
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        start = time.perf_counter()
        try:
            compiled = moec.compile(folder)
        except moec.MoecError as error:
            return row | {"reason": str(error).replace(f"{folder}: ", "")[:300]}
        row |= {"compiles": True, "seconds": round(time.perf_counter() - start, 1)}
        description = compiled.describe()
        row["raised"] = len(description["moe_blocks"])
        warned = [entry for entry in description["remarks"] if entry["severity"] == "warning"]
        row["reason"] = "; ".join(f"{entry['subject']}: {entry['message']}"[:200] for entry in warned[:2])
        worst = 0.0
        for shape in SHAPES:
            ids = np.random.default_rng(sum(shape)).integers(3, 90, shape)
            with torch.no_grad():
                expected = speaking_part(module)(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
            try:
                actual = compiled.run({"input_ids": ids})["logits"]
            except moec.MoecError as error:
                return row | {"reason": f"{shape}: {error}"[:300]}
            worst = max(worst, float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max())))
    return row | {"error": worst}


def in_own_process(family: str) -> dict[str, Any]:
    """Examine a family in a fork of this process, which has finished slow imports. A process that dies or takes too
    long gives a row like any other."""
    reader, writer = os.pipe()
    start, child = time.process_time(), os.fork()
    if child == 0:
        limit = int(start) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        os.write(writer, json.dumps(examine(family)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if text:
        return json.loads(text)
    reason = f"more than {SECONDS} s" if status == -signal.SIGXCPU else f"the process ended with {status}"
    return {"family": family, "compiles": False, "raised": 0, "layers": 0, "error": None, "reason": reason}


def table_row(row: dict[str, Any]) -> str:
    error = "" if row["error"] is None else f"{row['error']:.0e}"
    reason = row["reason"].replace("|", "\\|")
    raised = f"{row['raised']} of {row['layers']}" if row["layers"] else ""
    cells = (f"`{row['family']}`", "yes" if row["compiles"] else "no", raised, error, made_today(), reason)
    return f"| {' | '.join(cells)} |"


def made_today() -> str:
    """Write the day, and the versions that affect rows."""
    used = (f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in ("transformers", "torch"))
    return ", ".join((datetime.datetime.now(datetime.UTC).date().isoformat(), *used))


def disagreement(expected: str, actual: str) -> str:
    """Describe the parts of the table's row that a new one contradicts; empty where there are none. Errors below
    :data:`LARGEST_ERROR`, days and remarks may differ."""
    before, after = expected.split(" | "), actual.split(" | ")
    if before[:3] != after[:3]:
        return f"the table says {' | '.join(before[:4])} |, today it is {actual}"
    if before[3] and not (after[3] and float(after[3]) <= LARGEST_ERROR):
        return f"error {after[3]}, expected at most {LARGEST_ERROR:g}: {actual}"
    return ""


def sample(names: Sequence[str], count: int) -> list[str]:
    """Select some names, others each day, until all had their turn."""
    first = datetime.datetime.now(datetime.UTC).date().toordinal() * count
    return [names[(first + place) % len(names)] for place in range(min(count, len(names)))]


def write(rows: dict[str, str]) -> None:
    lines = [f"{HEAD}", *(rows[family] for family in sorted(rows))]
    DOCUMENT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def known_rows() -> dict[str, str]:
    """Read the rows of the document, by family."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    return {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}


def check(chosen: Iterable[str], rows: dict[str, str]) -> list[str]:
    """List the rows of the table that a new run contradicts. Families without a row are skipped."""
    wrong = [f"`{family}`: this tool finds no such family" for family in sorted(rows.keys() - families().keys())]
    for family in chosen:
        row = table_row(in_own_process(family))
        print(row, flush=True)
        wrong += [reason] if (reason := disagreement(rows[family], row)) else []
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--check", action="store_true", help="compare with the table and write nothing")
    parser.add_argument("--sample", type=int, metavar="N", help="N families, others each day")
    arguments = parser.parse_args()

    import moec.frontend.huggingface.binding
    import moec.frontend.pytorch.importer  # noqa: F401

    rows = known_rows()
    chosen = arguments.families or sorted(rows if arguments.check else families())
    if arguments.sample is not None:
        chosen = sample(chosen, arguments.sample)
    if arguments.check:
        wrong = check(chosen, rows)
        print(*wrong, sep="\n", end="\n" if wrong else "")
        sys.exit(1 if wrong else 0)
    for family in chosen:
        row = in_own_process(family)
        print(table_row(row), flush=True)
        if family in rows or not row["reason"].startswith(NO_MODEL):
            rows[family] = table_row(row)
            write(rows)


if __name__ == "__main__":
    main()
