"""The program of the processes that :mod:`moec.common.child` starts. It imports very little, to start fast.

``python -I -S child_program.py once SECONDS BYTES FOLDERS PROGRAM ARGUMENTS...`` calls ``main`` of the file PROGRAM
with the contents of standard input and the arguments, and writes its result to standard output. For an exception it
writes the name of its type and its message as JSON, and the exit code is REFUSED.

With ``stays`` in place of ``once`` it does so for each message (MESSAGE_HEAD and contents) and writes each result
behind its ANSWER_HEAD, the exit code and the size, until its input ends, memory does not suffice, or half of the time
is used.
"""

import functools
import json
import math
import os
import runpy
import struct
import sys
import time

ONCE, STAYS = "once", "stays"
DONE, REFUSED, NO_MEMORY = 0, 3, 4
MESSAGE_HEAD, ANSWER_HEAD = struct.Struct("<Q"), struct.Struct("<BQ")
_LONGEST = 2000
"""Characters of an exception's message."""


def main(mode: str, seconds: str, memory: str, folders: str, program: str, *arguments: str) -> int:
    limit(float(seconds), int(memory))
    # Anything that libraries print would be mistaken for the result.
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path += json.loads(folders)
    with result:
        if mode == STAYS:
            return _answer_each(result, float(seconds), program, arguments)
        code, answer = _answer(program, sys.stdin.buffer.read(), arguments)
        result.write(answer)
        return code


def _answer_each(result, seconds: float, program: str, arguments) -> int:
    while time.process_time() < seconds / 2:
        head = sys.stdin.buffer.read(MESSAGE_HEAD.size)
        if not head:
            break
        code, answer = _answer(program, sys.stdin.buffer.read(*MESSAGE_HEAD.unpack(head)), arguments)
        if code == NO_MEMORY:
            return code
        result.write(ANSWER_HEAD.pack(code, len(answer)) + answer)
        result.flush()
    return DONE


def _answer(program: str, message: bytes, arguments):
    """Exit code and result of one message."""
    try:
        return DONE, _main_of(program)(message, *arguments)
    except MemoryError:
        return NO_MEMORY, b""
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return REFUSED, json.dumps([type(error).__name__, str(error)[:_LONGEST]]).encode()


@functools.cache
def _main_of(program: str):
    return runpy.run_path(program)["main"]


def limit(seconds: float, memory: int) -> None:
    """Limit time and memory of this process, and let a crash leave no file."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    whole = math.ceil(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
