"""Damaged artifacts: each loads and runs, or is refused in one line. See docs/testing.md.

python -m tests.instruments.artifacts 1000 --seed 3
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pathlib
import random
import sys
import tempfile
from typing import Any

import numpy as np
import onnx

import moec
from moec.common.errors import DefectError, MoecError
from tests.instruments import artifact_edits
from tests.instruments.artifact_edits import Edit
from tests.isolated import Lost, run_isolated

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[n,2] ids, float[n,2,8] x) => (float[n,2,4] y, int64[n,2] same)
<float[11,8] table = {TABLE}, float[8,4] w = {W}> {
  rows = Gather (table, ids)
  sums = Add (rows, x)
  logits = MatMul (sums, w)
  y = Softmax <axis = -1> (logits)
  same = Identity (ids)
}"""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Changes of the artifact at ``base``, and whether it is made one file of then."""

    base: str
    edits: tuple[Edit, ...]
    as_zip: bool

    def __str__(self) -> str:
        return "; ".join(map(str, self.edits)) + (" (zip)" if self.as_zip else "")


Verdict = tuple[str, str]
"""``pass``, ``refused``, ``wrong``, ``crashed`` or ``hung``, and a message."""


def make_base(folder: pathlib.Path) -> pathlib.Path:
    """The artifact that is damaged."""
    moec.compile(make_model(), output=folder / "base.moec", threads=2)
    return folder / "base.moec"


def make_model() -> onnx.ModelProto:
    """Make the model whose artifact is mutated."""
    generator = np.random.default_rng(0)
    numbers = {name: generator.standard_normal(size) for name, size in (("TABLE", 88), ("W", 32))}
    text = TEXT
    for name, values in numbers.items():
        text = text.replace(name, ", ".join(f"{value:.3f}" for value in values))
    return onnx.parser.parse_model(text)


def make_mutant(base: pathlib.Path, seed: int, index: int) -> Mutant:
    """Number ``index`` of a sweep."""
    rng = random.Random(f"{seed}/{index}")
    return Mutant(str(base), artifact_edits.random_edits(rng, base), rng.random() < 0.15)


def judge(mutant: Mutant) -> Verdict:
    """Load, describe, run and save it."""
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name, "model.moec")
        artifact_edits.copy(pathlib.Path(mutant.base), path)
        artifact_edits.apply(path, mutant.edits)
        if mutant.as_zip:
            path = zipped(path, path.with_suffix(".zip"))
        try:
            outputs = _use(path)
        except MoecError as error:
            # What is computed of what was forged: that looks like a compiler that made a mistake.
            is_no_refusal = isinstance(error, DefectError) and _means_the_same(mutant.edits)
            return ("crashed" if is_no_refusal or "\n" in str(error) else "refused"), str(error)
        except Exception as error:
            return "crashed", f"{type(error).__name__}: {error}"
        if _means_the_same(mutant.edits) and not _agree(outputs, _use(pathlib.Path(mutant.base))):
            return "wrong", "results differ"
        return "pass", ""


def _use(path: pathlib.Path) -> dict[str, Any]:
    model = moec.load(path)
    model.describe()
    for kernel in model.kernels.values():
        for form in kernel.forms:
            kernel.source(form)
    generator = np.random.default_rng(1)
    values = {"ids": np.arange(6).reshape(3, 2), "x": generator.standard_normal((3, 2, 8)).astype(np.float32)}
    outputs = model.run(values)
    model.save(path.with_name("copy.zip" if path.suffix == ".zip" else "copy.moec"))
    return outputs


def _means_the_same(edits: tuple[Edit, ...]) -> bool:
    """Whether nothing was changed and signed again that says what is computed of what."""
    return not any(edit.where[0] in ("inputs", "outputs", "weights", "programs") for edit in edits)


def _agree(outputs: dict[str, Any], expected: dict[str, Any]) -> bool:
    return list(outputs) == list(expected) and all(np.array_equal(outputs[name], expected[name]) for name in expected)


def zipped(folder: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Pack an artifact into one file."""
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def verdicts(mutants: list[Mutant], workers: int = 2) -> list[tuple[Mutant, Verdict]]:
    """Judge each mutant, in processes with 4 GB of memory and 60 seconds for each."""
    results = []
    for mutant, result in run_isolated(judge, mutants, workers=workers):
        results.append((mutant, (result.kind, result.detail) if isinstance(result, Lost) else result))
    return results


def shrink(mutant: Mutant, verdict: Verdict) -> Mutant:
    """The mutant with the fewest changes that comes to the same kind of end."""
    smaller = [dataclasses.replace(mutant, as_zip=False)] if mutant.as_zip else []
    smaller += [
        dataclasses.replace(mutant, edits=mutant.edits[:n] + mutant.edits[n + 1 :]) for n in range(len(mutant.edits))
    ]
    for one in smaller:
        if one.edits:
            ((_, again),) = verdicts([one])
            if again[0] == verdict[0]:
                return shrink(one, again)
    return mutant


def sweep(base: pathlib.Path, count: int, seed: int, workers: int = 2) -> tuple[dict[str, int], list[str]]:
    """Count the mutants by verdict, and describe the shrunk failures."""
    result = verdicts([make_mutant(base, seed, index) for index in range(count)], workers)
    counts = collections.Counter(verdict[0] for _, verdict in result)
    failures = [
        f"{verdict[0]}: {shrink(mutant, verdict)}: {verdict[1][:300]}"
        for mutant, verdict in result
        if verdict[0] not in ("pass", "refused")
    ]
    return dict(counts), failures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts, failures = sweep(make_base(pathlib.Path(name)), arguments.count, arguments.seed)
    print(*failures, sep="\n")
    print(", ".join(f"{status} {counts.get(status, 0)}" for status in ("pass", "refused", "wrong", "crashed", "hung")))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
