import onnx_ir as ir

from moec.passes.graph.edits import FreshNames, fresh_name


def _graph() -> ir.Graph:
    x, constant = ir.Value(name="x"), ir.Value(name="c", const_value=ir.tensor([1.0], name="c"))
    node = ir.node("Add", [x, constant])
    node.outputs[0].name = "y"
    return ir.Graph([x], node.outputs, nodes=[node], initializers=[constant], opset_imports={"": 21})


def test_name_that_nothing_has_is_given_unchanged() -> None:
    assert fresh_name(_graph(), "z") == "z"


def test_names_of_inputs_constants_and_nodes_are_not_given_again() -> None:
    assert [fresh_name(_graph(), wish) for wish in "xcy"] == ["x_2", "c_2", "y_2"]


def test_name_that_was_given_is_not_given_again() -> None:
    names = FreshNames(_graph())
    assert [names.new(wish) for wish in ("z", "z", "z_2", "z")] == ["z", "z_2", "z_2_2", "z_3"]


def test_many_names_read_the_graph_once() -> None:
    """A graph of n nodes that each get a name would otherwise take the square of n."""
    reads = 0

    class Counted(ir.Graph):
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal reads
            reads += 1
            return super().__iter__()

    names = FreshNames(Counted([], [], nodes=[], opset_imports={"": 21}))
    assert len({names.new("z") for _ in range(100)}) == 100
    assert reads == 1
