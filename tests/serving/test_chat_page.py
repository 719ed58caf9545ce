"""The page to chat in: as it is served, and in Chromium."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

import moec

from .served import Gate, served, wait_for

CHAT = [{"role": "user", "content": "hello there"}]
HOSTILE = "<img src=x onerror=alert(1)><script>alert(1)</script> & \U0001f642\n```html\n<b>bold</b>\n```\nend"


@pytest.fixture
def page(chromium) -> Iterator[Any]:
    context = chromium.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    context.close()


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def stream_of(text: str) -> bytes:
    """A stream of chat events whose parts end within characters."""
    deltas = [{"choices": [{"delta": {"content": letter}}]} for letter in text]
    events = [*deltas, {"choices": [], "usage": {"completion_tokens": len(text)}}]
    return (
        "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"
    )


def test_the_page_is_one_file_that_loads_nothing(model):
    with served(model, key="secret") as server, urllib.request.urlopen(f"{server.url}/", timeout=20) as answer:
        content, policy = answer.read().decode(), answer.headers["content-security-policy"]
        assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert not re.findall(r"https?://|innerHTML|insertAdjacentHTML|document\.write|\bstyle=|\bon\w+=", content)
    assert len(content) < 16_000


def test_a_conversation_in_a_browser(model, page):
    faults = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    with served(model, new_tokens=30) as server:
        page.goto(server.url)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("System prompt").fill("be kind")
        ask(page, "hello there")
        page.get_by_text(re.compile(r"\d+ tokens")).wait_for()
        messages = [{"role": "system", "content": "be kind"}, *CHAT]
        (first,) = moec.generate(model, messages, max_new_tokens=30)
        assert page.locator("article.assistant .text").inner_text() == first.text
        ask(page, "and?")
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "and?"}]
        (second,) = moec.generate(model, messages, max_new_tokens=30)
        page.get_by_text(re.compile(r"\d+ tokens")).nth(1).wait_for()
        assert page.locator("article.assistant .text").nth(1).inner_text() == second.text
        page.get_by_role("button", name="New chat").click()
        assert page.locator("article").count() == 0
        ask(page, "refuse")
        assert "chat template fails" in page.get_by_role("alert").inner_text()
        assert page.title() == "letters" and all("status of 400" in fault for fault in faults)


def test_answers_can_be_copied_and_questions_cannot(model, page):
    with served(model, new_tokens=30) as server:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto(server.url)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Temperature").fill("0")
        ask(page, "hello there")
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        (answer,) = moec.generate(model, CHAT, max_new_tokens=30)
        assert page.evaluate("navigator.clipboard.readText()") == answer.text
        assert page.locator("article.user button").count() == 0


def test_what_a_model_writes_is_only_text(model, page):
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    with served(model) as server:
        page.goto(server.url)
        headers = {"content-type": "text/event-stream"}
        page.route("**/completions", lambda route: route.fulfill(body=stream_of(HOSTILE), headers=headers))
        ask(page, HOSTILE)
        page.get_by_text(re.compile(r"\d+ tokens")).wait_for()
        answer = page.locator("article.assistant .text")
        assert answer.locator("pre").inner_text() == "<b>bold</b>\n"
        assert answer.text_content() == HOSTILE.replace("\n```html\n", "").replace("```\n", "")
        assert page.locator("article img, article script, article b").count() == 0
        added = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
        page.evaluate(added)
        assert page.evaluate("window.ran") is None and not dialogs


def test_the_stop_button_ends_an_answer(model, page, monkeypatch):
    with served(model) as server:
        gate = Gate(server, monkeypatch)
        gate.open(5)
        page.goto(server.url)
        ask(page, "hello there")
        page.locator("article.assistant .text", has_text=re.compile(".")).wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("stopped").wait_for()
        wait_for(lambda: server.scheduler._open == 0)
        gate.open(5)
        wait_for(gate.is_free)
        assert page.get_by_role("button", name="Send").is_visible()


def test_headings_bold_text_and_code_are_shown_as_such(model, page):
    text = "# A <b>title</b>\n**bold** and `<i>code</i>`, 2 ** 3 ** 4, not ** bold\nor`\n#hash"
    with served(model) as server:
        page.goto(server.url)
        headers = {"content-type": "text/event-stream"}
        page.route("**/completions", lambda route: route.fulfill(body=stream_of(text), headers=headers))
        ask(page, "hello")
        page.get_by_text(re.compile(r"\d+ tokens")).wait_for()
        answer = page.locator("article.assistant .text")
        assert answer.locator("strong").all_inner_texts() == ["A <b>title</b>", "bold"]
        assert answer.locator("code").all_inner_texts() == ["<i>code</i>"]
        assert answer.inner_text().endswith("2 ** 3 ** 4, not ** bold\nor`\n#hash")


def test_a_question_that_nobody_answers_can_be_sent_again(model, page):
    with served(model, new_tokens=5) as server:
        page.goto(server.url)
        page.route("**/completions", lambda route: route.abort())
        ask(page, "hello there")
        page.get_by_text("The server cannot be reached").wait_for()
        page.unroute("**/completions")
        assert page.get_by_label("Message").input_value() == "hello there"
        page.keyboard.press("Enter")
        page.get_by_text("5 tokens").wait_for()
        assert page.get_by_text("cut off").count() == 1 and page.get_by_label("Message").input_value() == ""


def test_the_page_asks_for_a_key(model, page):
    with served(model, key="secret") as server:
        page.goto(server.url)
        page.get_by_text("The server asks for an API key").wait_for()
        key = page.get_by_label("API key")
        for text, answer in (("wrong", "The server has another API key"), ("secret", "Ask the model something")):
            key.fill(text)
            key.press("Enter")
            page.get_by_text(answer).wait_for()
        ask(page, "hello there")
        page.get_by_text(re.compile(r"\d+ tokens")).wait_for()
