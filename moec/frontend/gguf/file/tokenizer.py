"""Conversion of the tokenizer in a GGUF file to a ``tokenizer.json``, with chat template and special tokens.

``tokenizer.ggml.model`` is ``gpt2`` for byte-level BPE, with the patterns that ``tokenizer.ggml.pre`` names for cutting
text beforehand, or ``llama`` for SentencePiece's BPE, which first joins the pair with the highest score. Its merges are
therefore sorted by the score of the token that they make. Sources: ``llama-vocab.cpp`` of llama.cpp, and for the
patterns the tokenizers of the models that they are named after.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from types import NoneType
from typing import Any

import numpy as np

from moec.common.errors import MoecError, UnsupportedError
from moec.common.tokenizers import TextFiles
from moec.frontend.gguf.file.reader import GgufFile

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_THREES, _DIGIT = r"\p{N}{1,3}", r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|%s"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    _THREES,
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES,
)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Rules for cutting text before pairs are joined: ``patterns`` apply one after the other.

    ``whole``: a piece that is a token itself stays one, whatever the merges say. ``begins``: whether a text begins with
    a beginning-of-text token where metadata does not say.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    begins: bool = False


_LLAMA3 = Pieces((_WORDS % _THREES,), whole=True, begins=True)
_DIGITS = Pieces((_DIGIT, _GPT2))
_CUTS: dict[str, Pieces] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "lfm2", "pixtral"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Pieces((_WORDS % _THREES,))),
    **dict.fromkeys(("glm4", "glm5"), Pieces((_WORDS % _THREES,), whole=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), Pieces((_WORDS % _DIGIT,))),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling"), Pieces((_GPT2,))
    ),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("gpt-4o", "llama4"), Pieces((_CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", _THREES),))),
    "tekken": Pieces((_CASED % ("", "", _DIGIT),), whole=True, begins=True),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), Pieces(_DEEPSEEK3)),
}
"""Rules by ``tokenizer.ggml.pre``."""
_MODEL, _PRE, _DEFAULT = "tokenizer.ggml.model", "tokenizer.ggml.pre", "default"
_NONE = (None, "none", "no_vocab")
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Kinds of tokens that are more than pieces of text."""
_LONGEST_TOKEN = 1024
"""Characters. Tokens of real vocabularies have some dozens. Every split of a token is tried as a merge, so that longer
ones would take long."""
_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
    *("<|eom_id|>", "<|end_of_sentence|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|user|>"),
)
"""Texts of tokens that end a text, even where metadata does not name them."""


def text_files(file: GgufFile) -> TextFiles | None:
    """Convert tokenizer, chat template and special tokens of a file. Returns None where it has no tokenizer.

    Raises UnsupportedError for a kind of tokenizer, or a way to cut text, that moec does not know, MoecError for tables
    that do not fit together.
    """
    check(file)
    kind = file.metadata.get(_MODEL)
    if kind in _NONE:
        return None
    vocabulary = _Vocabulary(file)
    content, begins = _byte_level(vocabulary) if kind == "gpt2" else _sentence_piece(vocabulary)
    special = {f"{name}_token": vocabulary.special(name) for name in ("bos", "eos", "unknown", "padding")}
    content |= {
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "post_processor": _around(vocabulary, begins),
    }
    template = file.metadata.get("tokenizer.chat_template")
    names = {"unknown_token": "unk_token", "padding_token": "pad_token"}
    return TextFiles(
        json.dumps(content, ensure_ascii=False),
        template if isinstance(template, str) else None,
        vocabulary.ends(),
        {names.get(name, name): vocabulary.tokens[token] for name, token in special.items() if token is not None},
        context=_context(file),
    )


def _context(file: GgufFile) -> int | None:
    """Tokens that the model was trained for; None where the file does not say so."""
    context = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    return context if type(context) is int and context > 0 else None


def check(file: GgufFile) -> None:
    """Raise UnsupportedError for a tokenizer that moec does not know."""
    kind, cut = file.metadata.get(_MODEL), file.metadata.get(_PRE, _DEFAULT)
    if not isinstance(kind, (str, NoneType)) or kind not in (*_NONE, "gpt2", "llama"):
        raise UnsupportedError(f"{file.path}: its tokenizer is {str(kind)[:40]!r}; expected gpt2 or llama")
    if kind == "gpt2" and (not isinstance(cut, str) or cut not in _CUTS):
        raise UnsupportedError(f"{file.path}: {_PRE} is {str(cut)[:40]!r}; expected {', '.join(_CUTS)}")


class _Vocabulary:
    """The tables of ``tokenizer.ggml``, checked."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        tokens = self.get("tokens", list)
        if not tokens or not all(isinstance(token, str) for token in tokens):
            raise MoecError(f"{file.path}: tokenizer.ggml.tokens holds no text; convert the model again")
        longest = max(map(len, tokens))
        if longest > _LONGEST_TOKEN:
            raise MoecError(
                f"{file.path}: tokenizer.ggml.tokens has a token of {longest} characters; expected at most "
                f"{_LONGEST_TOKEN}, convert the model again"
            )
        self.tokens: list[str] = tokens
        kinds = self.get("token_type", np.ndarray, np.ones(len(tokens), np.int32))
        self._check_length("token_type", kinds)
        self.kinds: list[int] = kinds.tolist()

    def get(self, key: str, kind: Any, default: Any = None) -> Any:
        """Read metadata ``tokenizer.ggml.key``. Raises MoecError where it is missing, or of another kind."""
        value = self._file.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            actual = "missing" if value is None else type(value).__name__
            raise MoecError(f"{self._file.path}: tokenizer.ggml.{key} is {actual}; convert the model again")
        return value

    def scores(self) -> list[float]:
        array = self.get("scores", np.ndarray)
        self._check_length("scores", array)
        return array.tolist()

    def special(self, name: str) -> int | None:
        """Read the id of a special token. Returns None where there is none."""
        token = self._file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is None:
            return None
        if type(token) is not int or not 0 <= token < len(self.tokens):
            raise MoecError(
                f"{self._file.path}: tokenizer.ggml.{name}_token_id is {str(token)[:40]}, of {len(self.tokens)} tokens"
            )
        return token

    def ids(self) -> dict[str, int]:
        """Map each text to its id, or to the first where several tokens have it."""
        return {token: index for index, token in reversed(list(enumerate(self.tokens)))}

    def added(self) -> list[dict[str, Any]]:
        """List the tokens that are matched in a text before anything else is done with it."""
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": index, "content": token, "special": kind == _CONTROL, **plain}
            for index, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (_CONTROL, _USER_DEFINED) and token
        ]

    def ends(self) -> tuple[int, ...]:
        """List the ids that end a text."""
        named = [self.special(name) for name in ("eos", "eot", "eom")]
        listed = [index for index, token in enumerate(self.tokens) if token in _ENDS and self.kinds[index] == _CONTROL]
        return tuple(dict.fromkeys(token for token in (*named, *listed) if token is not None))

    def flag(self, key: str, default: bool) -> bool:
        return self.get(key, bool, default)

    @property
    def where(self) -> str:
        return str(self._file.path)

    def _check_length(self, key: str, table: np.ndarray) -> None:
        if len(table) != len(self.tokens):
            raise MoecError(
                f"{self._file.path}: tokenizer.ggml.{key} has {len(table)} entries for {len(self.tokens)} tokens; "
                "convert the model again"
            )


def _byte_level(vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    """Convert byte-level BPE. Returns normalizer, pre-tokenizer, model and decoder, and whether texts begin with a
    token."""
    cut = _CUTS[vocabulary.get("pre", str, _DEFAULT)]
    merges = [merge.split(" ") if isinstance(merge, str) else [] for merge in vocabulary.get("merges", list)]
    ids = vocabulary.ids()
    if not all(len(merge) == 2 and merge[0] in ids and merge[1] in ids and "".join(merge) in ids for merge in merges):
        raise MoecError(
            f"{vocabulary.where}: tokenizer.ggml.merges joins texts that are not tokens; convert the model again"
        )
    split: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.patterns
    ]
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*split, bytes_alone]},
        "decoder": bytes_alone,
        "model": {"type": "BPE", "vocab": ids, "merges": merges, "ignore_merges": cut.whole},
    }, cut.begins


def _sentence_piece(vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    """Convert SentencePiece's BPE, which spells text without a token in bytes. Returns the same as
    :func:`_byte_level`."""
    ids, scores = vocabulary.ids(), vocabulary.scores()
    lengths = sorted({len(token) for token in ids})
    merges = [
        (scores[index], token[:place], token[place:])
        for token, index in ids.items()
        for place in lengths[: bisect.bisect_left(lengths, len(token))]
        if place and token[:place] in ids and token[place:] in ids
    ]
    merges.sort(key=lambda merge: -merge[0])
    space: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    has_prefix = vocabulary.flag("add_space_prefix", True)
    if has_prefix:
        space.insert(0, {"type": "Prepend", "prepend": "\u2581"})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = [token for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == _UNKNOWN]
    return {
        "normalizer": {"type": "Sequence", "normalizers": space},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": ids,
            "merges": [[left, right] for _, left, right in merges],
            "unk_token": unknown[0] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }, True


def _around(vocabulary: _Vocabulary, begins: bool) -> dict[str, Any] | None:
    """Make the post-processor that adds tokens before and after a text. Returns None where it adds none."""
    ends = vocabulary.flag("add_eos_token", False)
    first = vocabulary.special("bos") if vocabulary.flag("add_bos_token", begins) else None
    last = vocabulary.special("eos") if ends else None
    if first is None and last is None:
        return None
    text: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special = {}
    for token, place in ((first, 0), (last, len(text) + 1)):
        if token is not None:
            content = vocabulary.tokens[token]
            text.insert(place, {"SpecialToken": {"id": content, "type_id": 0}})
            special[content] = {"id": content, "ids": [token], "tokens": [content]}
    pair = [*text, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": special}
