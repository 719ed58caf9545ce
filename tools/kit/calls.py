"""Steps of the three calls beside those of kernels, layers and models: a new one is a line here."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Sequence

from kit.layers import LAYERS, KitLayer
from kit.plan import KitPlan, KitStep
from kit.tapes import KitStore

_BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent.parent / "benchmarks"
_CARRIED = ("gpu_layers", "gpu_grouped", "gpu_triton", "gpu_sorting", "gpu_timing")
"""Modules of the benchmarks that peers are made of."""
_PROFILED = ((4096, "gemm"), (32768, "combine"), (4096, "dispatch"), (1, "gemv"))
"""Kernels of the large layer to profile: all whose names contain the text, at that number of tokens."""
_SANITIZED = ("memcheck", "synccheck", "racecheck")


def add_steps(plan: KitPlan, store: KitStore) -> None:
    """Add the steps for what was packed."""
    tapes = sorted(path.stem for path in (store.folder / "tapes").glob("*.json"))
    artifacts = sorted(path.stem for path in (store.folder / "artifacts").glob("*.moec"))
    plan.add(KitStep(1, 0, "machine", "tool_step", ("machine",), 20, ("gpu", "nvidia-smi"), emulated=False))
    for layer in LAYERS:
        if not layer.emulated and any(tape.startswith(f"layer-{layer.name}-") for tape in tapes):
            _add_peers(plan, store, layer)
            _add_profiles(plan, store, layer)
    for name in artifacts:
        step = KitStep(2, 20, f"torch {name}", "torch_step", (name,), 60, ("gpu", "torch"), emulated=False)
        plan.add(step)
    plan.add(KitStep(2, 30, "measures", "measures_step", (store.measures,), 60, emulated=False))
    _add_sanitizers(plan, [tape for tape in tapes if not tape.startswith("layer-")])


def _add_peers(plan: KitPlan, store: KitStore, layer: KitLayer) -> None:
    """Compare with the peers at each number of tokens: at the first right after moec."""
    folder = store.folder / "benchmarks"
    folder.mkdir(exist_ok=True)
    for name in _CARRIED:
        shutil.copy(_BENCHMARKS / f"{name}.py", folder)
    sizes = [str(size) for size in (layer.experts, layer.chosen, layer.width, layer.hidden)]
    for place, tokens in enumerate(layer.tokens):
        for peer, needs in (("grouped_mm", ("gpu", "torch")), ("triton", ("gpu", "torch", "triton"))):
            name, rank = f"peer {peer} {layer.name} T={tokens}", 60 + place if place else 20
            arguments = (peer, *sizes, str(tokens))
            plan.add(KitStep(1, rank, name, "peers_step", arguments, 90, needs, emulated=False))


def _add_profiles(plan: KitPlan, store: KitStore, layer: KitLayer) -> None:
    for tokens, text in _PROFILED:
        tape = f"layer-{layer.name}-{tokens}"
        calls = json.loads((store.folder / "tapes" / f"{tape}.json").read_text(encoding="utf-8"))["calls"]
        for call in calls:
            functions = [launch["function"] for launches in call["launches"].values() for launch in launches]
            for function in dict.fromkeys(functions if text in call["kernel"] else ()):
                arguments = ("ncu", "profile_step", tape, function)
                name = f"ncu {layer.name} T={tokens} {function}"
                plan.add(KitStep(3, 10, name, "tool_step", arguments, 120, ("gpu", "ncu"), emulated=False))


def _add_sanitizers(plan: KitPlan, tapes: Sequence[str]) -> None:
    """Sanitize the kernels of each model in one process. racecheck comes last: it reports hazards where memory is
    written by asynchronous copies, which are none."""
    models = dict.fromkeys(tape.partition("-")[0] for tape in tapes)
    for place, check in enumerate(_SANITIZED):
        for model in models:
            of_model = tuple(tape for tape in tapes if tape.startswith(f"{model}-"))
            arguments, needs = (check, "kernel_step", *of_model), ("gpu", "compute-sanitizer")
            name = f"{check} {model}"
            rank, apart = 20 + 10 * place, check == "racecheck"
            plan.add(KitStep(3, rank, name, "tool_step", arguments, 120, needs, emulated=False, apart=apart))
