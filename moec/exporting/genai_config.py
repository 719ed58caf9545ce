"""``genai_config.json``: what onnxruntime-genai reads of a model beside its graph."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from moec.common.errors import MoecError
from moec.exporting.genai_checks import MASK
from moec.exporting.genai_graph import IDS, LOGITS, PAST_NAMES, PRESENT_NAMES, Decoder

NAME = "genai_config.json"
_TYPE = "decoder"
"""The type of language models that are nothing special."""
_SWITCHING_TYPE, _SWITCH = "phi3", 4096
"""The type whose texts genai gives anew, one at a time, when they grow beyond so many tokens: ``generators.cpp``."""
_LONG_ROPE = ("longrope", "su")
"""Scalings with two tables of frequencies, for texts up to the original context and for longer ones."""
DEFAULT_LENGTH = 4096
"""Context length where nothing says one."""
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")
"""Names of the context length in ``config.json``."""
_GENERATION = "generation_config.json"
_LARGEST = (1 << 31) - 1
_SEARCH: dict[str, tuple[type, ...]] = {
    "do_sample": (bool,),
    "early_stopping": (bool,),
    "length_penalty": (int, float),
    "no_repeat_ngram_size": (int,),
    "num_beams": (int,),
    "num_return_sequences": (int,),
    "repetition_penalty": (int, float),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
}
"""Settings that genai and ``generation_config.json`` share, with their types."""
_HARMLESS = ("cache_implementation", "eos_token_id", "pad_token_id", "bos_token_id", "max_length", "max_new_tokens")
"""Settings that something else says, or that affect no token."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Facts of a language model that its graph does not hold. ``length``: of the context. ``search``: by genai's names.
    ``remarks``: what genai cannot say. ``switches_after``: tokens of a text beyond which all its keys rotate by other
    frequencies."""

    length: int | None = None
    end_ids: tuple[int, ...] = ()
    first_id: int | None = None
    padding_id: int | None = None
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    switches_after: int | None = None


def settings_of(source: Any) -> Settings:
    """Read the settings of a Hugging Face folder or a GGUF file. Raises MoecError for values of another type."""
    from moec.frontend import huggingface

    return _of_folder(pathlib.Path(source)) if huggingface.is_folder(source) else _of_gguf(source)


def _of_folder(folder: pathlib.Path) -> Settings:
    from moec.frontend.huggingface.folder import read_config, read_json
    from moec.frontend.text_files import end_ids_of

    whole, path = read_config(folder), folder / _GENERATION
    inner = whole.get("text_config")
    config = {**whole, **inner} if isinstance(inner, dict) else whole
    generation = read_json(path) if path.is_file() else {}
    both = {**config, **{name: value for name, value in generation.items() if value is not None}}
    search, left = {}, []
    for name, value in generation.items():
        if name in _SEARCH and value is not None:
            search[name] = _checked(path, name, value)
        elif not (
            name in _HARMLESS or name.startswith("_") or name == "transformers_version" or value in (None, False)
        ):
            left.append(name)
    remarks = (f"{_GENERATION}: onnxruntime-genai has no setting {', '.join(sorted(left))}",) if left else ()
    length = next((config[name] for name in _LENGTHS if _is_id(config.get(name)) and config[name]), None)
    first, padding, switch = _id(both, "bos_token_id"), _id(both, "pad_token_id"), _switch_of(config)
    return Settings(length, end_ids_of(folder), first, padding, search, remarks, switch)


def _switch_of(config: Mapping[str, Any]) -> int | None:
    """Find the original context of a scaling with two tables; scalings may stand by kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        outer = config.get(name)
        for rope in (outer, *outer.values()) if isinstance(outer, dict) else ():
            if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in _LONG_ROPE:
                original = rope.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
                return original if _is_id(original) else None
    return None


def _of_gguf(path: Any) -> Settings:
    from moec.frontend.gguf.file.reader import read_file

    metadata = read_file(path).metadata
    name = metadata.get("general.architecture")
    length, scaling = metadata.get(f"{name}.context_length"), metadata.get(f"{name}.rope.scaling.type")
    original = metadata.get(f"{name}.rope.scaling.original_context_length") if scaling in _LONG_ROPE else None
    switch = original if _is_id(original) else None
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    end = _id(ids, "eos")
    length = length if _is_id(length) and length else None
    first, padding = _id(ids, "bos"), _id(ids, "padding")
    return Settings(length, () if end is None else (end,), first, padding, switches_after=switch)


def _checked(path: pathlib.Path, name: str, value: Any) -> Any:
    kinds = _SEARCH[name]
    right = isinstance(value, kinds) and (isinstance(value, bool) == (bool in kinds))
    if not right or not math.isfinite(value) or abs(value) > _LARGEST:
        raise MoecError(f"{path}: {name} is {str(value)[:40]}; expected {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _id(values: Mapping[str, Any], name: str) -> int | None:
    """The id of a token. Of several the first; None for anything else, as of a model without that token."""
    value = values.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if _is_id(value) else None


def content(decoder: Decoder, settings: Settings, end_ids: tuple[int, ...], file: str) -> dict[str, Any]:
    """Make the content of genai_config.json. ``end_ids``: tokens that end a text, at least one. ``file``: the graph's
    name. Token ids outside of the vocabulary are left out: genai loads no model with such."""
    ends = [token for token in end_ids if token < decoder.vocabulary]
    if not ends:
        raise MoecError(
            f"no token of the {decoder.vocabulary} ends a text, and onnxruntime-genai needs one; put eos_token_id into "
            f"{_GENERATION}"
        )
    special = {"bos_token_id": settings.first_id, "pad_token_id": settings.padding_id}
    special = {name: token for name, token in special.items() if token is not None and token < decoder.vocabulary}
    length = settings.length or DEFAULT_LENGTH
    model = {
        "type": _SWITCHING_TYPE if settings.switches_after == _SWITCH else _TYPE,
        "vocab_size": decoder.vocabulary,
        "context_length": length,
        "eos_token_id": ends,
        "pad_token_id": ends[0],
        **special,
        "decoder": {
            "filename": file,
            "num_hidden_layers": decoder.layers,
            "num_key_value_heads": decoder.heads,
            "head_size": decoder.width,
            "inputs": {IDS: IDS, MASK: MASK, **_names("past", PAST_NAMES)},
            "outputs": {LOGITS: LOGITS, **_names("present", PRESENT_NAMES)},
        },
    }
    search = {"do_sample": False, "past_present_share_buffer": False, **settings.search, "max_length": length}
    return {"model": model, "search": search}


def _names(time: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{time}_{kind}_names": names[kind] for kind in ("key", "value")}
