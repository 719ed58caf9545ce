import onnx_ir as ir
import pytest

from moec.frontend.onnx.size_names import name_sizes, rename_sizes, renamed


def model_with(*shapes):
    values = [ir.Value(name=f"x{i}", shape=ir.Shape(shape)) for i, shape in enumerate(shapes)]
    return ir.Model(ir.Graph(values, values[:1], nodes=[], opset_imports={"": 24}), ir_version=10)


def shapes_of(model):
    return [[dim if isinstance(dim, int) else dim.value for dim in value.shape] for value in model.graph.inputs]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("batch-size", "batch_size"),
        ("batch size", "batch_size"),
        ("N:1", "N_1"),
        ("?", "_"),
        ("2x", "size_2x"),
        ("", "size_"),
        ("a\n*/", "a_"),
    ],
)
def test_what_is_no_name_gets_one_wherever_it_stands(text, name):
    model = model_with([text, 3], ["other", text])
    name_sizes(model)
    assert shapes_of(model) == [[name, 3], ["other", name]]


def test_names_and_expressions_of_names_stay():
    shapes = [["past", "now"], ["past + now", 2], [None, "layer.size"], ["floor(now/2)", "größe"]]
    model = model_with(*shapes)
    name_sizes(model)
    assert shapes_of(model) == shapes


def test_different_sizes_get_different_names():
    model = model_with(["a b", "a_b", "a:b"])
    name_sizes(model)
    assert len(set(shapes_of(model)[0])) == 3


def test_names_that_are_too_long_are_cut_and_stay_different():
    long = "T" * 5000
    model = model_with([long, f"{long}2", "T", long])
    name_sizes(model)
    first, second, short, again = shapes_of(model)[0]
    assert first == again and short == "T"
    assert len({first, second, short}) == 3 and max(len(first), len(second)) < 110


def test_a_name_of_usual_length_is_not_cut():
    name = "past_sequence_length_plus_sequence_length_of_the_decoder"
    model = model_with([name])
    name_sizes(model)
    assert shapes_of(model) == [[name]]


def test_sizes_are_renamed_inside_expressions():
    model = model_with(["s7", 3], ["s7*s70", "s70 + 1"], [None, "s1"])
    rename_sizes(model, {"s7": "batch", "s70": "length"})
    assert shapes_of(model) == [["batch", 3], ["batch*length", "length + 1"], [None, "s1"]]
    assert renamed("s7 % 2 == 0 and s77 <= 9", {"s7": "batch"}) == "batch % 2 == 0 and s77 <= 9"
