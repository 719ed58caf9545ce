"""The one exception a user of moec ever has to catch, :class:`MoecError`, and its kinds.

Every message answers four questions: where (file, node), what was found, what was expected, what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

REPORT = "this is a defect of moec: report it with the model and the traceback, which MOEC_TRACEBACK=1 shows"


_LONG_WORD = re.compile(r"\S{401,}")
_REFUSALS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM),
    }
)
"""Reasons of an OSError that lie in the system or in a path of the user: no rights, no such name possible, no room, no
further files or processes. Any other one, such as a file that is not there, is unexpected."""
_LONGEST = 4000
"""Characters of a message: names in a model's file may have any length."""


class MoecError(Exception):
    """Bad input or usage. The command line prints it as one line and ends with exit code 2. Names of more than 400
    characters, and messages of more than 4,000, are shortened to their two ends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(_ends(argument) if isinstance(argument, str) else argument for argument in arguments))


class OptionError(MoecError, TypeError):
    """A function of moec was called with unknown arguments, or without a required one."""


class UnsupportedError(MoecError):
    """The model is valid, but needs something that moec does not support (an operator, a type, control flow)."""


class VerificationError(MoecError):
    """The IR breaks one of its own rules: a defect of a pass or of a hand-written text, never of a user's model."""


class ArtifactError(MoecError):
    """A compiled artifact is truncated, altered, of another format version or for another machine."""


class DefectError(MoecError):
    """moec itself failed: nothing the user gave explains it. The command line ends with exit code 3."""


class InputError(MoecError):
    """A compiled model was called with the wrong names, dtypes, ranks or sizes."""


class LostRankError(MoecError):
    """Another rank of a distributed run ended, failed or does not answer."""


class RoomError(MoecError):
    """A run needs more memory at once than there is; one of fewer tokens may succeed."""


def _ends(text: str) -> str:
    text = _LONG_WORD.sub(lambda word: f"{word[0][:190]}...{word[0][-190:]}", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 + 5 :]}"


def one_line(error: BaseException) -> str:
    """Write an error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def reporting(step: str, source: Any = None) -> Iterator[None]:
    """Context for every step that works on a user's input: any error in it becomes one MoecError.

    A MoecError gets the name of the model's file as a prefix, where ``source`` is one, because code below the frontend
    only knows nodes. Lack of memory, and what the system refuses (no rights, a full disk, a name that is too long),
    become MoecErrors, too. Any other error is unexpected: it becomes a DefectError that names file, step and node, with
    the cause chained.
    """
    try:
        yield
    except MoecError as error:
        raise _named(error, source) from error.__cause__
    except MemoryError as error:
        reason = one_line(error) or "an allocation failed"
        raise _named(MoecError(f"{step}: there is not enough memory ({reason})"), source) from error
    except Exception as error:
        # libraries wrap errors of our own callbacks and lazy tensors in their own
        own = _moec_error_behind(error) or _refusal_of_system(step, error)
        if own is not None:
            raise _named(own, source) from error
        node = _node_at(error.__traceback__)
        place = f"{step}: {node}" if node else step
        raise _named(DefectError(f"{place}: {type(error).__name__}: {one_line(error)}; {REPORT}"), source) from error


def _named(error: MoecError, source: Any) -> MoecError:
    if not isinstance(source, (str, os.PathLike)) or str(error).startswith(os.fspath(source)):
        return error
    return type(error)(f"{os.fspath(source)}: {error}")


def _moec_error_behind(error: BaseException) -> MoecError | None:
    cause: BaseException | None = error
    seen: set[int] = set()  # an error may be its own cause
    while cause is not None and not isinstance(cause, MoecError) and id(cause) not in seen:
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return cause if isinstance(cause, MoecError) else None


def _refusal_of_system(step: str, error: Exception) -> MoecError | None:
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    what = "the system refuses" if error.filename is None else f"{error.filename}: cannot be used"
    return MoecError(f"{step}: {what}: {error.strerror}")


def _node_at(traceback: TracebackType | None) -> str | None:
    """Find the node that was at work: the last one among the variables of the traceback's frames."""
    if "onnx_ir" not in sys.modules:
        return None
    import onnx_ir as ir

    from moec.common.names import node_name, operator_name

    node = None
    while traceback is not None:
        nodes = [value for value in traceback.tb_frame.f_locals.values() if isinstance(value, ir.Node)]
        node = nodes[-1] if nodes else node
        traceback = traceback.tb_next
    return None if node is None else f"node {node_name(node)!r} ({operator_name(node)})"
