"""The page to chat in: one file without requests to others, whose policy lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import pathlib
import re

_PAGE = pathlib.Path(__file__).with_name("page") / "chat.html"


def chat_page() -> tuple[bytes, dict[str, str]]:
    """Read the page. Returns its content, and the headers by which browsers run its own script and style alone."""
    content = _PAGE.read_bytes()
    policy = [
        "default-src 'none'",
        f"script-src {_digest(content, b'script')}",
        f"style-src {_digest(content, b'style')}",
        "connect-src 'self'",
        "img-src data:",
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
    headers = {
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return content, headers


def _digest(content: bytes, tag: bytes) -> str:
    """Source of a content security policy that allows the one element of a kind."""
    (text,) = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
