"""Bytes of single tokens: a character may be split across tokens, so a token alone is not always text."""

from __future__ import annotations

import re
from collections.abc import Collection

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


def decoder_kinds(decoder: object) -> set[str]:
    """Types of a decoder of ``tokenizer.json`` and of those that it is a sequence of."""
    if not isinstance(decoder, dict):
        return set()
    parts = decoder.get("decoders", ())
    return {str(decoder.get("type")), *(kind for part in parts for kind in decoder_kinds(part))}


def bytes_of(token: str, kinds: Collection[str]) -> bytes:
    """Bytes of a token by how it is spelled in the vocabulary and what decodes it.

    ``ByteLevel`` spells each byte as a character (GPT-2's encoder.py); ``ByteFallback`` spells bytes as ``<0x0A>``.
    Other decoders here write spaces as a low line."""
    if "ByteLevel" in kinds and all(letter in _BYTE_OF for letter in token):
        return bytes(_BYTE_OF[letter] for letter in token)
    match = _BYTE.fullmatch(token) if "ByteFallback" in kinds else None
    if match is not None:
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE, " ").encode(errors="replace")


def _letters() -> dict[str, int]:
    """Bytes by their characters: printable ones of Latin-1 stand for themselves, others for characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _letters()
