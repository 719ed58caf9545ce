"""Conversations as text: one process renders all of them, within limits."""

from __future__ import annotations

import time

import pytest

from moec.common.child import Limits
from moec.common.errors import MoecError
from moec.runtime import chat_template
from moec.runtime.chat_template import chat_texts, template_child

USER = {"role": "user", "content": "é \ud800"}


def test_each_conversation_becomes_a_text():
    template = "{{ bos_token }}{% for m in messages %}{{ m.content | tojson }};{% endfor %}{{ add_generation_prompt }}"
    texts = chat_texts(template_child(), template, [[USER], [USER, USER], []], {"bos_token": "<s>"}, "a.moec")
    assert texts == ['<s>"é \ud800";True', '<s>"é \ud800";"é \ud800";True', "<s>True"]


def test_further_conversations_have_the_process_of_the_first():
    child = template_child()
    template = "{{ cycler is defined }} {{ messages[0].content }}"
    for content in ("first", "second"):
        message = {"role": "user", "content": content}
        assert chat_texts(child, template, [[message]], {}, "a.moec") == [f"True {content}"]
    assert chat_texts(child, "another {{ messages | length }}", [[]], {}, "a.moec") == ["another 0"]
    assert len(child._idle) == 1


def test_a_long_conversation_may_become_a_long_text():
    message = {"role": "user", "content": "ab" * 10**6}
    assert chat_texts(template_child(), "{{ messages[0].content }}", [[message]], {}, "a.moec") == ["ab" * 10**6]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages.__class__.__mro__ }}", "fails: .*unsafe[.]?"),
        ("{{ raise_exception('no such role') }}", "fails: no such role"),
        ("{% if %}", "fails: Expected an expression.*"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ 'a' * 3 * 10**9 }}", "needs more than 512 MB of memory"),
        ("{{ 'a' * 2 * 10**6 }}", r"fails: it makes 2000000 characters, more than 10\d+"),
    ],
)
def test_templates_that_fail_or_reach_for_more(template, message):
    with pytest.raises(MoecError, match=rf"^a\.moec: its chat template {message}; generate without --chat$"):
        chat_texts(template_child(), template, [[USER]], {}, "a.moec")


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set a = 'b' * 10**9 %}{{ a }}",
        "{{ 7 ** (7 ** 12) }}",
        "{{ ['a' * 10**6] * 10**6 | join }}",
    ],
)
def test_a_template_without_end_is_one_line(monkeypatch, template):
    monkeypatch.setattr(chat_template, "LIMITS", Limits(0.5, 1 << 27))
    start = time.monotonic()
    with pytest.raises(
        MoecError, match=r"^a\.moec: its chat template (does not|needs|fails).*; generate without"
    ) as caught:
        chat_texts(template_child(), template, [[USER]], {}, "a.moec")
    assert "\n" not in str(caught.value) and time.monotonic() - start < 20
