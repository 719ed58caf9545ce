"""Whole layers of experts for the kit, at real sizes: only launches are packed, numbers are made on the device."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from kit.code import device_code, keep_code
from kit.kernels import MULTIPROCESSORS
from kit.models import any_layer
from kit.plan import KitPlan, KitStep
from kit.recording import TapeRecorder
from kit.tapes import LARGEST_BLOB, KitStore, layer_tape
from moec.compiling.compile_options import CompileOptions
from moec.compiling.compiler import write
from moec.runtime.artifact import Artifact, open_artifact
from moec.targets.cuda.estimates.launches import estimate_launches

_ARRIVE, _ARRIVE_RELEASE = (f"mbarrier.arrive{scope}.shared::cluster.b64 _, [" for scope in ("", ".release.cluster"))
_WAIT = re.compile(r"__forceinline__ __device__ void mbarrier_wait\(.*?\n}\n", re.DOTALL)
_KERNEL = re.compile(r'extern "C" __global__ void.*?\n}\n', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class KitLayer:
    """A layer of SwiGLU experts in bfloat16. ``emulated``: whether it is small enough for the emulator."""

    name: str
    experts: int
    chosen: int
    width: int
    hidden: int
    tokens: Sequence[int]
    emulated: bool = False


LAYERS = (
    KitLayer("small", 8, 2, 256, 128, (400, 1), emulated=True),
    KitLayer("E128", 128, 8, 2048, 768, (4096, 32768, 16, 1, 512)),
)
"""The layers, each with its numbers of tokens in the order of their value."""


def pack_layers(store: KitStore, plan: KitPlan, work: pathlib.Path, say: Callable[[str], None], only: str = "") -> None:
    """Pack the layers whose names begin with ``only``."""
    for layer in LAYERS:
        if layer.name.startswith(only):
            say(f"layer {layer.name}")
            path = work / f"{layer.name}.moec"
            model = any_layer(layer.experts, layer.chosen, layer.width, layer.hidden)
            write(model, path, CompileOptions(target="cuda:sm_90a"))
            _pack_layer(layer, open_artifact(path, check_weights=False), store, plan)


def _pack_layer(layer: KitLayer, artifact: Artifact, store: KitStore, plan: KitPlan) -> None:
    runs: dict[int, dict[int, list]] = {tokens: {} for tokens in layer.tokens}
    for count in MULTIPROCESSORS:
        recorder = TapeRecorder(count, execute=layer.emulated and count == MULTIPROCESSORS[-1])
        model = recorder.load(artifact)
        for tokens in layer.tokens:
            shapes = {"x": (tokens, layer.width), "logits": (tokens, layer.experts)}
            inputs = {spec.name: np.zeros(shapes[spec.name], ml_dtypes.bfloat16) for spec in model.inputs}
            with recorder.recording(model, largest=LARGEST_BLOB) as calls:
                model.run(inputs)
            runs[tokens][count] = calls
        keep_code(artifact, recorder, store)
    variants = _with_old_barriers(artifact, recorder, store)
    for place, tokens in enumerate(layer.tokens):
        tape, main = f"layer-{layer.name}-{tokens}", runs[tokens][MULTIPROCESSORS[0]]
        contents = {
            tensor.address: tensor.before for call in main for tensor in call.tensors if tensor.before is not None
        }
        data = layer_tape(runs[tokens], store, contents)
        about = {**dataclasses.asdict(layer), "tokens": tokens}
        predictions = _predictions(artifact, tokens)
        store.tape(tape, {**data, "layer": about, "predictions": predictions, "variants": variants})
        rank = 25 if layer.emulated else 40 + place if place else 10
        name = f"layer {layer.name} T={tokens}"
        plan.add(KitStep(1, rank, name, "layer_step", (tape,), 90, emulated=layer.emulated))


def _predictions(artifact: Artifact, tokens: int) -> dict[str, dict[str, object]]:
    """Least times on an H100 by kernel, in seconds, and what limits them."""
    (group,) = estimate_launches(artifact, "h100", [tokens]).layers
    return {launch.kernel: {"seconds": launch.seconds, "limit": launch.limit} for launch in group.launches}


def _with_old_barriers(artifact: Artifact, recorder: TapeRecorder, store: KitStore) -> dict[str, dict[str, str]]:
    """Compile the code once more with stages of clusters given back by a release and an acquire at the scope of the
    cluster, of which ptxas makes barriers for the memory of the whole GPU. Returns the code to use instead, by name."""
    replaced = {}
    for digest, module in recorder.modules.items():
        text = with_old_barriers(module.code.decode())
        replaced[digest] = device_code(store, text, module.kernels, emulated=bool(recorder.libraries))
    return {"release and acquire at the scope of the cluster": replaced}


def with_old_barriers(text: str) -> str:
    """Spell the barriers of clustered products as they were. Raises ValueError for a text without any."""
    wait = _WAIT.search(text)
    if _ARRIVE not in text or wait is None or ".acquire.cta" not in wait[0]:
        raise ValueError("the code has no clusters that give stages back: the comparison of barriers has to follow it")
    old_wait = (
        wait[0].replace("mbarrier_wait(", "mbarrier_wait_of_cluster(").replace(".acquire.cta", ".acquire.cluster")
    )

    def kernel(match: re.Match[str]) -> str:
        if "mbarrier_arrive_shared_cluster(" not in match[0]:
            return match[0]
        return match[0].replace("mbarrier_wait(&empty[", "mbarrier_wait_of_cluster(&empty[")

    text = text.replace(_ARRIVE, _ARRIVE_RELEASE).replace(wait[0], wait[0] + old_wait)
    return _KERNEL.sub(kernel, text)
