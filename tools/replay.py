"""Process replay: what a change to the compiler does to what it makes of models.

    python tools/replay.py record -o before            # in a checkout without the change
    python tools/replay.py record -o after             # in one with it
    python tools/replay.py compare before after

A record holds, for each model and target, the passes with their options, the IR after each pass that changed it, the
texts that compilers are given (TIR, CUDA C, HLS C++), what was chosen and why, and a digest of each weight; or the
reason why the model is refused. No compiler runs. ``MODEL`` is the name of a model of this repository, by default all
of them, a file, or a folder of models. The target ``passes`` stands for the passes alone. A record that was interrupted
goes on where it was. ``compare`` ends with 1 if anything differs, or if there was nothing to compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import pathlib
import pkgutil
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from replaying.differences import differences
from replaying.models import ROOT, Model, chosen_models
from replaying.records import INDICES, Job, digest_of_sources, read_indices
from replaying.texts import PASSES

import moec
from moec import MoecError, passes, targets

TARGETS = (PASSES, "cpu:avx512vnni", "cuda:sm_80", "cuda:sm_90a", "hls:zcu102")
"""The processor has a name so that a record is the same on every machine."""
_MANY = 16
"""The number of jobs from which on importing all modules, for some seconds, takes less than what it saves."""


def record(folder: pathlib.Path, models: Mapping[str, Model], names: Sequence[str], count: int, again: bool) -> int:
    """Record models for the targets of these names, ``count`` at a time, each in a process of its own. ``again``:
    replace a record of other sources. Returns the exit code."""
    sources = digest_of_sources()
    others = {index.sources for index in read_indices(folder).values()} - {sources}
    if others and not again:
        return refuse(f"{folder}: holds a record of other sources; choose another folder, or --replace it")
    if others:
        shutil.rmtree(folder / INDICES)
    jobs = [Job(name, model, target, folder, sources) for name, model in models.items() for target in names]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preloaded(len(jobs)))
    recorded, seconds = 0, 0.0
    with ProcessPoolExecutor(count, context, max_tasks_per_child=1) as pool:
        started = {pool.submit(job.run): f"{job.name} for {job.target}" for job in jobs}
        for done in as_completed(started):
            if error := done.exception():
                print(f"{started[done]}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            is_new, took = done.result()
            recorded, seconds = recorded + 1, seconds + took
            print(f"{started[done]}: {f'{took:.1f} s' if is_new else 'was there'}", flush=True)
    print(f"{recorded} of {len(jobs)} recorded in {seconds:.0f} s of processor time")
    return 0 if recorded == len(jobs) else 1


def preloaded(jobs: int) -> list[str]:
    """The modules to import before processes for so many jobs are forked: where it pays, all that make code. TVM comes
    first, so that it does not import torch."""
    packages = (passes, targets) if jobs >= _MANY else ()
    modules = [
        module.name
        for package in packages
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return ["moec.targets.tvm", "moec.compiling.compiler", *modules]


def check_targets(names: Sequence[str]) -> None:
    """Raise MoecError for a target that is not known."""
    for name in names:
        if name != PASSES:
            targets.get_all(name)


def refuse(reason: str) -> int:
    """The exit code of what cannot be done."""
    print(f"replay: {reason}", file=sys.stderr)
    return 2


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="record models")
    recorder.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="FOLDER")
    recorder.add_argument("models", nargs="*", metavar="MODEL")
    recorder.add_argument("--target", action="append", help=f"may be repeated; by default {', '.join(TARGETS)}")
    recorder.add_argument("--passes", help="a level or a pipeline, for models that name none")
    recorder.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    recorder.add_argument("--replace", action="store_true", help="replace a record of other sources")
    comparer = commands.add_parser("compare", help="compare two records")
    comparer.add_argument("old", type=pathlib.Path)
    comparer.add_argument("new", type=pathlib.Path)
    comparer.add_argument("models", nargs="*", metavar="MODEL", help="the names of those to compare; by default all")
    comparer.add_argument("--target", action="append", help="may be repeated; by default all")
    comparer.add_argument("--lines", type=int, default=12, help="lines of each difference, at most")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    if asked.command == "compare":
        count = 0
        for text in differences(asked.old, asked.new, asked.models, asked.target or (), asked.lines):
            count += 1
            print(text)
        print(f"{count or 'no'} difference{'s' * (count > 1)}")
        return 1 if count else 0
    source = pathlib.Path(moec.__file__).resolve().parents[1]
    if source != ROOT:
        return refuse(f"Python imports moec from {source}; expected {ROOT}, the checkout of this tool")
    names = asked.target or TARGETS
    try:
        models = chosen_models(asked.models)
        check_targets(names)
    except (ValueError, MoecError) as error:
        return refuse(str(error))
    if asked.passes is not None:
        options = {"passes": asked.passes}
        models = {
            name: dataclasses.replace(model, options={**options, **model.options}) for name, model in models.items()
        }
    return record(asked.output.resolve(), models, names, asked.jobs, asked.replace)


if __name__ == "__main__":
    sys.exit(main())
