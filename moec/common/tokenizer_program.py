"""The program of :func:`moec.common.tokenizers.check_tokenizer`, run by :mod:`moec.common.child_program`."""

import contextlib
import os

_SCRIPTS = "na\u00efve Stra\u00dfe Привет 你好世界 مرحبا नमस्ते 안녕하세요 🙂\u200d🙂 e\u0301 \u200b\ufffd\x00"
_LINES = "Hello, world! It's 12345.67 (a+b)*c\r\n\n\tdef f(x):\n        return x\n" + _SCRIPTS
_REPEATS = 1000
"""Repetitions of a character: expressions that search exponentially do not end on as many."""
_MOST = 300
"""Ids from either end of the vocabulary that are decoded one by one."""


def main(content: bytes) -> bytes:
    """Load a tokenizer, encode some text and decode some tokens. Returns the version of the package.

    An ordinary error in encoding is accepted, because some tokenizers do not know all characters; a panic is not.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    repeated = (character * _REPEATS + "!" for character in "ax0 \n.é")
    for text in ("", "a", *_LINES.split(), _LINES, *repeated):
        with contextlib.suppress(Exception):
            ids = tokenizer.encode(text).ids
            tokenizer.decode(ids)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    for token in {*range(min(size, _MOST)), *range(max(size - _MOST, 0), size)}:
        with contextlib.suppress(Exception):
            tokenizer.decode([token], skip_special_tokens=True)
    return tokenizers.__version__.encode()
