"""What turns text into token ids: files of a tokenizer, and the package ``tokenizers``, which only those need who give
text."""

from __future__ import annotations

import dataclasses
from typing import Any

from moec.errors import MoecError


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """``tokenizer``: the text of ``tokenizer.json``. ``end_ids``: the token ids that end a text. ``special_tokens``: by
    the names that chat templates know them by, such as ``bos_token``."""

    tokenizer: str
    chat_template: str | None
    end_ids: tuple[int, ...]
    special_tokens: dict[str, str]


def tokenizer_of(content: str, where: object) -> Any:
    """The ``tokenizers.Tokenizer`` that the content of a ``tokenizer.json`` describes; ``where`` names it in messages.
    Raises MoecError where it is none, or the package is not installed."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MoecError("text needs the package tokenizers; install moec[text]") from error
    try:
        return Tokenizer.from_str(content)
    except Exception as error:
        raise MoecError(f"{where}: is not a tokenizer.json that tokenizers can read ({error})") from error
