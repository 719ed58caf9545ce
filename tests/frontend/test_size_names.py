import onnx_ir as ir
import pytest

from moec.frontend.size_names import name_sizes


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
