"""The memory of a whole model: the records of layers, their weights, and the streams between them.

| file | contents |
|---|---|
| ``layers.bin`` | a record per layer: 32 numbers of 32 bits, the fields of ``layer_t`` in ``library/moec_model.h`` |
| ``norm.bin``, ``router.bin``, ``up.bin``, ``down.bin`` | those of all layers, in the format of ``moe/packing.py`` |
| ``up_0.bin``, ... | with several masters: the part of each, in the format of ``design/striping.py`` |
| ``turns.bin`` | of layers of attention, in the format of ``attention/packing.py`` |
| ``stream.bin`` | the memory of the arguments ``stream_in``, ``residual`` and ``stream_out``, see below |
| ``outputs.bin`` | the expected output of each layer, in order; each begins with a new beat |

For a decoder and for a block, ``layers.bin``, ``stream.bin`` and ``outputs.bin`` hold those of several calls, one after
the other. A block reads only the beginning of ``stream.bin``, the stream, or int8 tokens if it does not normalise them,
and writes to a buffer of its own. ``loads.bin`` has int32 tokens of each of its experts.

``stream.bin`` holds in this order, each from a new beat on: inputs, int8 by tile of an embedding and then by token, or
the stream itself; positions, int16 [T, width]; two residual streams, int16 [T, width]; outputs, int16 [rows, width] by
head. ``layers.bin`` has the places of all, in beats. Layers read one residual stream and write the other by turns,
because memory guarantees no order between reads of one process and writes of another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.targets.hls.attention.packing import calls_of, pack_output, pack_projections, pack_turns
from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.design.numbers import BEAT_BYTES, RESULT_BITS
from moec.targets.hls.design.striping import stripe_down, stripe_names, stripe_up
from moec.targets.hls.model import reference
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.plan import Layer, ModelPlan, QuantizedLinear
from moec.targets.hls.moe import packing
from moec.targets.hls.moe import reference as moe_reference
from moec.targets.hls.moe.packing import whole_beats
from moec.targets.hls.moe.quantize import QuantizedBlock

Array = np.ndarray[Any, Any]

_LAYER_WORDS = 32
EXPERTS, ATTENTION = range(2)
"""The values of ``layer_kind_t``."""


@dataclasses.dataclass(frozen=True)
class StreamPlaces:
    """The places of the streams in their memory, in beats; 0 for a block, whose streams are buffers of their own.
    ``last``: the residual stream that the last block writes;
    ``outputs``: of each head, or, without heads, the last stream; ``size``: of the whole memory."""

    inputs: int
    positions: int
    residuals: tuple[int, int]
    last: int
    outputs: tuple[int, ...]
    size: int


def stream_places(design: ModelDesign, plan: ModelPlan) -> StreamPlaces:
    stream = stream_beats(plan.tokens, design)
    if design.is_block:
        return StreamPlaces(0, 0, (0, 0), 0, (0,), stream)
    positions = stream if plan.embedding is None else design.patch_beats
    residual = positions if plan.embedding is None or plan.embedding.positions is None else positions + stream
    first_output = residual + 2 * stream
    rows = stream_beats(plan.output_rows, design)
    size = first_output + len(plan.heads) * rows
    # The embedding writes the first residual stream; without one, the first layer does.
    writers = len(plan.blocks) + (plan.embedding is not None)
    last = residual + (writers - 1) % 2 * stream
    outputs = tuple(first_output + place * rows for place in range(len(plan.heads)))
    return StreamPlaces(0, positions, (residual, residual + stream), last, outputs or (last,), size)


def stream_beats(rows: int, design: ModelDesign) -> int:
    return -(-rows * design.width * RESULT_BITS // 8 // BEAT_BYTES)


def pack_model(design: ModelDesign, plan: ModelPlan, steps: Array) -> dict[str, bytes]:
    """The contents of all files by name. ``steps``: the inputs of one image, from :meth:`ModelPlan.input_steps`."""
    places = stream_places(design, plan)
    files = _WeightFiles(design)
    in_order = sorted(range(len(plan.layers)), key=lambda place: isinstance(plan.layers[place], QuantizedAttention))
    at = {place: files.add(_weights(design, plan.layers[place])) for place in in_order}
    layers: list[dict[str, int]] = []
    at_input, next_residual, caches = places.inputs, 0, 0
    for place, layer in enumerate(plan.layers, len(plan.heads) - len(plan.layers)):
        is_head = place >= 0
        output = places.outputs[place] if is_head else places.residuals[next_residual]
        positions = isinstance(layer, QuantizedLinear)
        numbers = {
            **layer_numbers(design, plan, layer),
            **at[place + len(plan.layers) - len(plan.heads)],
            "input_at": at_input,
            "residual_at": places.positions if positions else at_input,
            "output_at": output,
            "cache_at": caches,
        }
        if isinstance(layer, QuantizedAttention) and design.attention is not None:
            caches += design.attention.cache_beats
        layers.append(numbers)
        if not is_head:
            at_input, next_residual = output, 1 - next_residual
    return {
        **files.contents(),
        **_pack_calls(design, plan, layers, steps),
    }


class _WeightFiles:
    """The weights of layers, one after the other, by file. A layer begins at the same place in all stripes of a matrix;
    shorter stripes are padded with zeros. Attention has only the first stripe, so it is added last to save padding."""

    def __init__(self, design: ModelDesign) -> None:
        up, down = stripes(design)
        has = {
            "norm": design.is_normalized,
            "router": design.moe is not None,
            "turns": design.attention is not None and design.attention.shape.turned,
        }
        self._of = {**{name: [name] for name, present in has.items() if present}, "up": up, "down": down}
        self._parts: dict[str, list[bytes]] = {name: [] for names in self._of.values() for name in names}

    def add(self, layer: dict[str, bytes]) -> dict[str, int]:
        """Append the weights of a layer, given by file. Returns the beat at which each matrix begins. A matrix that the
        layer lacks gets place 0: hardware reads it nevertheless, and ignores it."""
        places = {}
        for matrix, names in self._of.items():
            own = {name: layer[name] for name in names if name in layer}
            places[f"{matrix}_at"] = _beats(self._parts[names[0]]) if own else 0
            longest = max(map(len, own.values()), default=0)
            for name, data in own.items():
                self._parts[name].append(data.ljust(longest, bytes(1)))
        return places

    def contents(self) -> dict[str, bytes]:
        return {f"{name}.bin": b"".join(parts) for name, parts in self._parts.items()}


def stripes(design: ModelDesign) -> tuple[list[str], list[str]]:
    """The files of both matrices, one for each master of experts' weights."""
    up, down = (1, 1) if design.moe is None else (design.moe.masters_up, design.moe.masters_down)
    return stripe_names("up", up), stripe_names("down", down)


def _pack_calls(design: ModelDesign, plan: ModelPlan, layers: list[dict[str, int]], steps: Array) -> dict[str, bytes]:
    """The files of the testbench's calls: one image, or a sequence in several calls, one after the other in each
    file."""
    attention, is_sequence = design.attention, design.is_decoder or design.is_block
    calls = calls_of(attention.shape, len(steps)) if attention is not None and is_sequence else [len(steps)]
    outputs = _outputs(plan, steps[: sum(calls)])
    records, streams, expected, past = [], [], [], 0
    for count, logits in zip(calls, design.head_rows(calls), strict=True):
        of_layers = _of_call(design, plan, count, past, logits) if is_sequence else [{} for _ in layers]
        records += [layer_record({**numbers, **own}) for numbers, own in zip(layers, of_layers, strict=True)]
        rows = slice(past, past + count) if is_sequence else slice(None)
        streams.append(pack_stream_memory(design, plan, steps[rows]))
        past += count
        for output, own in zip(outputs, of_layers, strict=True):
            written = output[past - own["rows"] : past] if is_sequence else output
            expected.append(packing.pack_stream(written, design.width))
    block = plan.blocks[0]
    loads = moe_reference.run(block, steps).loads if design.is_block and isinstance(block, QuantizedBlock) else None
    return {
        **({} if loads is None else {"loads.bin": loads.astype("<i4").tobytes()}),
        "layers.bin": b"".join(records),
        "stream.bin": b"".join(streams),
        "outputs.bin": b"".join(expected),
    }


def _of_call(design: ModelDesign, plan: ModelPlan, count: int, past: int, logits: int) -> list[dict[str, int]]:
    """The fields of each layer's record that differ in a call of ``count`` tokens after ``past`` others. Heads compute
    the last ``logits`` rows; their outputs follow each other without gaps."""
    places = stream_places(design, plan)
    block = {"tokens": count, "streamed": count, "rows": count, "past": past}
    heads = [
        {
            "tokens": logits,
            "streamed": logits,
            "rows": logits,
            "past": past,
            "input_at": places.last + stream_beats(count - logits, design),
            "output_at": places.outputs[0] + place * stream_beats(logits, design),
        }
        for place in range(len(plan.heads))
    ]
    return [*[block] * len(plan.blocks), *heads]


def pack_stream_memory(design: ModelDesign, plan: ModelPlan, steps: Array) -> bytes:
    """The contents of ``stream.bin``: inputs and positions, and zeros where layers write."""
    places = stream_places(design, plan)
    positions = None if plan.embedding is None else plan.embedding.positions
    data = pack_inputs(design, plan, steps)
    if positions is not None:
        data += packing.pack_stream(positions, design.width)
    return data + bytes(places.size * BEAT_BYTES - len(data))


def pack_inputs(design: ModelDesign, plan: ModelPlan, steps: Array) -> bytes:
    """Inputs int8 [T, in] packed by hidden tile of the design, and then by token; a stream int16 [T, d], or a block's
    int8 tokens, as they are."""
    if plan.embedding is None:
        return packing.pack_stream(steps, design.width, "<i2" if design.is_normalized else "<i1")
    tile = design.experts.hidden_tile
    rows = packing.widened(steps.astype(np.int8), -(-plan.embedding.inputs // tile) * tile, axis=1)
    return whole_beats(rows.reshape(len(rows), -1, tile).transpose(1, 0, 2).tobytes())


def layer_record(numbers: dict[str, int]) -> bytes:
    """A record of ``layer_t`` from its fields by name. Missing fields are 0."""
    words = np.zeros(_LAYER_WORDS, np.int64)
    for name, value in numbers.items():
        words[_FIELDS.index(_SHARED.get(name, name))] = value
    words[_EPSILON], words[_EPSILON + 1] = numbers["epsilon"] & 0xFFFFFFFF, numbers["epsilon"] >> 32
    return (words & 0xFFFFFFFF).astype("<u4").tobytes()


_FIELDS = (
    *("kind", "tokens", "streamed", "patches", "rows", "adds", "passes", "pools"),
    *("experts", "slots", "shared", "tiles"),
    *("norm_at", "input_at", "residual_at", "router_at", "up_at", "down_at", "output_at"),
    *("score_multiplier", "mixed_one", "hidden_multiplier", "up_offset", "up_limit", "shared_gate"),
    *("epsilon", "above_epsilon", "past", "turns_at", "cache_at", "key_norm_epsilon", "query_norm_epsilon"),
)
"""The fields of ``layer_t`` in order; an epsilon takes two words."""
_EPSILON = _FIELDS.index("epsilon")
_SHARED = {"window": "tiles", "query_latent_epsilon": "hidden_multiplier", "key_latent_epsilon": "up_offset"}
"""Fields of attention, each with the field of layers of experts whose word it takes."""


def layer_numbers(design: ModelDesign, plan: ModelPlan, layer: Layer) -> dict[str, int]:
    """The fields of a layer's record, except the places of its data."""
    if isinstance(layer, QuantizedAttention):
        return {
            "kind": ATTENTION,
            "tokens": plan.tokens,
            "streamed": plan.tokens,
            "rows": plan.tokens,
            "adds": True,
            "score_multiplier": int(layer.score.values[0]),
            "mixed_one": layer.mixed_one,
            "window": layer.window or layer.shape.positions,
            "epsilon": layer.norm.epsilon,
            **_epsilons_of_heads(layer),
            **_epsilons_of_latents(layer),
        }
    common = {
        "kind": EXPERTS,
        "tiles": design.of(layer).tiles,
        "epsilon": 1 if layer.norm is None else layer.norm.epsilon,
    }
    if isinstance(layer, QuantizedLinear):
        tokens = 1 if layer.pool == "first" else plan.tokens
        return {
            **common,
            "tokens": tokens,
            "streamed": 0 if layer.norm is None else tokens,
            "patches": design.patch_chunks if layer.norm is None else 0,
            "rows": plan.tokens if layer.pool == "none" else 1,
            "adds": layer.positions is not None,
            "passes": True,
            "pools": layer.pool == "mean",
            "shared": 1,
            "shared_gate": layer.gate,
        }
    return {
        **common,
        "tokens": plan.tokens,
        "streamed": plan.tokens,
        "rows": plan.tokens,
        "adds": True,
        "experts": layer.shape.experts,
        "slots": layer.shape.slots,
        "shared": layer.shape.shared,
        "score_multiplier": int(layer.score.values[0]),
        "hidden_multiplier": int(layer.hidden_multiplier.values[0]),
        "up_offset": layer.up_offset,
        "up_limit": layer.up_limit,
        "shared_gate": layer.shared_gate,
    }


def _epsilons_of_heads(layer: QuantizedAttention) -> dict[str, int]:
    norms = (None, None) if layer.turns is None else (layer.turns.key_norm, layer.turns.query_norm)
    names = ("key_norm_epsilon", "query_norm_epsilon")
    return {name: norm.epsilon for name, norm in zip(names, norms, strict=True) if norm is not None}


def _epsilons_of_latents(layer: QuantizedAttention) -> dict[str, int]:
    norms = {} if layer.latents is None else {"query": layer.latents.query_norm, "key": layer.latents.key_norm}
    return {f"{name}_latent_epsilon": norm.epsilon for name, norm in norms.items() if norm is not None}


def _weights(design: ModelDesign, layer: Layer) -> dict[str, bytes]:
    norm = {} if layer.norm is None else {"norm": packing.pack_norm(layer.norm, design.width)}
    if isinstance(layer, QuantizedAttention):
        assert design.attention is not None
        (up, *_), (down, *_) = stripes(design)
        return {
            **norm,
            up: pack_projections(design.attention, layer),
            down: pack_output(design.attention, layer),
            **({} if layer.turns is None else {"turns": pack_turns(design.attention, layer.turns, layer.sinks)}),
        }
    own = design.of(layer)
    down = _by_name(stripe_down(own, packing.pack_down(own, layer.down)))
    if isinstance(layer, QuantizedLinear):
        return {**norm, **down}
    router = {"router": packing.pack_router(own, layer)} if layer.shape.experts else {}
    return {**norm, **router, **_by_name(stripe_up(own, packing.pack_up(own, layer))), **down}


def _by_name(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removesuffix(".bin"): content for name, content in files.items()}


def _outputs(plan: ModelPlan, steps: Array) -> list[Array]:
    """The expected output of each layer."""
    streams = list(reference.run(plan, steps).streams)
    last = streams[-1]
    return [*streams, *(reference.run_layer(head, last) for head in plan.heads)]


def _beats(parts: Sequence[bytes]) -> int:
    return sum(len(part) for part in parts) // BEAT_BYTES
