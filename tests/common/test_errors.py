from __future__ import annotations

import errno

import pytest
from onnx import TensorProto, helper

import moec
from moec.common.errors import DefectError, InputError, MoecError, UnsupportedError, reporting
from moec.passes.remove_dead_nodes import RemoveDeadNodes


def message_of(kind, error, source=None):
    with pytest.raises(kind) as caught, reporting("step", source):
        raise error
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_stays_what_it_is_and_gets_the_file():
    assert message_of(UnsupportedError, UnsupportedError("no")) == "no"
    assert message_of(UnsupportedError, UnsupportedError("no"), "a.onnx") == "a.onnx: no"
    assert message_of(InputError, InputError("a.onnx: no"), "a.onnx") == "a.onnx: no"
    assert message_of(MoecError, MoecError("no"), object()) == "no"


def test_what_nobody_expected_is_a_defect_with_its_cause():
    cause = ValueError("two\nlines")
    with pytest.raises(DefectError) as caught, reporting("step", "a.onnx"):
        raise cause
    assert str(caught.value).startswith("a.onnx: step: ValueError: two lines; this is a defect of moec: report it")
    assert caught.value.__cause__ is cause


def test_memory_that_cannot_be_had_is_no_defect():
    assert message_of(MoecError, MemoryError("Unable to allocate 8 EiB")).startswith("step: there is not enough memory")


def test_a_refusal_of_the_system_is_no_defect():
    error = OSError(errno.ENAMETOOLONG, "File name too long", "a.onnx")
    assert message_of(MoecError, error) == "step: a.onnx: cannot be used: File name too long"
    assert message_of(MoecError, OSError(errno.ENOSPC, "No space left")) == "step: the system refuses: No space left"


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file", "a.onnx"), OSError("no number")])
def test_any_other_error_of_the_system_is_a_defect(error):
    assert f"step: {type(error).__name__}: " in message_of(DefectError, error)


def test_our_own_error_is_found_behind_that_of_a_library():
    outer = RuntimeError("callback failed")
    outer.__cause__ = InputError("the reason")
    assert message_of(InputError, outer) == "the reason"


def test_an_error_that_is_its_own_cause_is_a_defect():
    with pytest.raises(DefectError, match="step: ValueError: circle"), reporting("step"):
        error = ValueError("circle")
        error.__cause__ = error
        raise error


def test_interruptions_and_success_pass():
    with reporting("step"):
        pass
    with pytest.raises(KeyboardInterrupt), reporting("step"):
        raise KeyboardInterrupt


def stumble_over_neg(_self, model, _report):
    for node in model.graph:
        assert node.op_type != "Neg"
    return False


@pytest.mark.parametrize("operator", ["Neg", "Relu"])
def test_a_defect_in_a_pass_names_file_pass_and_node(tmp_path, monkeypatch, operator):
    monkeypatch.setattr(RemoveDeadNodes, "apply", stumble_over_neg)
    nodes = [helper.make_node("Abs", ["x"], ["a"], "first"), helper.make_node(operator, ["a"], ["y"], "second")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    path = tmp_path / "m.onnx"
    path.write_bytes(
        helper.make_model(
            helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 24)]
        ).SerializeToString()
    )
    if operator == "Relu":
        moec.compile(path, passes="remove-dead-nodes")
        return
    with pytest.raises(DefectError) as caught:
        moec.compile(path, passes="remove-dead-nodes")
    assert str(caught.value).startswith(f"{path}: remove-dead-nodes: node 'second' (Neg): AssertionError")


def test_of_long_names_the_ends_are_shown():
    name = "n" * 5_000 + "m" * 5_000
    message = str(UnsupportedError(f"node '{name}' (MatMul): has no kernel"))
    assert len(message) < 500 and message.endswith("mmm' (MatMul): has no kernel") and "nn...mm" in message
    assert len(str(MoecError("a name of words " * 1_000))) <= 4_000
    short = f"node {'n' * 300} is refused"
    assert str(MoecError(short)) == short
