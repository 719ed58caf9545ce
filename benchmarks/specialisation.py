"""Cost of specialised experts to a language model, on text that was not used to select anything.

``python benchmarks/specialisation.py MODEL TOKENIZER TEXTS --calibrate brown``: MODEL and TOKENIZER are those of
``examples/moe_lm`` or ``examples/smollm2_moe``, TEXTS the folder that the former's ``texts.py`` makes. Every variant
that uses data is made ``--seeds`` times, with profiles of other rows of the calibration text; all are judged on the
same held-out rows of every text. Prints a table: the change of the perplexity against the float model in percent, mean
over the seeds and, behind it, how far the furthest is from it. Results are kept in ``--output``, so an interrupted run
goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import re
import tempfile

import numpy as np
from tokenizers import Tokenizer

import moec
from moec.tools.evaluate import evaluate
from moec.tools.profiling import profile

TEXTS = ("brown", "python", "bible")
LENGTH, BATCH = 128, 32
FORMATS = {
    "int8": "int8",
    "int4": "int4,group=32",
    "int4z": "int4,group=32,zero_points=true",
    "int3": "int3,group=32",
    "int2": "int2,group=32",
}
EVEN, ODD = "+".join(map(str, range(0, 16, 2))), "+".join(map(str, range(1, 16, 2)))


REPAIRS = {
    "rescaled": "rescale-experts{profile=PROFILE}",
    "router tuned": "tune-router{profile=PROFILE}",
    "both": "rescale-experts{profile=PROFILE},tune-router{profile=PROFILE}",
}


def variants() -> dict[str, str]:
    """Pipelines after O2 by name; PROFILE is replaced for each seed."""
    pipelines = {f"{name} nearest": f"quantize-experts{{format={form}}}" for name, form in FORMATS.items()}
    gptq = "method=gptq,profile=PROFILE"
    for name, form in FORMATS.items():
        pipelines[f"{name} gptq"] = f"quantize-experts{{format={form},{gptq}}}"
    pipelines["int2 and int3 in turns, gptq"] = (
        f"quantize-experts{{format=int3,group=32,experts={EVEN},{gptq}}},"
        f"quantize-experts{{format=int2,group=32,experts={ODD},{gptq}}}"
    )
    for bits in (3.5, 3.0, 2.5):
        pipelines[f"assign-bits {bits}, gptq"] = f"assign-bits{{avg={bits},profile=PROFILE}}"
    for method in ("reap", "frequency", "random"):
        seeded = ",seed=SEED" if method == "random" else ""
        pipelines[f"3/4 of the experts, {method}"] = (
            f"prune-experts{{keep=0.75,method={method},profile=PROFILE{seeded}}}"
        )
    pipelines["3/4 of the experts, ream"] = "merge-experts{keep=0.75,profile=PROFILE}"
    for name, passes in list(pipelines.items()):
        for repair, more in REPAIRS.items():
            rounded = name in ("int3 nearest", "int2 nearest") and repair == "rescaled"
            if rounded or name.startswith("3/4 of the experts"):
                pipelines[f"{name}, {repair}"] = f"{passes},{more}"
    for keep in (0.9, 0.8, 0.7):
        pipelines[f"{keep:.0%} of the calls, by ratio"] = f"skip-experts{{keep={keep},profile=PROFILE,method=ratio}}"
    for keep in (0.75, 0.5):
        pipelines[f"{keep:.0%} of the calls, by k"] = f"skip-experts{{keep={keep},profile=PROFILE,method=k}}"
    for rank, base in itertools.product((32, 16), ("shared", "none")):
        words = {"shared": "with a shared base", "none": "without a base"}[base]
        pipelines[f"rank {rank} of 64, {words}"] = f"low-rank-experts{{rank={rank},base={base},profile=PROFILE}}"
    pipelines["3/4 of the hidden units"] = "prune-hidden-units{keep=0.75,profile=PROFILE}"
    return pipelines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("tokenizer", type=pathlib.Path)
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("--calibrate", choices=TEXTS, default="brown")
    parser.add_argument("--judge", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--rows", type=int, default=160, help="Rows of each text that variants are judged on.")
    parser.add_argument("--calibration-rows", type=int, default=320)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("specialisation.json"))
    parser.add_argument("--only", default="", help="Variants whose names this regular expression is found in.")
    options = parser.parse_args()
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        run(options, pathlib.Path(folder), results)
    print_table(results, options.judge)


def run(options: argparse.Namespace, folder: pathlib.Path, results: dict[str, dict[str, list[float]]]) -> None:
    held_out = {}
    for text in options.judge:
        held_out[text] = folder / f"{text}.npz"
        np.savez(held_out[text], ids=batches(rows_of(options, f"{text}.heldout")[: options.rows]))
    if "float" not in results:
        results["float"] = {text: [loss] for text, loss in losses(options.model, "O2", held_out).items()}
    for name, passes in variants().items():
        if not re.search(options.only, name):
            continue
        for seed in range(options.seeds if "PROFILE" in passes else 1):
            if len(results.get(name, {}).get(options.judge[0], ())) > seed:
                continue
            chosen = passes.replace("SEED", str(seed))
            if "PROFILE" in passes:
                chosen = chosen.replace("PROFILE", str(profiled(options, folder, seed)))
            for text, loss in losses(options.model, f"O2,{chosen}", held_out).items():
                results.setdefault(name, {}).setdefault(text, []).append(loss)
            options.output.write_text(json.dumps(results, indent=1))
            print(name, seed, {text: round(of[-1], 4) for text, of in results[name].items()}, flush=True)


def rows_of(options: argparse.Namespace, name: str) -> np.ndarray:
    """Encode all rows of a text to ids [rows, length]."""
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    lines = (options.texts / f"{name}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    ids = np.array([id for encoding in tokenizer.encode_batch(lines) for id in encoding.ids])
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)


def batches(rows: np.ndarray) -> np.ndarray:
    """Split ids [rows, length] into [batches, rows of one, length]."""
    return rows.reshape(-1, min(BATCH, len(rows)), LENGTH)


def profiled(options: argparse.Namespace, folder: pathlib.Path, seed: int) -> pathlib.Path:
    path = folder / f"{seed}.moeprof"
    if not path.exists():
        rows = rows_of(options, options.calibrate)
        chosen = np.random.default_rng(seed).choice(len(rows), options.calibration_rows, replace=False)
        np.savez(folder / "seen.npz", ids=batches(rows[np.sort(chosen)]))
        profile(options.model, [folder / "seen.npz"], path)
    return path


def losses(model: pathlib.Path, passes: str, held_out: dict[str, pathlib.Path]) -> dict[str, float]:
    compiled = moec.compile(model, passes=passes)
    by_text = {}
    for text, data in held_out.items():
        (judged,) = evaluate([compiled], [data], metrics=["loss"]).models
        by_text[text] = judged.qualities["loss"].value
    return by_text


def print_table(results: dict[str, dict[str, list[float]]], texts: list[str]) -> None:
    base = {text: values[0] for text, values in results["float"].items()}
    print("| variant |", " | ".join(texts), "|")
    print("|---|" + "---|" * len(texts))
    print("| float: perplexity |", " | ".join(f"{math.exp(base[text]):.2f}" for text in texts), "|")
    for name, by_text in results.items():
        if name != "float":
            cells = [cell([100 * math.expm1(loss - base[text]) for loss in by_text[text]]) for text in texts]
            print(f"| {name} |", " | ".join(cells), "|")


def cell(changes: list[float]) -> str:
    mean = float(np.mean(changes))
    deviation = f" ± {max(abs(change - mean) for change in changes):.2f}" if len(changes) > 1 else ""
    return f"{mean:+.2f}%{deviation}"


if __name__ == "__main__":
    main()
