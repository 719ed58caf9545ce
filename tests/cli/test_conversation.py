"""moec generate --chat on a terminal without a prompt: a conversation, by a pseudo-terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import inspect
import os
import select
import subprocess
import sys
import termios
import time

import pytest

import moec
from moec.cli.conversation import _OF_PROMPTS
from moec.cli.text import generate
from moec.runtime.sampling import Sampling
from moec.runtime.talk import Talk

from ..command import hear_interrupts
from ..command import moec as command
from ..products import thinned
from ..serving.served import compiled

SLOW = (
    "import time, moec.runtime.sampling as sampling; choose = sampling.Sampling.choose; "
    "sampling.Sampling.choose = lambda *given: (time.sleep(SECONDS), choose(*given))[1]; "
    "from moec.__main__ import main; main()"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> moec.CompiledModel:
    folder = tmp_path_factory.mktemp("letters")
    compiled(folder).save(folder / "letters.moec")
    return moec.load(folder / "letters.moec")


def _own_terminal() -> None:
    """Make the standard input the terminal that a new process is interrupted by."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    hear_interrupts()


class Terminal:
    """A program on a pseudo-terminal without echo."""

    def __init__(self, seconds: float, *arguments: object) -> None:
        self._own, theirs = os.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        words = [sys.executable, "-c", SLOW.replace("SECONDS", str(seconds)), *map(str, arguments)]
        self.process = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(theirs)

    def send(self, text: str) -> None:
        os.write(self._own, text.encode())

    def read_to(self, end: str) -> str:
        """Text up to ``end``, which is left out."""
        text, deadline = "", time.monotonic() + 60
        while not text.endswith(end):
            assert select.select([self._own], [], [], max(0, deadline - time.monotonic()))[0], text
            text += os.read(self._own, 1).decode()
        return text.removesuffix(end)

    def close(self) -> tuple[int, str]:
        """End the input. Returns the exit code and what was written to stderr."""
        self.send("\x04")
        said = self.process.communicate(timeout=60)[1].decode()
        os.close(self._own)
        return self.process.returncode, said


@contextlib.contextmanager
def terminal(model, seconds=0.0, *options):
    shell = Terminal(seconds, "generate", model.artifact.where, "--chat", *options)
    try:
        yield shell
    finally:
        shell.process.kill()


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def answer(model, *messages: dict[str, str]) -> str:
    return moec.generate(model, list(messages), max_new_tokens=20)[0].text


def counted(monkeypatch, talk: Talk) -> list[int]:
    """Numbers of tokens of the runs that select a token, from now on."""
    parts, session = [], type(talk._session)
    select = session.select

    def count(own, ids, **more):
        parts.append(ids.shape[1])
        return select(own, ids, **more)

    monkeypatch.setattr(session, "select", count)
    return parts


def test_a_conversation_on_a_terminal(model):
    hello, more = message("user", "hello there"), message("user", "and?")
    first = answer(model, hello)
    second = answer(model, hello, message("assistant", first), more)
    kind = answer(model, message("system", "be kind"), hello)
    assert len({first, second, kind}) == 3
    with terminal(model, 0.0, "--max-new-tokens", 20) as shell:
        expected = {"hello there": first, "and?": second, "/reset": None, "hello there ": first}
        expected |= {"/reset ": None, "/system be kind": None, "hello there  ": kind, "": None}
        shell.read_to("> ")
        for text, said in expected.items():
            shell.send(f"{text}\n")
            assert shell.read_to("> ") == ("" if said is None else f"{said}\n")
        code, said = shell.close()
    assert code == 0 and said.count("first token after") == 4 and "tokens/s" in said


def test_interrupts_stop_an_answer_and_then_the_program(model):
    with terminal(model, 0.5, "--max-new-tokens", 1500, "--temperature", 1, "--seed", 1) as shell:
        shell.read_to("> ")
        shell.send("hello there\n")
        assert shell.read_to("L") == "t"  # of some dozens of letters
        shell.send("\x03")
        assert shell.read_to("> ").endswith("\n(stopped)\n")
        shell.send("\x03")
        assert shell.process.wait(60) == 130


def test_without_a_terminal_a_prompt_is_needed(model):
    done = command("generate", model.artifact.where, "--chat")
    assert done.returncode == 2 and "there is no prompt" in done.stderr


@thinned("option", [("--batch", 2), ("--drafts", "ngram"), ("--draft-model", "small.moec")], 3)
def test_options_of_prompts_are_refused(model, option):
    with terminal(model, 0.0, *option) as shell:
        assert shell.process.wait(60) == 2
        said = shell.process.stderr.read().decode()
        assert said == f"error: {option[0]} is for prompts; leave it out of a conversation\n"


def test_every_option_is_refused_or_heeded():
    """An option that conversations would ignore is refused; a new one belongs to one of these sets."""
    of_model = {"artifact", "threads", "pages", "resident", "prefer_resident", "keep_counts", "emulate", "architecture"}
    of_texts = {
        "system",
        "max_new_tokens",
        "max_tokens",
        "stop",
        "prompt_cache",
        *(field.name for field in dataclasses.fields(Sampling)),
    }
    that_make_no_conversation = {"prompt", "prompt_file", "chat", "as_json"}
    options = set(inspect.signature(generate).parameters) - {"context"}
    assert options - of_model - of_texts - that_make_no_conversation == set(_OF_PROMPTS)


def test_a_conversation_continues_a_prompt_on_disk(model, tmp_path, monkeypatch):
    def talk() -> Talk:
        options = {"stops": [], "max_new_tokens": 9, "max_tokens": None, "prompt_cache": tmp_path / "cache"}
        return Talk(model, Sampling(), system="be kind. " * 9, **options)

    def say(own: Talk, text: str) -> str:
        return own.answer(text, lambda place, new: None).text

    first = talk()
    expected = [say(first, text) for text in ("hello there", "and?")]
    before = (tmp_path / "cache").read_bytes()
    computed = counted(monkeypatch, first)
    second = talk()
    assert [say(second, text) for text in ("hello there", "and?")] == expected
    assert computed[0] < 20 and (tmp_path / "cache").read_bytes() == before
    second.reset()
    second.system = None
    alone = Talk(model, Sampling(), system=None, stops=[], max_new_tokens=9, max_tokens=None)
    assert say(second, "hello there") == say(alone, "hello there")
    assert (tmp_path / "cache").read_bytes() != before  # of the last prompt that followed no other


def test_a_file_of_others_is_refused_before_the_conversation(model, tmp_path):
    (tmp_path / "own").write_text("mine")
    with terminal(model, 0.0, "--prompt-cache", tmp_path / "own") as shell:
        assert shell.process.wait(60) == 2 and b"own: is a file that moec did not write" in shell.process.stderr.read()
    assert (tmp_path / "own").read_text() == "mine"


def test_an_answer_computes_only_what_is_new(model, monkeypatch):
    talk = Talk(model, Sampling(), system=None, stops=[], max_new_tokens=9, max_tokens=100)
    parts = counted(monkeypatch, talk)
    first = talk.answer("hello there", lambda place, text: None)
    assert parts == [len("user hello there.A "), *[1] * (len(first.ids) - 1)]
    parts.clear()
    talk.answer("and?", lambda place, text: None)
    # The template writes "assistant" where the model was asked by "A".
    assert parts[0] == len(f"ssistant {first.text}.user and?.A ") + 1

    def refuse(place: int, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.answer("more", refuse)
    assert len(talk._messages) == 6
    with pytest.raises(moec.MoecError, match=r"the prompt has .* tokens, and the session holds 100"):
        talk.answer("abc" * 50, lambda place, text: None)
    talk.reset()
    assert talk.answer("hello there", lambda place, text: None).text == first.text
