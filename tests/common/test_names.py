import onnx_ir as ir

from moec.common.names import node_name, operator_name


def test_a_node_without_a_name_is_called_by_its_first_named_output_or_its_operator():
    node = ir.node("Add", [None, None], num_outputs=1)
    assert node_name(node) == "Add"
    node.outputs[0].name = "sum"
    assert node_name(node) == "sum"
    node.name = "residual"
    assert node_name(node) == "residual"


def test_a_name_stays_inside_a_comment_of_generated_code():
    assert node_name(ir.node("Add", [None, None], name="layer.0/ffn:*[x] ä")) == "layer.0/ffn:*[x] ä"
    assert node_name(ir.node("Add", [None, None], name='a\n#b */ """ \\')) == "a_#b _ ___ _"


def test_only_operators_outside_the_default_domain_carry_their_domain():
    assert operator_name(ir.node("Add", [None, None])) == "Add"
    assert operator_name(ir.node("Route", [None], domain="moec")) == "moec.Route"
