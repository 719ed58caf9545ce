"""A model larger than memory: tokens per second of moec's streamed experts, of mapped files, and of llama.cpp.

    python benchmarks/larger_than_memory.py [--model olmoe-1b-7b] [--layers 16] [--format q4_0] [--limit 1.4GiB]
                                            [--resident 1GiB] [--tokens 48] [--rounds 2] [--scratch FOLDER]

The model is a GGUF file with random weights and its artifact, kept in the folder of ``--scratch``. Its routing has no
favourites, which is the hardest case for keeping experts.

Every contestant is a process in a control group whose memory is limited (version 1 or 2; this needs the rights to make
one), whose page cache counts, and which starts with none of its file in the cache. They take turns. Of the tokens one
by one, behind an empty cache of keys and values, the first third is not counted. Contestants:

- ``streamed``: what ``moec compile --resident`` makes; ``nothing expected``: without what is read ahead;
- ``preferring``: with ``prefer_resident=0.25``, which computes something else;
- ``mapped``: the same artifact, whose file is mapped; ``mapped, WILLNEED``: with advice to the system, of the experts
  that are chosen, and of those that are expected, in the place of reads;
- ``llama.cpp``: the GGUF file, which it maps, without copies of weights in another order.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from gguf_model import Step, llama_steps, moec_steps
from random_gguf import write_model
from results import print_rows

ROOM = 512
GROUP = "moec-larger-than-memory"
_WILLNEED = 3
SHARES, STREAMED = "shares", []
"""Prefix of the last line of a process, with the shares of this object."""


@contextlib.contextmanager
def limited_group(limit: int) -> Iterator[pathlib.Path]:
    """Context with a control group whose processes together have a limited memory."""
    root = pathlib.Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    group = (root / "memory" if old else root) / GROUP
    group.mkdir(exist_ok=True)
    (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
    try:
        yield group
    finally:
        group.rmdir()


def forget(path: pathlib.Path) -> None:
    """Let the system drop its cache of a file."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


class Advice:
    """Replacement of streamed experts: the file is mapped, and the system is told what will be read."""

    def __init__(self, model: Any) -> None:
        from moec.runtime.streamed_weights import StreamedWeights
        from moec.tools.stream_speed import stream_plan

        artifact, executor = model.artifact, model._executor
        self._layers = stream_plan(artifact).layers
        program = artifact.program()
        position = program.streamed[0].weights[0].weight
        array, entry = executor._weight_arrays[position], artifact.weight_entries(program)[position]
        self._start = array.ctypes.data - entry.offset
        self._advise = ctypes.CDLL(None).madvise
        executor._program.streamed = StreamedWeights(self, None)  # type: ignore[arg-type]

    def begin_run(self) -> None:
        pass

    def need(self, layer: int, experts: list[int]) -> None:
        for expert in experts:
            for start, end in self._layers[layer].places[expert]:
                page = start // 4096 * 4096
                self._advise(ctypes.c_void_p(self._start + page), ctypes.c_size_t(end - page), _WILLNEED)

    expect = need

    def tolerance(self, layer: int) -> float:
        """Return 0, because no expert takes the place of another."""
        return 0.0


def streamed_steps(resident: str, name: str, path: str, threads: int) -> Step:
    import moec

    pages = "mapped" if name.startswith("mapped") else "streamed"
    options: dict[str, Any] = {"pages": pages, "prefer_resident": 0.25 if name == "preferring" else 0.0}
    model = moec.load(path, threads=threads, resident=resident, check_weights=False, **options)
    if name == "mapped, WILLNEED":
        Advice(model)
    if name == "nothing expected":
        model._experts.expect = lambda *_arguments: None  # type: ignore[union-attr, method-assign]
    STREAMED.append(model._experts)
    return moec_steps(model, ROOM)


def serve(name: str, path: str, threads: int, resident: str, tokens: int) -> None:
    """Print the seconds of tokens one by one."""
    step = (
        llama_steps(path, threads, ROOM, repacks=False)
        if name == "llama.cpp"
        else streamed_steps(resident, name, path, threads)
    )
    for place in range(tokens):
        print(step(1, place, place), flush=True)
    if name == "streamed":
        print(SHARES, json.dumps(STREAMED[0].shares), flush=True)


def measure(name: str, path: pathlib.Path, args: argparse.Namespace) -> tuple[list[float], list[list[float]] | None]:
    """Measure the seconds of the counted tokens, and the share of the runs in which each layer's experts were
    selected."""
    forget(path / "weights.bin" if path.is_dir() else path)
    with limited_group(args.limit) as group:
        command = [sys.executable, __file__, "--serve", name, str(path), str(args.threads), args.resident]
        done = subprocess.run(
            [*command, str(args.tokens)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
        )
    lines = done.stdout.splitlines()
    shares = json.loads(lines.pop().removeprefix(SHARES)) if lines[-1].startswith(SHARES) else None
    seconds = [float(line) for line in lines]
    return seconds[len(seconds) // 3 :], shares


def made(args: argparse.Namespace) -> tuple[pathlib.Path, pathlib.Path]:
    """Make the GGUF file and the artifact, unless they exist already."""
    from language_models import SHAPES

    from moec.compiling import compiler
    from moec.compiling.compile_options import CompileOptions

    folder = pathlib.Path(args.scratch, f"{args.model}-{args.layers}-{args.format}")
    folder.mkdir(parents=True, exist_ok=True)
    file, artifact = folder / "model.gguf", folder / "model.moec"
    if not file.exists():
        write_model(SHAPES[args.model], args.layers, args.format, file)
    if not artifact.exists():
        compiler.write(str(file), artifact, CompileOptions(cache=True, resident=args.resident))
    return file, artifact


CONTESTANTS = ("streamed", "nothing expected", "preferring", "mapped", "mapped, WILLNEED", "llama.cpp")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        name, path, threads, resident, tokens = sys.argv[2:]
        serve(name, path, int(threads), resident, int(tokens))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="olmoe-1b-7b")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--limit", default="1.4GiB", help="of each process")
    parser.add_argument("--resident", default="1GiB", help="of moec's weights")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--scratch", default="larger_than_memory")
    args = parser.parse_args()

    from moec.common.byte_counts import bytes_of
    from moec.runtime.artifact import open_artifact
    from moec.tools.stream_speed import predict_speed

    args.limit = bytes_of("limit", args.limit)
    file, artifact = made(args)
    seconds: dict[str, list[float]] = {name: [] for name in args.contestants}
    predicted, shares = [], None
    for _ in range(args.rounds):
        for name in args.contestants:
            measured, own = measure(name, file if name == "llama.cpp" else artifact, args)
            seconds[name] += measured
            if own is not None:
                shares = shares or own
                opened = open_artifact(artifact, check_weights=False)
                speed = predict_speed(opened, bytes_of("resident", args.resident), args.threads, shares)
                predicted.append(1 / speed.seconds)
                print("predicted", dataclasses.asdict(speed), 1 / speed.seconds, flush=True)
            print(name, f"{len(seconds[name]) / sum(seconds[name]):.2f} tokens/s so far", flush=True)
    rates = {name: len(times) / sum(times) for name, times in seconds.items()}
    print_rows(
        [
            {
                "": name,
                "tokens/s": rate,
                "of mapped": rate / rates["mapped"] if "mapped" in rates else "",
                "median ms": statistics.median(seconds[name]) * 1e3,
            }
            for name, rate in rates.items()
        ]
    )
    if predicted:
        print(f"predicted for streamed: {statistics.fmean(predicted):.3g} tokens/s")


if __name__ == "__main__":
    main()
