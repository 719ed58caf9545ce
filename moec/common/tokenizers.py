"""Text to token ids and back: files of a tokenizer, and the package ``tokenizers``, which only text needs.

A ``tokenizer.json`` is untrusted, and on some the package panics, crashes, hangs or fills the memory. So a file is
first read in a child process (:func:`check_tokenizer`), once, and then here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence

from moec.common.child import Limits, LostError, RefusedError, run_child
from moec.common.errors import MoecError, one_line
from moec.common.token_bytes import bytes_of, decoder_kinds

LIMITS = Limits(seconds=20, memory=2 << 30)
"""Limits for reading a tokenizer and a page of text with it: a vocabulary of 128,000 tokens takes 0.7 s and 150 MB."""
_PROGRAM = pathlib.Path(__file__).with_name("tokenizer_program.py")
_PACKAGE = "tokenizers"
_MISSING = "text needs the package tokenizers; install moec[text]"


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Files of a language model's text.

    ``tokenizer``: the text of ``tokenizer.json``. ``end_ids``: the token ids that end a text. ``special_tokens``: by
    their names in chat templates, such as ``bos_token``. ``checked_by``: version of the package ``tokenizers`` with
    which :func:`check_tokenizer` read it, if any. ``context``: the most tokens of a text that the model was trained
    for, where its files say so.
    """

    tokenizer: str
    chat_template: str | None
    end_ids: tuple[int, ...]
    special_tokens: dict[str, str]
    checked_by: str | None = None
    context: int | None = None


class Tokenizer:
    """A ``tokenizers.Tokenizer`` whose errors are MoecErrors of one line."""

    def __init__(self, content: str, where: object, checked_by: str | None = None) -> None:
        """Load a tokenizer. ``content``: of a ``tokenizer.json``; ``where`` names it in messages. ``checked_by``:
        version of the package that has checked it before; with another version it is checked now.

        Raises MoecError where it is no tokenizer, or the package is not installed.
        """
        version = _installed_version()
        if version is None:
            raise MoecError(_MISSING)
        if checked_by != version:
            check_tokenizer(content, where)
        from tokenizers import Tokenizer as Inner

        self._where = where
        with self._explained("cannot be read"):
            self._inner = Inner.from_str(content)
            self._inner.no_truncation()  # files keep the settings of their training
            self._inner.no_padding()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode a text. Raises MoecError."""
        with self._explained("cannot make tokens of this text"):
            return self._inner.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_each(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Encode each text, without special tokens. Raises MoecError."""
        with self._explained("cannot make tokens of this text"):
            encoded = self._inner.encode_batch(texts, add_special_tokens=False)
        for encoding in encoded:
            yield encoding.ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids; special tokens have no text. Raises MoecError."""
        with self._explained("cannot make text of these tokens"):
            return self._inner.decode(list(ids), skip_special_tokens=True)

    def bytes_of(self, token: int) -> bytes:
        """Bytes of one token, of special ones those of their name; none for ids without token."""
        piece = self._inner.id_to_token(token)
        return b"" if piece is None else bytes_of(piece, self._decoder_kinds)

    def vocabulary(self) -> tuple[list[bytes], list[int]]:
        """Bytes of all tokens by their ids, empty for ids without token, and the ids of special tokens."""
        ids = self._inner.get_vocab(with_added_tokens=True).values()
        added = self._inner.get_added_tokens_decoder()
        return [self.bytes_of(token) for token in range(max(ids) + 1)], [id for id in added if added[id].special]

    @functools.cached_property
    def _decoder_kinds(self) -> set[str]:
        decoder = self._inner.decoder
        return set() if decoder is None else decoder_kinds(json.loads(decoder.__getstate__()))

    @contextlib.contextmanager
    def _explained(self, failure: str) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            raise MoecError(f"{self._where}: the tokenizer {failure} ({one_line(error)})") from error


def check_tokenizer(content: str, where: object) -> str | None:
    """Read a tokenizer in a child process. Returns the version of the package, or None where it is not installed and
    nothing was read. ``where`` names the file in messages. Raises MoecError where reading fails or reaches a limit."""
    if _installed_version() is None:
        return None
    try:
        return run_child(_PROGRAM, content.encode(), LIMITS, packages=(_PACKAGE,)).decode()
    except UnicodeEncodeError as error:
        reason = f"a string in it is no valid text: {error.reason}"
    except RefusedError as error:
        reason = one_line(error)
    except LostError as error:
        reason = f"reading it {error}"
    raise MoecError(f"{where}: is not a tokenizer.json that the package tokenizers can read ({reason}); take another")


def _installed_version() -> str | None:
    from importlib import metadata  # takes as long as all other imports of this module

    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return None
