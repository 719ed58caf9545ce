import inspect

from onnxscript import FLOAT, opset18
from onnxscript._internal.values import TracedOnnxFunction
from tvm.script.parser.core.diagnostics import Source

from .parsed_scripts import frames_of_files


def test_frames_are_those_of_inspect() -> None:
    ours, theirs = frames_of_files(), inspect.getouterframes(inspect.currentframe())
    here = [(frame.filename, frame.function, frame.code_context) for frame in ours[1:] if frame.code_context]
    assert here == [(frame.filename, frame.function, frame.code_context) for frame in theirs[1:] if frame.code_context]
    assert len(ours) == len(theirs)
    (line,) = ours[0].code_context or ()
    assert line.startswith("    ours, theirs = ")


def test_a_text_is_read_once_but_not_where_decorators_would_be_lost() -> None:
    macro = "@T.inline\ndef f():\n    pass"
    assert Source(macro).as_ast() is Source(macro).as_ast()
    nested = f"{macro}\n{macro}"
    assert Source(nested).as_ast() is not Source(nested).as_ast()


def test_the_function_of_a_translation_is_read_once_per_translation() -> None:
    one, other = (TracedOnnxFunction(opset18, function) for function in (_identity, _negated))
    assert one.function_ir is one.function_ir
    assert (one.function_ir.name, other.function_ir.name) == ("_identity", "_negated")


def _identity(x: FLOAT) -> FLOAT:
    return opset18.Identity(x)


def _negated(x: FLOAT) -> FLOAT:
    return opset18.Neg(x)
