"""Table of the MoE layers that are raised after rewrites of their graphs.

python -m tests.raising alone --count 12          # every rewrite alone, on 12 layers each
python -m tests.raising alone --only "as einsum"  # those whose names contain a text, with every failure
python -m tests.raising chains 200 --seed 3       # after 30 to 40 rewrites; failures with the fewest that they need
python -m tests.raising case 17                   # the chain of seed 17, again
python -m tests.raising layers 100                # layers as they are
python -m tests.raising formulations              # modules in PyTorch, through both exporters
"""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Iterable

import numpy as np

from .blocks import draw_layer
from .cases import Case, alone, draw_case, is_gap, rewritten, smallest, verdict_of
from .judge import STATUSES, Verdict
from .registry import REWRITES

Results = Iterable[tuple[str, Verdict]]


def table(results: Results) -> str:
    """A row for each kind of rewrite: the number of times that each verdict came."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for kind, verdict in results:
        counts[kind][verdict.status] += 1
        counts["all"][verdict.status] += 1
    rows = [("", "raised", *STATUSES[1:])]
    for kind, counter in sorted(counts.items(), key=lambda item: item[0] == "all"):
        others = (str(counter[status] or "") for status in STATUSES[1:])
        rows.append((kind, f"{counter['raised']}/{counter.total()}", *others))
    return "\n".join(f"{name:46}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in rows)


def _alone(arguments: argparse.Namespace) -> None:
    results = []
    for name in [name for name in REWRITES if arguments.only in name]:
        failures = collections.Counter()
        for case, verdict in alone(name, arguments.count, arguments.seed):
            results.append((name, verdict))
            if verdict.status != "raised":
                failures[verdict.status] += 1
                if arguments.only or failures[verdict.status] == 1:
                    print(f"{verdict.status}: {case}: {verdict.detail}", flush=True)
    print(table(results))


def _chains(arguments: argparse.Namespace) -> None:
    results, needed = [], []
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        case = draw_case(seed)
        if is_gap(case.layer):
            continue
        verdict = verdict_of(case)
        results.append((case.layer.formulation, verdict))
        if verdict.status == "raised":
            continue
        fewest = smallest(case, verdict)
        needed += [(" + ".join(sorted({name for name, _ in fewest.steps})), verdict)]
        print(f"{verdict.status}: seed {seed}: {fewest}: {verdict_of(fewest).detail}", flush=True)
    print(table(needed))
    print(table(sorted(results, key=lambda result: result[0])))


def _layers(arguments: argparse.Namespace) -> None:
    results = []
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        layer = draw_layer(np.random.default_rng(seed))
        verdict = verdict_of(Case(layer))
        shared = ", shared expert first" if layer.shared == "first" else ""
        results += [(f"{layer.formulation}{shared}", verdict), (f"router: {layer.router}", verdict)]
        if verdict.status not in ("raised", "refused"):
            print(f"{verdict.status}: {layer}: {verdict.detail}", flush=True)
    print(table(sorted(results, key=lambda result: result[0])))


def _formulations(arguments: argparse.Namespace) -> None:
    from .exports import EXPORTERS, NotExportedError, verdict_of
    from .formulations import FORMULATIONS

    results = []
    for name, kind in FORMULATIONS.items():
        if arguments.only not in name:
            continue
        for exporter in EXPORTERS:
            said = "" if not kind.fits else f" (outside of the dialect: {kind.fits})"
            try:
                verdict = verdict_of(name, exporter)
            except NotExportedError as error:
                print(f"{name}, {exporter}: not exported: {error}", flush=True)
                continue
            group = "outside of the dialect" if kind.fits else "in the dialect"
            results += [(f"{exporter}, {group}", verdict)]
            print(f"{name}, {exporter}: {verdict.status}{said}: {verdict.detail}", flush=True)
    print(table(sorted(results, key=lambda result: result[0])))


def _case(arguments: argparse.Namespace) -> None:
    case = draw_case(arguments.seed)
    verdict = verdict_of(case)
    print(f"{verdict.status}: {case}: {verdict.detail}")
    if arguments.save:
        import onnx

        onnx.save(rewritten(case), arguments.save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    alone = commands.add_parser("alone")
    alone.add_argument("--count", type=int, default=12)
    alone.add_argument("--only", default="")
    alone.set_defaults(command=_alone)
    for name, command in (("chains", _chains), ("layers", _layers)):
        several = commands.add_parser(name)
        several.add_argument("count", type=int)
        several.set_defaults(command=command)
    formulations = commands.add_parser("formulations")
    formulations.add_argument("--only", default="")
    formulations.set_defaults(command=_formulations)
    single = commands.add_parser("case")
    single.add_argument("seed", type=int)
    single.add_argument("--save", help="Write the model there.")
    single.set_defaults(command=_case)
    for parser_of in (alone, *(commands.choices[name] for name in ("chains", "layers"))):
        parser_of.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    arguments.command(arguments)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
