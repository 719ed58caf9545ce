"""The step of one model: logits and a greedy text compared with what the emulator computed, the same bits from runs and
sessions as CUDA graphs, and tokens per second.

python -m carried.model_step [--emulate] NAME
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .loaded import load_model
from .places import options
from .tape import numbers

LARGEST_ERROR = 3e-2
"""Norm of the difference of logits as a share of the norm: two layers in bfloat16."""
REPEATS = 3
ROUNDS = 8
"""Times that a session runs the stored tokens on a GPU; in the emulator it runs them once."""


def main() -> int:
    asked = options(__doc__, "name")
    model = load_model(asked.folder, asked.name, emulate=asked.emulate)
    print(f"* {model!r}", flush=True)
    right = True
    for text, agrees in checks(asked, model):
        print(f"* {text}{'' if agrees else ', DIFFERS'}", flush=True)
        right &= agrees
    return 0 if right else 1


def checks(asked: Any, model: Any) -> Iterator[tuple[str, bool]]:
    """Compare results: texts, and whether they agree."""
    stored = np.load(asked.folder / "artifacts" / f"{asked.name}.npz")
    inputs = {name.removeprefix("in_"): _typed(stored, name) for name in stored.files if name.startswith("in_")}
    (output,) = (name for name in stored.files if name.startswith("out_"))
    expected, actual = _floats(_typed(stored, output)), model.run(inputs)[output.removeprefix("out_")]
    error = float(np.linalg.norm(_floats(actual) - expected) / np.linalg.norm(expected))
    yield f"results of {expected.shape}: error {error:.2g} of the norm", error <= LARGEST_ERROR
    runs = [model.run(inputs)[output.removeprefix("out_")].tobytes() for _ in range(1 if asked.emulate else REPEATS)]
    yield "repeated: bits", set(runs) == {actual.tobytes()}
    if "tokens" in stored.files:
        yield _text(model, stored, asked.emulate)
    yield from _captured(asked, model, stored, inputs, output.removeprefix("out_"))


def _captured(asked: Any, model: Any, stored: Any, inputs: dict[str, Any], output: str) -> Iterator[tuple[str, bool]]:
    """Run as a CUDA graph, which is captured in the second run, and compare with ``model``, which has no graphs."""
    from moec.common.errors import UnsupportedError

    try:
        graphs = load_model(asked.folder, asked.name, emulate=asked.emulate, cuda_graphs=True)
    except UnsupportedError as error:
        yield f"as a CUDA graph: refused: {error}", True
        return
    expected = model.run(inputs)[output].tobytes()
    yield "as a CUDA graph: bits", {graphs.run(inputs)[output].tobytes() for _ in range(REPEATS)} == {expected}
    if "tokens" in stored.files:
        tokens = np.tile(stored["tokens"], 1 if asked.emulate else ROUNDS)
        before = _graph_launches(asked.emulate)
        plain, slow = _decoded(model, stored["in_input_ids"], tokens)
        captured, fast = _decoded(graphs, stored["in_input_ids"], tokens)
        launches = _graph_launches(asked.emulate) - before if asked.emulate else None
        times = f"{len(tokens)} steps, {fast * 1e6:.0f} us a token, without graphs {slow * 1e6:.0f}"
        yield f"session as CUDA graphs: bits of {times}", captured == plain
        yield graphs_of_steps(graphs.artifact.program().fixed_lengths, len(tokens), launches)


def graphs_of_steps(fixed: Sequence[str], steps: int, launches: int | None) -> tuple[str, bool]:
    """Say whether a session's steps run as graphs, and whether that is as it has to be. ``fixed``: the nodes and states
    because of which a graph serves one length of the past; ``launches``: those of graphs during the steps, of which the
    first is none; None where nobody counts them."""
    if fixed:
        named = ", ".join(fixed[:3]) + (f" and {len(fixed) - 3} more" if len(fixed) > 3 else "")
        return f"steps run without graphs, since each computes with all of the past again: {named}", not launches
    counted = "" if launches is None else f": {launches} launches of graphs"
    return f"steps run as graphs{counted}", launches is None or launches >= steps - 1


def _graph_launches(emulate: bool) -> int:
    """Launches of graphs by this process so far; 0 on a GPU, where nobody counts them."""
    if not emulate:
        return 0
    from moec.simulators.cuda.driver import driver_calls

    return driver_calls().get("cuGraphLaunch", 0)


def _decoded(model: Any, prompt: np.ndarray, tokens: np.ndarray) -> tuple[list[bytes], float]:
    """Run a session on a prompt and then token by token. Returns the bits of each step's logits and the median seconds
    of the steps after the first two, of which the second captures."""
    session, logits, seconds = model.session(), [], []
    session.run(prompt)
    for token in tokens:
        start = time.perf_counter()
        logits.append(session.run(np.full((1, 1), token, np.int64)).tobytes())
        seconds.append(time.perf_counter() - start)
    return logits, statistics.median(seconds[2:])


def _text(model: Any, stored: Any, emulate: bool) -> tuple[str, bool]:
    """Continue a prompt. Other tokens than stored are no failure: numbers that nearly tie may change places."""
    from moec.runtime.generation import generate

    ids, expected = stored["in_input_ids"][0].tolist(), stored["tokens"].tolist()
    if not emulate:
        generate(model, [ids], max_new_tokens=4)  # loads code and allocates memory
    (generation,) = generate(model, [ids], max_new_tokens=len(expected))
    same = sum(a == b for a, b in zip(generation.ids, expected, strict=False))
    rate = (len(generation.ids) - 1) / max(generation.decode_seconds, 1e-9)
    return f"session: {same} of {len(expected)} tokens as stored, {rate:.1f} tokens/s", len(generation.ids) == len(
        expected
    )


def _typed(stored: Any, name: str) -> np.ndarray:
    """The array; bfloat16 is stored as its bits."""
    import ml_dtypes

    array = stored[name]
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array


def _floats(array: np.ndarray) -> np.ndarray:
    name = array.dtype.name
    return numbers(array.tobytes(), name).reshape(array.shape) if name == "bfloat16" else array.astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
