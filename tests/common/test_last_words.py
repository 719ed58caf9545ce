"""Last words are asked for while their block lasts, and said before a process ends by SIGTERM alone."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from moec.common.errors import LostRankError, MoecError
from moec.common.last_words import last_words, spoken

from ..command import hear_interrupts

PROGRAM = """if True:
    import sys, threading
    from moec.cli.ending import end_when_told
    from moec.common.last_words import last_words
    end_when_told()
    with last_words(lambda: "rank 3 ended"), last_words(lambda: None):
        print(flush=True)
        sys.stderr = None
        threading.Event().wait()
"""


def test_words_are_those_of_the_blocks_that_last():
    with last_words(lambda: "a"):
        with last_words(lambda: None), last_words(lambda: "b"):
            assert spoken() == ["a", "b"]
        assert spoken() == ["a"]
    assert spoken() == []


def test_a_lost_rank_stays_a_last_word_after_its_block(monkeypatch):
    monkeypatch.setattr("moec.common.last_words._speakers", [])
    with pytest.raises(MoecError), last_words(lambda: "a"):
        raise MoecError("b")
    assert spoken() == []
    with pytest.raises(LostRankError), last_words(lambda: "a"):
        raise LostRankError("c")
    assert spoken() == ["c"]


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "error: rank 3 ended\n"), (signal.SIGINT, "")])
def test_words_are_said_when_a_launcher_ends_the_process(number, said):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], preexec_fn=hear_interrupts, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "\n"
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == said and process.returncode == 128 + number
