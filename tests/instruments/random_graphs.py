"""Random graphs with dynamic sizes, none and one among them, against onnxruntime.

python -m tests.instruments.random_graphs 1000                # prints failures, shrunk, and a table
python -m tests.instruments.random_graphs 16 --seed 42 --nodes 8 15 --save DIR
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from ..isolated import Lost, Worker
from .graph_drafts import Draft, Impossible
from .graph_operators import FAMILIES
from .graphs import Graph, case_of, joined, shrunk
from .outcomes import Case, Outcome, judge, run_onnxruntime, started_worker, table

PER_MODEL = 8
"""Graphs that are compiled together; when these fail, one by one."""
_RUNS = [[(3, 4), (1, 2), (0, 5)], [(1, 1), (5, 0), (2, 7)], [(4, 1), (0, 0), (33, 3)], [(2, 3), (17, 1), (1, 16)]]
_DIMS = [("N", 4), ("N", "M"), (4,), ("M",), (1, "N"), ("N", 1, 3), (), ("M", 2, 2), (1,), (2, "N", "M"), (3, 3)]
_TYPES = ["float32", "float32", "float32", "float32", "int64", "bool", "int32", "float16", "float64", "uint8", "int8"]
NODES = (2, 7)


def drawn(seed: int, nodes: Sequence[int] = NODES) -> list[Graph]:
    """Graphs of so many nodes, least and most; all of a seed have the same runs."""
    generator = np.random.default_rng(seed)
    sizes = _RUNS[generator.integers(len(_RUNS))]
    return [_graph(Draft(generator, sizes, f"g{number}_"), nodes) for number in range(PER_MODEL)]


def _graph(draft: Draft, nodes: Sequence[int]) -> Graph:
    for _ in range(3):
        draft.input(draft.one_of(*_TYPES), draft.one_of(*_DIMS))
    draft.input("float32", draft.one_of(*_DIMS))
    left, wished = 10 * nodes[1], int(draft.generator.integers(nodes[0], nodes[1] + 1))
    while left and wished:
        left -= 1
        try:
            wished -= draft.apply(draft.one_of(*FAMILIES)(draft))
        except Impossible:
            continue
    return draft.finished()


def sweep(count: int, seed: int, worker: Worker, nodes: Sequence[int] = NODES) -> Iterator[tuple[Graph, Outcome]]:
    while count > 0:
        result = worker.do((drawn, seed, nodes))
        graphs: list[Graph] = [] if isinstance(result, Lost) else result  # onnxruntime may die of a node
        graphs = [graph for graph in graphs if graph.outputs][:count]
        seed, count = seed + 1, count - len(graphs)
        if not graphs:
            continue
        together = judge(case_of(joined(graphs)), worker)
        for graph in graphs:
            yield graph, together if together.status == "pass" else judge(case_of(graph), worker)


def smallest(graph: Graph, outcome: Outcome, worker: Worker) -> Graph:
    return shrunk(graph, lambda smaller: judge(case_of(smaller), worker).status == outcome.status)


def program(graph: Graph, worker: Worker) -> str:
    """The graph as text, its inputs, and what is wrong."""
    case = case_of(graph)
    feeds = "\n".join(f"  {name} = {array!r}" for feeds in case.feeds for name, array in feeds.items())
    return f"{onnx.printer.to_text(case.model.graph)}\n{feeds}\n  {judge(case, worker).detail}"


def save(case: Case, folder: pathlib.Path, name: str) -> None:
    """NAME.onnx, and NAME.npz with the inputs and, as ``want_...``, onnxruntime's outputs of the first run."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(case.model, folder / f"{name}.onnx")
    expected = run_onnxruntime(dataclasses.replace(case, feeds=case.feeds[:1]))
    names = [f"want_{output.name}" for output in case.model.graph.output]
    outputs = {} if isinstance(expected, Outcome) else dict(zip(names, expected[0], strict=True))
    np.savez(folder / f"{name}.npz", **case.feeds[0], **outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, nargs=2, default=NODES, metavar=("LEAST", "MOST"))
    parser.add_argument("--save", type=pathlib.Path, help="a folder for the smallest failing graphs")
    parser.add_argument("--refused", action="store_true", help="count the reasons of refusals")
    arguments = parser.parse_args()
    worker, outcomes, reasons = started_worker(), [], collections.Counter()
    for number, (graph, outcome) in enumerate(sweep(arguments.count, arguments.seed, worker, arguments.nodes)):
        outcomes.append(("random graphs", outcome))
        if outcome.status == "refused":
            reasons[outcome.detail] += 1
        if outcome.failed:
            small = smallest(graph, outcome, worker)
            print(f"{outcome.status}: graph {number}\n{program(small, worker)}\n", flush=True)
            if arguments.save:
                save(case_of(small), arguments.save, f"graph_{arguments.seed}_{number}")
    worker.close()
    if arguments.refused:
        print("\n".join(f"{count} refused: {reason}" for reason, count in reasons.most_common()))
    print(table(outcomes))


if __name__ == "__main__":
    main()
