"""TVMScript parsed in half the time, which is most of what kernels for GPUs cost before a compiler sees them, and the
functions that PyTorch's exporter translates operators to, read once."""

from __future__ import annotations

import functools
import inspect
import linecache
import sys
import types


def read_macros_once() -> None:
    """Have TVM's parser, from now on, keep the syntax tree of each text; it reads a macro again at each call."""
    from tvm.script.parser.core import diagnostics, doc

    parse = functools.cache(doc.parse)

    def as_ast(source: diagnostics.Source) -> doc.AST:
        # The parser takes the decorators off functions inside of others, so only text without any is shared.
        return (parse if source.source.count("@") <= 1 else doc.parse)(source.source)

    diagnostics.Source.as_ast = as_ast  # type: ignore[method-assign]


def read_translations_once() -> None:
    """Have onnxscript, from now on, parse each of its functions once; PyTorch parses all of them for each export."""
    from onnxscript._internal.values import TracedOnnxFunction

    parsed = functools.cache(TracedOnnxFunction.function_ir.fget)
    TracedOnnxFunction.function_ir = property(parsed)  # type: ignore[method-assign,assignment]


def frames_of_files(context: int = 1) -> list[inspect.FrameInfo]:
    """The frames of :func:`inspect.stack`, each with a line of its file, and with none if the file is not there.

    TVM's parser asks for all frames at every kernel and buffer, and inspect's own function searches all modules for
    each that evaluates an expression, which stands in no file.
    """
    frames = []
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        text = linecache.getline(file, line) if context else ""
        lines, index = ([text], 0) if text else (None, None)
        frames.append(inspect.FrameInfo(frame, file, line, frame.f_code.co_name, lines, index))
        frame = frame.f_back
    return frames
