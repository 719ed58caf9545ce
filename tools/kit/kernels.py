"""Programs of one kernel for the kit: each kernel of small models, with numbers and with the emulator's results."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Mapping

from kit.code import keep_artifact, keep_code
from kit.models import ATTENTION, FORMATS, make_attention, make_layer
from kit.plan import KitPlan, KitStep
from kit.recording import KitCall, TapeRecorder, changed
from kit.tapes import KitStore, kernel_tape
from moec.checking.sampling import random_inputs, size_cases
from moec.compiling.compile_options import CompileOptions
from moec.compiling.compiler import write
from moec.runtime.artifact import Artifact, open_artifact
from moec.runtime.description import find_kernel
from moec.runtime.model import CompiledModel

TOKENS = (1, 40, 300, 400)
"""Numbers of tokens, by which each height of blocks comes."""
MULTIPROCESSORS = (132, 2, 4)
"""Those of an H100, and so few that a block of threads takes many tiles."""
KEPT = "bfloat16"
"""The layer that is also packed as an artifact."""


def pack_kernels(
    store: KitStore, plan: KitPlan, work: pathlib.Path, say: Callable[[str], None], only: str = ""
) -> None:
    """Pack every kernel of the layers in all formats, and those of attention; kernels of equal text come once."""
    seen: set[str] = set()
    passes_of = {name: passes for name, (_, passes) in FORMATS.items()} | {ATTENTION: "O2"}
    for name, passes in passes_of.items():
        if not name.startswith(only):
            continue
        say(f"kernels of {name}")
        path, source = work / f"{name}.moec", make_attention(work) if name == ATTENTION else make_layer(name, work)
        write(source, path, CompileOptions(target="cuda:sm_90a", passes=passes))
        artifact = open_artifact(path)
        calls = _recorded(artifact, store)
        add_kernels(name, artifact, calls, store, plan, seen)
        if name == KEPT:
            _keep_layer(name, artifact, path, store, plan)


def _recorded(artifact: Artifact, store: KitStore) -> dict[str, dict[int, KitCall]]:
    """The first call of each kernel that changes a tensor, by number of multiprocessors; the first number runs."""
    calls: dict[str, dict[int, KitCall]] = {}
    tokens_of: dict[str, int] = {}
    for count in MULTIPROCESSORS:
        recorder = TapeRecorder(count, execute=count == MULTIPROCESSORS[0])
        model = recorder.load(artifact)
        for tokens in TOKENS:
            for call in _run(model, recorder, tokens):
                if recorder.executes and changed(call):
                    tokens_of.setdefault(call.kernel, tokens)
                if call.launches and tokens_of.get(call.kernel) == tokens:
                    calls.setdefault(call.kernel, {}).setdefault(count, call)
        keep_code(artifact, recorder, store)
    return calls


def add_kernels(
    name: str,
    artifact: Artifact,
    calls: Mapping[str, Mapping[int, KitCall]],
    store: KitStore,
    plan: KitPlan,
    seen: set[str],
) -> None:
    """Add a tape and a step for each kernel whose text is not among ``seen``."""
    for kernel, variants in calls.items():
        digest = _digest_of(artifact, kernel)
        if digest in seen:
            continue
        seen.add(digest)
        tape = f"{name}-{kernel}"
        store.tape(tape, kernel_tape(variants, store))
        step = KitStep(1, 30, f"kernel {name}/{kernel}", "kernel_step", (tape,), 40, together="kernels")
        plan.add(step)


def _keep_layer(name: str, artifact: Artifact, path: pathlib.Path, store: KitStore, plan: KitPlan) -> None:
    """Pack a layer as an artifact, with what it computes."""
    model = TapeRecorder(MULTIPROCESSORS[0], execute=True).load(artifact)
    (sizes,) = size_cases(model.inputs, (TOKENS[1],), (1,), model.interface.sizes, model.guards)
    inputs = random_inputs(model.inputs, sizes, model.interface.limits, 0)
    results = {f"out_{key}": array for key, array in model.run(inputs).items()}
    keep_artifact(name, path, {**{f"in_{key}": array for key, array in inputs.items()}, **results}, store)
    plan.add(KitStep(2, 5, f"model {name}", "model_step", (name,), 60))


def _run(model: CompiledModel, recorder: TapeRecorder, tokens: int) -> list[KitCall]:
    """Run on random inputs and return the calls of kernels."""
    (sizes,) = size_cases(model.inputs, (tokens,), (1,), model.interface.sizes, model.guards)
    inputs = random_inputs(model.inputs, sizes, model.interface.limits, 0)
    with recorder.recording(model, largest=None if recorder.executes else 0) as calls:
        model.run(inputs)
    return calls


def _digest_of(artifact: Artifact, kernel: str) -> str:
    text = find_kernel(artifact, kernel, None).source("cuda")
    return hashlib.sha256(text.partition("\n\n")[2].encode()).hexdigest()
