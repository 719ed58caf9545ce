"""Reader of the files that a language model needs to take text: tokenizer, chat template, special tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from moec.common.errors import MoecError
from moec.common.plain_files import read_text
from moec.common.tokenizers import TextFiles
from moec.frontend import gguf
from moec.frontend.huggingface.folder import CONFIG, LARGEST_JSON, read_json

TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG, _GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
_TEMPLATE = "chat_template.jinja"
_LARGEST_TEMPLATE = 1 << 20
"""Bytes; templates have some thousands."""


def read_text_files(path: str | os.PathLike[str]) -> TextFiles:
    """Read a ``tokenizer.json``, or the folder of a Hugging Face model.

    Ids that end a text are those of ``generation_config.json``, else of ``config.json``; without either next to the
    tokenizer, all of its special tokens. Raises MoecError for files that are missing or malformed.
    """
    path = Path(path)
    folder, file = (path, path / TOKENIZER) if path.is_dir() else (path.parent, path)
    if not file.is_file():
        raise MoecError(f"{path}: expected a {TOKENIZER}, or a folder that has one")
    content = read_json(file)
    if not isinstance(content.get("model"), dict):
        raise MoecError(f"{file}: is not a {TOKENIZER}: it has no model; download it again")
    settings = _optional(folder / _TOKENIZER_CONFIG)
    tokens = {name: _content(token) for name, token in settings.items() if name.endswith("_token")}
    return TextFiles(
        read_text(file, LARGEST_JSON),
        _template(folder, settings),
        end_ids_of(folder) or _special_ids(content),
        {name: token for name, token in tokens.items() if token is not None},
        context=_context(_optional(folder / CONFIG)),
    )


def text_files_of(source: Any) -> TextFiles | None:
    """Read the text files of a Hugging Face folder or a GGUF file. Returns None for other sources, and where there is
    no tokenizer."""
    if gguf.is_file(source):
        return gguf.text_files_of(source)
    if not isinstance(source, (str, os.PathLike)) or not (Path(source) / TOKENIZER).is_file():
        return None
    return read_text_files(source)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str | None:
    """Read a special token, which is written as text or as an object that holds its text."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / _TEMPLATE
    if path.is_file():
        return read_text(path, _LARGEST_TEMPLATE)
    chat = settings.get("chat_template")
    if isinstance(chat, list):  # several templates, by name
        named = [entry.get("template") for entry in chat if isinstance(entry, dict) and entry.get("name") == "default"]
        chat = named[-1] if named else None
    return chat if isinstance(chat, str) else None


def end_ids_of(folder: Path) -> tuple[int, ...]:
    """Read the ids that end a text: those of ``generation_config.json``, else of ``config.json``. Returns none where
    neither names any. Raises MoecError for other values."""
    for name in (_GENERATION_CONFIG, CONFIG):
        config = _optional(folder / name)
        text_config = config.get("text_config")
        inner = text_config if isinstance(text_config, dict) else {}
        end = config.get("eos_token_id", inner.get("eos_token_id"))
        ids = end if isinstance(end, list) else [] if end is None else [end]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
            raise MoecError(f"{folder / name}: eos_token_id is {str(end)[:80]}; expected the id of a token, or a list")
        if ids:
            return tuple(dict.fromkeys(ids))
    return ()


def _context(config: dict[str, Any]) -> int | None:
    """Number of positions of a configuration; None where it has no such number, as for models without positions."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        context = part.get("max_position_embeddings")
        if type(context) is int and context > 0:
            return context
    return None


def _special_ids(tokenizer: dict[str, Any]) -> tuple[int, ...]:
    added = tokenizer.get("added_tokens")
    special = [token for token in added or [] if isinstance(token, dict) and token.get("special") is True]
    return tuple(token["id"] for token in special if isinstance(token.get("id"), int))
