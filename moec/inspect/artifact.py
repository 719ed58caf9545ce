"""Tables of ``moec inspect``: MoE blocks and kernels first, then the rest, with similar rows merged.

``describe()`` and ``--json`` list everything, layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moec import targets
from moec.common.tables import table
from moec.inspect import experts
from moec.inspect.alike import merged, names, ranges, words_of
from moec.inspect.tables import losses_table, remarks_table, shape_text
from moec.runtime.manifest import GENERIC

_BLOCK_COLUMNS = {
    "op": "operator",
    "num_experts": "experts",
    "top_k": "top-k",
    "router": "router",
    "activation": "activation",
    "gate_layout": "gate",
    "hidden_size": "hidden",
    "intermediate_size": "intermediate",
    "dtype": "dtype",
    "formulation": "raised from",
}


def artifact_tables(description: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Show the result of ``describe()``: target, MoE blocks, kernels, inputs and outputs, caches, weights, passes,
    remarks, and tables that only artifacts for such a target have."""
    kind = targets.kind_of(description["target"])
    needs = ", ".join([*description["requirements"], *kind.needs(description)]) or "nothing special"
    yield Text(f"target {description['target']} (needs {needs}), compiled by moec {description['moec_version']}")
    blocks = [_as_computed(block, kind.weight_types(description)) for block in description["moe_blocks"]]
    kernels = description["kernels"]
    yield _blocks_table(blocks)
    yield from _experts_tables(blocks, kernels)
    for architecture in description["architectures"] or ["" for _ in kernels[:1]]:
        own = [kernel for kernel in kernels if kernel["architecture"] == architecture]
        yield from _kernels_tables(own, architecture)
    yield _tensors_table(description)
    yield from map(Text, _cache_lines(description))
    if text := description["text"]:
        template = "a chat template" if text["chat_template"] else "no chat template"
        ends = ", ".join(map(str, text["end_ids"])) or "none"
        yield Text(f"takes text: it holds a tokenizer and {template}; ids that end a text: {ends}")
    if description["weights"]:
        yield _weights_table(description["weights"])
    yield Text(_passes_line(description["stages"]))
    if description["losses"]:
        yield losses_table(description["losses"])
    if description["remarks"]:
        yield remarks_table(description["remarks"])
    yield from kind.tables(description)


def _as_computed(block: dict[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """Replace a block's formats by the type in which its target stores and multiplies weights, where that differs."""
    stored = types.get(block["name"])
    if stored is None or block["experts"] is None:
        return block
    formats = {name: [stored] * len(own) for name, own in block["formats"].items()}
    return {**block, "dtype": stored, "formats": formats, "experts": {**block["experts"], "arithmetic": "int8"}}


def _blocks_table(blocks: Sequence[dict[str, Any]]) -> RenderableType:
    if not blocks:
        return Text("MoE blocks: none")
    cells = [["?" if block[key] is None else str(block[key]) for key in _BLOCK_COLUMNS] for block in blocks]
    rows = [(ranges(places), names([blocks[place]["name"] for place in places]), *row) for places, row in merged(cells)]
    title = "MoE blocks" if len(rows) == len(blocks) else f"MoE blocks ({len(blocks)}, equal ones once)"
    return table(title, ("layer", "name", *_BLOCK_COLUMNS.values()), rows)


def _experts_tables(blocks: Sequence[dict[str, Any]], kernels: Sequence[dict[str, Any]]) -> Iterator[Table]:
    layers = {block["name"]: layer for layer, block in enumerate(blocks)}
    tables = (
        ("Experts", experts.HEADINGS, experts.expert_rows(blocks, kernels)),
        ("Experts as graphs over dispatched rows", experts.PRODUCT_HEADINGS, experts.product_rows(blocks, kernels)),
        ("What became of experts", experts.ORIGIN_HEADINGS, experts.origin_rows(blocks)),
    )
    for title, headings, rows in tables:
        if rows:
            alike = merged([row[1:] for row in rows])
            cells = [(ranges(layers[rows[place][0]] for place in places), *row) for places, row in alike]
            yield table(title, headings, cells)


def _kernels_tables(kernels: Sequence[dict[str, Any]], architecture: str) -> Iterator[Table]:
    """Show the selected kernels with all candidates, then the generic ones with less detail."""
    where = f" for {architecture}" if architecture else ""
    selected, generic = [], []
    for kernel in kernels:
        nodes = kernel["nodes"][0] if len(kernel["nodes"]) == 1 else f"{len(kernel['nodes'])} nodes"
        if [candidate["kernel"] for candidate in kernel["candidates"]] == [GENERIC]:
            generic.append((kernel["name"], kernel["op"], nodes))
            continue
        considered = (
            f"{'*' if candidate['chosen'] else '-'} {candidate['kernel']}: {candidate['reason']}"
            for candidate in kernel["candidates"]
        )
        selected.append((kernel["name"], f"{kernel['op']}\n{nodes}", "\n".join([kernel["computes"], *considered])))
    if selected:
        yield table(f"Kernels{where} (* chosen, - not)", ("kernel", "for", "computes, candidates"), selected)
    if generic:
        yield table(f"Generic kernels{where} (operators in plain loops)", ("kernel", "operators", "for"), generic)


def _tensors_table(description: Mapping[str, Any]) -> Table:
    """Show inputs and outputs without states."""
    states = {name for state in description["states"] for name in (state["input"], state["output"])}
    rows = [
        (kind, tensor["name"], tensor["dtype"], shape_text(tensor["shape"]))
        for kind, key in (("input", "inputs"), ("output", "outputs"))
        for tensor in description[key]
        if tensor["name"] not in states
    ]
    return table("Inputs and outputs", ("", "name", "dtype", "shape"), rows)


def _cache_lines(description: Mapping[str, Any]) -> Iterator[str]:
    """Write one line for all states of one shape that grow, or are replaced, in the same way."""
    specs = {tensor["name"]: tensor for tensor in [*description["inputs"], *description["outputs"]]}
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for state in description["states"]:
        shapes = (shape_text(specs[state[key]]["shape"]) for key in ("input", "output"))
        alike.setdefault((specs[state["input"]]["dtype"], *shapes, state["axis"]), []).append(state)
    for (dtype, before, _, axis), states in alike.items():
        how = "replaced by each run" if axis is None else f"written along axis {axis}"
        word = "state" if axis is None else "cache"
        taken, results = (names([state[key] for state in states]) for key in ("input", "output"))
        yield f"{len(states)} {word}{'s' if len(states) > 1 else ''} {dtype}{before}, {how}: {taken} -> {results}"


def _weights_table(weights: Sequence[dict[str, Any]]) -> Table:
    """Show weights; those whose names differ only by numbers share a row."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for weight in weights:
        alike.setdefault((words_of(weight["name"]), weight["dtype"], shape_text(weight["shape"])), []).append(weight)
    rows = [
        (
            names([weight["name"] for weight in own]),
            str(len(own)),
            dtype,
            shape,
            f"{sum(weight['bytes'] for weight in own):,}",
        )
        for (_, dtype, shape), own in alike.items()
    ]
    total = sum(weight["bytes"] for weight in weights)
    return table(f"Weights ({len(weights)}, {total:,} bytes)", ("name", "count", "dtype", "shape", "bytes"), rows)


def _passes_line(stages: Sequence[Mapping[str, Any]]) -> str:
    changed, unchanged = (
        list(dict.fromkeys(stage["name"] for stage in stages if stage["changed"] is did)) for did in (True, False)
    )
    idle = [name for name in unchanged if name not in changed]
    nothing = f"; changed nothing: {', '.join(idle)}" if idle else ""
    return f"passes: {', '.join(changed) or 'none changed the model'}{nothing}"
