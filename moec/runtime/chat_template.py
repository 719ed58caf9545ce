"""Conversations as text, by a model's chat template.

Templates are untrusted programs. They run in Jinja's sandbox, which limits their access, inside a child process, which
limits their time and memory.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.child import ChildError, Limits, LostError
from moec.common.errors import MoecError, one_line
from moec.common.resident_child import ResidentChild

Conversation = Sequence[Mapping[str, Any]]
"""Messages, each with its ``role`` and ``content``, both texts, and with what else templates read (calls of tools)."""

LIMITS = Limits(seconds=5, memory=1 << 29)
"""Far above what models' templates take: some hundredths of a second and 30 MB."""
_PROGRAM = pathlib.Path(__file__).with_name("chat_program.py")
_LONGEST = 1 << 20
"""Characters that a template may add to a conversation."""


def template_child() -> ResidentChild:
    """Make the runner of a template. Those of several models do not share processes."""
    return ResidentChild(_PROGRAM, LIMITS, packages=("jinja2", "markupsafe"))


def chat_texts(
    child: ResidentChild,
    template: str,
    conversations: Sequence[Conversation],
    special_tokens: Mapping[str, str],
    where: str,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Render each conversation up to the model's answer, all by one message to a process of ``child``.

    ``special_tokens``: by their names in the template. ``tools``: functions that the model may call. ``where`` names
    the artifact in messages. Raises MoecError where the template fails or reaches a limit.
    """
    sizes = [len(json.dumps([conversation, tools])) for conversation in conversations]
    longest = _LONGEST + 4 * max(sizes, default=0)
    variables = {**special_tokens, **({"tools": tools} if tools else {})}
    request = {"template": template, "conversations": conversations, "variables": variables, "longest": longest}
    try:
        answer = child.run(json.dumps(request).encode())
    except ChildError as error:
        failure = one_line(error) if isinstance(error, LostError) else f"fails: {one_line(error)[:200]}"
        raise MoecError(f"{where}: its chat template {failure}; generate without --chat") from error
    return json.loads(answer)
