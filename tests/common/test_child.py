"""Work in a separate process with limits: it ends with a result or one error."""

from __future__ import annotations

import time

import pytest

from moec.common.child import Limits, LostError, RefusedError, run_child

AMPLE = Limits(seconds=20, memory=1 << 28)


@pytest.fixture
def program(tmp_path):
    def write(body: str):
        path = tmp_path / "program.py"
        path.write_text(f"import os, signal, sys, time\ndef main(message, *arguments):\n    {body}\n")
        return path

    return write


def test_a_program_gets_message_and_arguments_and_answers(program):
    path = program("print('not the answer'); return message[::-1] + ' '.join(arguments).encode()")
    assert run_child(path, b"\x00abc", AMPLE, "x", "y z") == b"cba\x00x y z"


def test_megabytes_go_both_ways(program):
    message = bytes(range(256)) * 2**13
    assert run_child(program("return message"), message, AMPLE) == message


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        ("raise KeyError('why')", "KeyError", "'why'"),
        ("class Panic(BaseException): pass\n    raise Panic('at once')", "Panic", "at once"),
        ("sys.exit('leaving')", "SystemExit", "leaving"),
        ("import numpy", "ModuleNotFoundError", "No module named 'numpy'"),
    ],
)
def test_an_exception_comes_with_the_name_of_its_type(program, body, kind, reason):
    with pytest.raises(RefusedError) as caught:
        run_child(program(body), b"", AMPLE)
    assert (caught.value.kind, str(caught.value)) == (kind, reason)


@pytest.mark.parametrize(
    ("body", "limits", "reason"),
    [
        ("return b'a' * 10**9", AMPLE, "needs more than 256 MB of memory"),
        ("while True: pass", Limits(1, 1 << 28), "does not end within 1 s"),
        ("time.sleep(60)", Limits(0.1, 1 << 28), "does not end within 0.1 s"),
        (
            "sys.stderr.write('\\nfirst\\nlast\\n'); sys.stderr.flush(); os.kill(os.getpid(), 11)",
            AMPLE,
            r"crashes with SIGSEGV \(first\)",
        ),
        ("os._exit(9)", AMPLE, "ends its process with exit code 9"),
    ],
)
def test_limits_and_crashes_are_errors(program, body, limits, reason):
    start = time.monotonic()
    with pytest.raises(LostError, match=f"^{reason}$"):
        run_child(program(body), b"", limits)
    assert time.monotonic() - start < 15


def test_packages_that_are_asked_for_can_be_imported(program):
    path = program("import jinja2; return jinja2.__name__.encode()")
    assert run_child(path, b"", AMPLE, packages=("jinja2", "markupsafe", "not_installed")) == b"jinja2"
