"""Conversations as text, by a model's chat template.

Templates are untrusted programs. They run in Jinja's sandbox, which limits their access, inside a child process, which
limits their time and memory.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

from moec.common.child import ChildError, Limits, LostError, run_child
from moec.common.errors import MoecError, one_line

Conversation = Sequence[Mapping[str, str]]
"""Messages, each with its ``role`` and ``content``."""

LIMITS = Limits(seconds=5, memory=1 << 29)
"""Far above what models' templates take: some hundredths of a second and 30 MB."""
_PROGRAM = pathlib.Path(__file__).with_name("chat_program.py")
_LONGEST = 1 << 20
"""Characters that a template may add to a conversation."""


def chat_texts(
    template: str, conversations: Sequence[Conversation], special_tokens: Mapping[str, str], where: str
) -> list[str]:
    """Render each conversation up to the model's answer, all in one child process.

    ``special_tokens``: by their names in the template. ``where`` names the artifact in messages. Raises MoecError where
    the template fails or reaches a limit.
    """
    longest = _LONGEST + 4 * max((_characters(conversation) for conversation in conversations), default=0)
    request = {"template": template, "conversations": conversations, "variables": special_tokens, "longest": longest}
    try:
        answer = run_child(_PROGRAM, json.dumps(request).encode(), LIMITS, packages=("jinja2", "markupsafe"))
    except ChildError as error:
        failure = one_line(error) if isinstance(error, LostError) else f"fails: {one_line(error)[:200]}"
        raise MoecError(f"{where}: its chat template {failure}; generate without --chat") from error
    return json.loads(answer)


def _characters(conversation: Conversation) -> int:
    return sum(len(text) for message in conversation for text in message.values())
