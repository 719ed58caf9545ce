"""Grammars that texts follow: JSON schemas and grammars of llguidance, as masks of tokens.

They are untrusted. Each is compiled in a child process with limits of time and memory first; here llguidance then has
its own limits of steps and sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import pathlib
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from moec.common.child import ChildError, Limits, run_child
from moec.common.errors import MoecError, one_line
from moec.runtime.text_codec import TextCodec
from moec.serving.refusals import wrong

LIMITS = Limits(seconds=3, memory=1 << 29)
"""Far above what schemas of people take: some hundredths of a second and 50 MB."""
_PROGRAM = pathlib.Path(__file__).with_name("grammar_program.py")
_PACKAGE = "llguidance"
_MOST_KEPT = 64


@dataclasses.dataclass(frozen=True)
class GrammarText:
    """A grammar of a request. ``parameter``: the one that gave it."""

    kind: Literal["schema", "lark"]
    text: str
    parameter: str


class TokenMatcher:
    """Place of one text in its grammar."""

    def __init__(self, inner: Any, tokens: int) -> None:
        self._inner, self._tokens = inner, tokens

    def allowed(self, vocabulary: int) -> np.ndarray:
        """Ids below ``vocabulary`` of the tokens that may follow, ascending. Raises MoecError where there are none, as
        at llguidance's limits."""
        bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
        ids = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: min(self._tokens, vocabulary)])
        if not ids.size or self._inner.is_error():
            raise MoecError(f"no token fits the grammar here {_first_line(self._inner)}")
        return ids

    def take(self, token: int) -> None:
        """Add a token that was allowed."""
        self._inner.consume_token(token)

    def copy(self) -> TokenMatcher:
        """Make another text that goes on from the same place."""
        return TokenMatcher(self._inner.deep_copy(), self._tokens)


class Grammars:
    """Compiler of grammars for the tokens of one model. Several threads may use it."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec, self._lock = codec, threading.Lock()
        self._checked = functools.lru_cache(_MOST_KEPT)(_checked)

    def matcher(self, grammar: GrammarText) -> TokenMatcher:
        """Begin a text. Raises RequestError for a grammar that is wrong or reaches a limit, and where it cannot be
        followed: without llguidance, or with a tokenizer without a token that ends a text."""
        if importlib.util.find_spec(_PACKAGE) is None:
            raise wrong(grammar.parameter, 'needs llguidance where the server runs: pip install "moec[grammar]"')
        if not self._codec.end_ids:
            raise wrong(grammar.parameter, "needs a token that ends texts, which this model does not have")
        from llguidance import LLMatcher

        try:
            compiled = self._checked(grammar.kind, grammar.text)
        except ChildError as error:
            raise wrong(grammar.parameter, f"cannot be followed: its compilation says: {one_line(error)}") from error
        with self._lock:
            tokenizer = self._tokenizer
        inner = LLMatcher(tokenizer, compiled, log_level=0, limits=_limits())
        if inner.is_error():
            raise wrong(grammar.parameter, f"cannot be followed: {_first_line(inner)}")
        return TokenMatcher(inner, tokenizer.vocab_size)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = sorted(self._codec.end_ids)
        tokens = _GrammarTokens(self._codec, ends[0])
        tokenizer = LLTokenizer(TokenizerWrapper(tokens), eos_token=ends)
        tokens.greedy = tokenizer.greedy_tokenize
        return tokenizer


class _GrammarTokens:
    """The tokens of a model as llguidance asks for them. ``greedy``: makes tokens of any text."""

    bos_token_id = None

    def __init__(self, codec: TextCodec, end: int) -> None:
        self.eos_token_id = end
        self.tokens, self.special_token_ids = codec.vocabulary()
        self.greedy: Callable[[str], list[int]] = lambda text: []
        self._codec = codec

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of a text that a grammar forces. Tokenizers that begin each text with a space make others."""
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        ids = self._codec.encode(text, add_special_tokens=False)
        return ids if b"".join(self.tokens[token] for token in ids) == text.encode() else self.greedy(text)


def _first_line(inner: Any) -> str:
    """Reason why a matcher of llguidance cannot go on."""
    return inner.get_error().partition("\n")[0][:200]


def _limits() -> Any:
    """Limits of llguidance: a state of its lexer takes up to 2 kB, and by default there may be 250,000."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=20_000, verbose_errors=False)


def _checked(kind: str, text: str) -> str:
    """Compile a grammar in a child process. Raises ChildError."""
    return run_child(_PROGRAM, text.encode(), LIMITS, kind, packages=(_PACKAGE,)).decode()


def response_grammar(value: Any) -> GrammarText | None:
    """Read ``response_format``. Returns None for plain text. Raises RequestError."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarText("schema", '{"type": "object"}', "response_format")
    if kind != "json_schema":
        raise wrong("response_format", "has another type than text, json_object or json_schema")
    named = value.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise wrong("response_format", "has no json_schema with a schema, an object")
    return GrammarText("schema", json.dumps(schema), "response_format")
