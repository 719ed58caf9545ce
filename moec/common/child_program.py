"""The program of the processes that :mod:`moec.common.child` starts. It imports very little, to start fast.

``python -I -S child_program.py SECONDS BYTES FOLDERS PROGRAM ARGUMENTS...`` calls ``main`` of the file PROGRAM with the
contents of standard input and the arguments, and writes its result to standard output. For an exception it writes the
name of its type and its message as JSON, and the exit code is REFUSED.
"""

import json
import math
import os
import runpy
import sys

REFUSED, NO_MEMORY = 3, 4
_LONGEST = 2000
"""Characters of an exception's message."""


def main(seconds: str, memory: str, folders: str, program: str, *arguments: str) -> int:
    limit(float(seconds), int(memory))
    # Anything that libraries print would be mistaken for the result.
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path += json.loads(folders)
    try:
        called = runpy.run_path(program)["main"]
        answer, code = called(sys.stdin.buffer.read(), *arguments), 0
    except MemoryError:
        return NO_MEMORY
    except BaseException as error:  # a panic of a library in Rust is no Exception
        answer, code = json.dumps([type(error).__name__, str(error)[:_LONGEST]]).encode(), REFUSED
    with result:
        result.write(answer)
    return code


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
