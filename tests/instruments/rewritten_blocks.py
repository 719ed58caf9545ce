"""MoE blocks written otherwise at random: they compute the same, whether they are still recognised or not.

python -m tests.instruments.rewritten_blocks 200 --seed 3
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from ..isolated import Worker
from ..passes.raising.conftest import BATCHED, DENSE, INTEGERS, ROUTER, D, E, F, loop, weights
from ..text_models import give_constants
from .outcomes import Case, Outcome, judge, started_worker, table
from .rewrites import REWRITES

FORMULATIONS = {"batched": ROUTER + BATCHED, "dense": ROUTER + DENSE, "loop": ROUTER + loop([0, 1, 2, 3])}
_STACKS = {"batched": ((E, 2 * F, D), (E, D, F)), "dense": ((E, D, F), (E, F, D)), "loop": ((1,), (1,))}
_TOKENS = (3, 0, 1, 17)


def block(name: str) -> onnx.ModelProto:
    """A block of 4 experts, 2 for each token, of one formulation."""
    text = f"block (float[T,{D}] x) => (float[T,{D}] y) {{\n{FORMULATIONS[name]}\n}}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    generator = np.random.default_rng(7)
    stacks = dict(zip(("up", "down"), _STACKS[name], strict=True))
    arrays = {key: np.array(data, np.int64) for key, data in INTEGERS.items()} | weights()
    arrays |= {key: (generator.normal(size=shape) / 3).astype(np.float32) for key, shape in stacks.items()}
    arrays |= {f"expert_{e}": np.array(e) for e in range(E)} | {"scalar_zero": np.array(0), "scalar_one": np.array(1)}
    give_constants(proto, dict(sorted(arrays.items())))
    return proto


def rewritten(name: str, steps: Sequence[tuple[int, int]]) -> onnx.ModelProto:
    """The block after steps: which rewrite, and the seed of where it is done. Steps that find nothing do nothing."""
    proto = block(name)
    for rewrite, seed in steps:
        REWRITES[rewrite](proto.graph, np.random.default_rng(seed))
    return proto


def case_of(name: str, steps: Sequence[tuple[int, int]]) -> Case:
    generator = np.random.default_rng(1)
    feeds = [{"x": generator.standard_normal((count, D)).astype(np.float32)} for count in _TOKENS]
    return Case(rewritten(name, steps), feeds, 1e-4)


def sweep(count: int, seed: int, worker: Worker) -> Iterator[tuple[str, list[tuple[int, int]], Outcome]]:
    """Blocks after 1 to 8 rewrites; a formulation after another."""
    generator = np.random.default_rng(seed)
    names = list(FORMULATIONS)
    for number in range(count):
        length = int(generator.integers(1, 9))
        steps = [(int(generator.integers(len(REWRITES))), int(generator.integers(1 << 30))) for _ in range(length)]
        name = names[number % len(names)]
        yield name, steps, judge(case_of(name, steps), worker)


def smallest(name: str, steps: list[tuple[int, int]], outcome: Outcome, worker: Worker) -> str:
    """The failure after fewest steps, in words."""
    position = 0
    while position < len(steps):
        fewer = steps[:position] + steps[position + 1 :]
        if judge(case_of(name, fewer), worker).status == outcome.status:
            steps = fewer
        else:
            position += 1
    said = ", ".join(f"{REWRITES[rewrite].__name__} (seed {seed})" for rewrite, seed in steps)
    return f"{name} after {said or 'nothing'}: {judge(case_of(name, steps), worker).detail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    worker, outcomes = started_worker(), []
    for name, steps, outcome in sweep(arguments.count, arguments.seed, worker):
        outcomes.append((name, outcome))
        if outcome.status != "pass":
            print(f"{outcome.status}: {smallest(name, steps, outcome, worker)}", flush=True)
    worker.close()
    print(table(outcomes))


if __name__ == "__main__":
    main()
