import inspect

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
