"""``moec generate ART --chat`` on a terminal without a prompt: a conversation."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moec.cli.ending import call_when_interrupted, say_error
from moec.common.errors import MoecError

if TYPE_CHECKING:
    from moec.runtime.talk import Talk

_HELP = "/reset forgets the conversation, /system TEXT sets the system message; Ctrl-C stops an answer, Ctrl-D ends"


_OF_PROMPTS = {"batch": 1, "drafts": None, "draft_model": None}
"""Options of ``moec generate`` that a conversation refuses, with their defaults."""


class _StopError(Exception):
    """Ctrl-C during an answer."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raise MoecError for an option that is for prompts alone."""
    for name, neutral in _OF_PROMPTS.items():
        if options[name] != neutral:
            raise MoecError(f"--{name.replace('_', '-')} is for prompts; leave it out of a conversation")


def converse(talk: Talk) -> None:
    """Read messages from the terminal and print answers until the input ends."""
    print(_HELP, file=sys.stderr)
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            print(flush=True)
            return
        text = line.strip()
        if text == "/reset":
            talk.reset()
        elif text == "/system" or text.startswith("/system "):
            talk.system = text.removeprefix("/system").strip() or None
        elif text:
            _answer(talk, text)


def _answer(talk: Talk, text: str) -> None:
    is_stopped = threading.Event()

    def show(place: int, piece: str) -> None:
        print(piece, end="", flush=True)
        if is_stopped.is_set():
            raise _StopError

    try:
        with call_when_interrupted(is_stopped.set):
            generation = talk.answer(text, show)
    except _StopError:
        print("\n(stopped)", flush=True)
        return
    except MoecError as error:
        say_error(str(error))
        return
    print(flush=True)
    later, seconds = max(len(generation.ids) - 1, 0), generation.decode_seconds
    rate = f", {later / seconds:.1f} tokens/s" if later and seconds else ""
    first = f"first token after {generation.prefill_seconds:.2f} s"
    print(f"{first}; {len(generation.ids)} tokens{rate}", file=sys.stderr)
