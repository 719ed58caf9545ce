"""Readers of a manifest's records that describe an artifact to people: kernels, blocks, stages, remarks, losses. They
check the types of all fields that are read anywhere."""

from __future__ import annotations

from typing import Any

from moec.common.errors import ArtifactError
from moec.runtime.manifest import MANIFEST

_SIZES = ("num_experts", "top_k", "hidden_size", "intermediate_size")


def checked_kernel(record: dict[str, Any], where: str) -> dict[str, Any]:
    for key in ("name", "op", "computes"):
        typed(record, key, str, where)
    for key, kind in {"nodes": list, "attributes": dict, "sources": dict, "sizes": dict}.items():
        typed(record, key, kind, where)
    if not is_size(typed(record, "calls", int, where)):
        raise ArtifactError(f"{where}: {record['calls']} calls are no number of them")
    for name in record["sources"]:
        typed(record["sources"], name, str, where)
    list_of(record, "nodes", str, where)
    list_of(record, "crossovers", str, where)
    _check_candidates(record, where)
    for parameter in list_of(record, "parameters", dict, where):
        for key, kind in {"name": str, "dtype": str, "shape": list}.items():
            typed(parameter, key, kind, where)
    for launch in list_of(record, "launches", dict, where):
        _check_launch(launch, where)
    for key in ("work", "plan"):
        optional(record, key, dict, where)
    return record


def _check_candidates(record: dict[str, Any], where: str) -> None:
    for candidate in list_of(record, "candidates", dict, where):
        for key, kind in {"kernel": str, "eligible": bool, "reason": str, "chosen": bool}.items():
            typed(candidate, key, kind, where)


def _check_launch(record: dict[str, Any], where: str) -> None:
    kinds = {"function": str, "shared_bytes": str, "static_shared_bytes": int, "cluster": int, "begins_early": bool}
    for key, kind in kinds.items():
        typed(record, key, kind, where)
    for key in ("arguments", "grid", "block"):
        list_of(record, key, str, where)
    for tensor_map in list_of(record, "tensor_maps", dict, where):
        for key, kind in {"name": str, "tensor": str, "dtype": str, "rank": int}.items():
            typed(tensor_map, key, kind, where)
        list_of(tensor_map, "numbers", str, where)
    condition = optional(record, "only_if", dict, where)
    if condition is not None:
        typed(condition, "size", str, where)
        sizes = typed(condition, "sizes", dict, where)
        typed(sizes, "least", int, where)
        optional(sizes, "most", int, where)
    optional(record, "registers", int, where)


def checked_stage(record: dict[str, Any], where: str) -> dict[str, Any]:
    for key, kind in {"name": str, "changed": bool, "file": str}.items():
        typed(record, key, kind, where)
    return record


def checked_loss(record: dict[str, Any], where: str) -> dict[str, Any]:
    for key in ("pass_name", "layer", "arithmetic"):
        typed(record, key, str, where)
    for name in typed(record, "formats", dict, where):
        list_of(record["formats"], name, str, where)
    for key in ("weight_error", "output_error"):
        typed(record, key, float, where)
    return record


def checked_remark(record: dict[str, Any], where: str) -> dict[str, Any]:
    for key in ("pass_name", "subject", "message", "severity"):
        typed(record, key, str, where)
    return record


def checked_block(record: dict[str, Any], where: str) -> dict[str, Any]:
    """Check a block as :func:`moec.ir.blocks.moe_blocks` describes it."""
    for key in ("name", "op"):
        typed(record, key, str, where)
    for key in _SIZES:
        optional(record, key, int, where)
    for key in ("router", "activation", "gate_layout", "dtype", "formulation"):
        optional(record, key, str, where)
    formats = typed(record, "formats", dict, where)
    for name in formats:
        list_of(formats, name, str, where)
    spec = optional(record, "experts", dict, where)
    if spec is not None:
        typed(spec, "arithmetic", str, where)
        typed(spec, "activation_group", int, where)
        list_of(spec, "hidden_sizes", int, where)
    for product in list_of(record, "products", dict, where) if "products" in record else []:
        typed(product, "name", str, where)
        for key in ("inputs", "outputs"):
            optional(product, key, int, where)
    return record


def typed(record: Any, key: str, kind: type, where: str) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise ArtifactError(f"{where}: {MANIFEST} field {key!r} is missing or not of type {kind.__name__}")
    return value


def optional(record: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """Read a field as :func:`typed`, which may also be None explicitly."""
    return None if key in record and record[key] is None else typed(record, key, kind, where)


def list_of(record: dict[str, Any], key: str, kind: type, where: str) -> list[Any]:
    values = typed(record, key, list, where)
    if not all(isinstance(value, kind) for value in values):
        raise ArtifactError(f"{where}: {MANIFEST} field {key!r} holds something that is not a {kind.__name__}")
    return values


def is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
