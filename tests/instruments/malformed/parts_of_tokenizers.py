"""Parts of a tokenizer.json of every kind that the package tokenizers has, right, odd and slow; and chat templates."""

from __future__ import annotations

from typing import Any

_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_LONG = "(" * 5000 + "a" + ")" * 5000

PARTS: dict[str, tuple[Any, ...]] = {
    "normalizer": (
        *({"type": kind} for kind in ("NFC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel", "Unknown")),
        {"type": "Prepend", "prepend": "x" * 100_000},
        {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "xx"},
        {"type": "Replace", "pattern": {"Regex": _LONG}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Precompiled", "precompiled_charsmap": ""},
        {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": 7,
        },
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "ab"}] * 300},
    ),
    "pre_tokenizer": (
        *(
            {"type": kind}
            for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts", "Punctuation")
        ),
        {"type": "Digits", "individual_digits": True},
        {"type": "Metaspace", "replacement": "xx", "prepend_scheme": "always"},
        {"type": "CharDelimiterSplit", "delimiter": ""},
        {**_SPLIT, "pattern": {"Regex": ""}},
        {**_SPLIT, "pattern": {"Regex": "(?:a*)*b"}},
        {**_SPLIT, "pattern": {"Regex": "a{1000}{1000}{1000}"}},
        {**_SPLIT, "pattern": {"String": ""}},
        {**_SPLIT, "pattern": {"String": "a"}, "behavior": "Sideways"},
        {"type": "FixedLength", "length": 0},
        {"type": "FixedLength", "length": 2**63},
        {"type": "Sequence", "pretokenizers": []},
    ),
    "post_processor": (
        {"type": "BertProcessing", "sep": ["</s>", 2**40], "cls": ["<s>", 256]},
        {
            "type": "RobertaProcessing",
            "sep": ["</s>", 257],
            "cls": ["<s>", 256],
            "trim_offsets": True,
            "add_prefix_space": 1,
        },
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [256, 2**31], "tokens": ["<s>"]}},
        },
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "absent", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
        {"type": "Sequence", "processors": [{"type": "ByteLevel"}]},
    ),
    "decoder": (
        *({"type": kind} for kind in ("ByteFallback", "Fuse", "WordPiece", "Metaspace", "BPEDecoder", "CTC")),
        {"type": "Strip", "content": "xx", "start": 2**63, "stop": 1},
        {"type": "Strip", "content": "x", "start": 2**62, "stop": 2**62},
        {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 10_000},
        {"type": "WordPiece", "prefix": "", "cleanup": True},
    ),
    "model": (
        {"type": "WordLevel", "vocab": {"a": 0, "b": 2**31}, "unk_token": "absent"},
        {"type": "WordLevel", "vocab": {}, "unk_token": ""},
        {
            "type": "WordPiece",
            "vocab": {"a": 0, "##b": 1},
            "unk_token": "x",
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": 0,
        },
        {
            "type": "WordPiece",
            "vocab": {"[UNK]": 300},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9,
        },
        {"type": "Unigram", "vocab": [], "unk_id": 0},
        {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1e308]], "unk_id": None},
        {"type": "Unigram", "vocab": [["", 0.0]], "unk_id": 0, "byte_fallback": True},
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9},
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 4_000_000_000}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "é", "dropout": 7},
        {
            "type": "BPE",
            "vocab": {"aé": 0, "éb": 1, "a": 2, "b": 3},
            "merges": [["a", "éb"]],
            "continuing_subword_prefix": "aaaaa",
        },
        {"type": "BPE", "vocab": {}, "merges": []},
        {"vocab": {"a": 0}, "merges": []},
    ),
    "added_tokens": (
        [],
        [{"id": 2**32, "content": "a", "special": True}],
        [
            {
                "id": 256,
                "content": "",
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": True,
            }
        ],
        [{"id": number, "content": "<s>", "special": number % 2 == 0} for number in range(256, 300)],
        [{"id": -1, "content": "x"}],
        "none",
        {"a": 1},
    ),
    "truncation": ({"max_length": 0, "strategy": "LongestFirst", "stride": 9, "direction": "Right"}, 7),
    "padding": (
        {
            "strategy": {"Fixed": 2**62},
            "direction": "Left",
            "pad_to_multiple_of": 0,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
        {
            "strategy": "BatchLongest",
            "direction": "Left",
            "pad_to_multiple_of": 0,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    ),
}
"""By the key of a tokenizer.json: values."""

_AROUND = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
TEMPLATES = (
    _AROUND,
    "{{ messages[0]['content'] }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ raise_exception('no\nsystem') }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in range(100000000) %}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{{ 'x' * 300000000 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ ('ab' * 100000) | replace('a', 'b' * 100000) }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
    "{% set l = [] %}{% for i in range(20) %}{{ l.append(l) }}{% endfor %}{{ l }}",
    "{{ messages.__class__.__mro__ }}{{ self.__init__.__globals__ }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{{ '%s' | format }}{{ '{:>999999999}'.format(1) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ none.x.y }}",
    "{{ messages['x'] + 1 }}",
    "{{ 1 / 0 }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 3000 + "1 }}",
    "{% if " + "not " * 3000 + "x %}{% endif %}",
    "{{ '\\ud800' }}",
    "{{ '\ud7ff\0' }}",
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ range(10**30) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a b ' * 100000 | wordwrap(1) }}",
    "{{ messages | map('batch', 2) | list }}{{ [1] | batch(10**9, 'x') | list }}",
    "{% generation %}{{ 1 }}{% endgeneration %}",
    "{% break %}",
    "",
    "{{",
    "{% endfor %}",
    "{# ",
)
