from __future__ import annotations

import pytest

from moec.ir.text import parse_model
from moec.passes import pipeline

CONSTANTS = "bool yes = {1}, int64 one = {1}, int64 zero = {0}, int64[1] axis = {0}"


def shapes(results: str, text: str) -> list[list[str] | None]:
    """The shapes of values of a graph of x [N,4], z [M,4], a count n and a flag c. ``results``: their types and
    names."""
    graph = f"(float[N,4] x, float[M,4] z, int64 n, bool c) => ({results}) <{CONSTANTS}> {{ {text} }}"
    model = parse_model(f'<ir_version: 10, opset_import: ["" : 23]> agraph {graph}')
    pipeline.run(model, pipeline.parse("infer-shapes,fold-shapes"))
    return [None if value.shape is None else [str(size) for size in value.shape] for value in model.graph.outputs]


def loop(
    step: str, state: str = "float[A,B] v", carried: str = "x", trips: str = "n", results: str = "bool d, float[] w"
):
    return f"Loop ({trips}, yes, {carried}) <body = step (int64 i, bool g, {state}) => ({results}) {{ {step} }}>"


def is_new(size: str) -> bool:
    """Whether nobody but inference names this size."""
    return size.startswith("count_")


@pytest.mark.parametrize("step", ["w = Tanh (v)", "w = Add (v, x)", "t = Transpose (v)  w = Transpose (t)"])
def test_a_state_keeps_its_shape(step):
    assert shapes("float[] y", f"y = {loop(f'd = Identity (g)  {step}')}") == [["N", "4"]]


@pytest.mark.parametrize("step", ["w = Concat <axis = 0> (v, v)", "w = Concat <axis = 0> (v, x)"])
def test_an_axis_that_a_step_changes_is_of_a_size_that_is_not_known(step):
    ((rows, width),) = shapes("float[] y", f"y = {loop(f'd = Identity (g)  {step}')}")
    assert is_new(rows) and width == "4"


def test_a_state_of_other_rank_has_no_shape():
    assert shapes("float[] y", f"y = {loop('d = Identity (g)  w = Unsqueeze (v, axis)')}") == [None]


def test_states_that_take_turns_change_what_differs():
    text = loop(
        "d = Identity (g)  w = Identity (u)  t = Identity (v)",
        "float[] v, float[] u",
        "x, z",
        results="bool d, float[] w, float[] t",
    )
    (first, second) = shapes("float[] y, float[] q", f"y, q = {text}")
    assert is_new(first[0]) and is_new(second[0]) and first[0] != second[0] and first[1] == second[1] == "4"
    same = shapes("float[] y, float[] q", f"y, q = {text.replace('x, z', 'x, x')}")
    assert same == [["N", "4"], ["N", "4"]]


def test_a_change_reaches_the_last_of_many_states():
    """Each step tells about one more of them."""
    states = ", ".join(f"float[] v{number}" for number in range(6))
    built = ", ".join(["bool d", *(f"float[] w{number}" for number in range(6))])
    steps = "  ".join(f"w{number} = Identity (v{number + 1})" for number in range(5))
    text = loop(
        f"d = Identity (g)  {steps}  w5 = Concat <axis = 0> (v5, x)", states, ", ".join(["x"] * 6), results=built
    )
    actual = shapes(", ".join(f"float[] y{number}" for number in range(6)), f"y0, y1, y2, y3, y4, y5 = {text}")
    assert all(is_new(rows) and width == "4" for rows, width in actual)
    assert len({rows for rows, _ in actual}) == 6


@pytest.mark.parametrize("grows", [False, True])
def test_a_loop_in_a_loop(grows):
    inner = "Concat <axis = 0> (a, v)" if grows else "Add (a, v)"
    step = f"""d = Identity (g)  w = Loop (n, yes, v) <
        body = inner (int64 j, bool k, float[] a) => (bool l, float[] b) {{
        l = Identity (k)  b = {inner} }}>"""
    ((rows, width),) = shapes("float[] y", f"y = {loop(step)}")
    assert (is_new(rows) if grows else rows == "N") and width == "4"


@pytest.mark.parametrize(("branch", "keeps"), [("Neg (v)", True), ("Concat <axis = 0> (v, v)", False)])
def test_a_branch_in_a_loop(branch, keeps):
    step = f"""d = Identity (g)  w = If (c) <then_branch = yes () => (float[] p) {{ p = {branch} }},
        else_branch = no () => (float[] q) {{ q = Relu (v) }}>"""
    ((rows, width),) = shapes("float[] y", f"y = {loop(step)}")
    assert is_new(rows) != keeps and width == "4"


def test_only_the_branch_of_a_known_condition_counts():
    step = """d = Identity (g)  w = If (yes) <then_branch = yes () => (float[] p) { p = Neg (v) },
        else_branch = no () => (float[] q) { q = Unsqueeze (v, axis) }>"""
    assert shapes("float[] y", f"y = {loop(step)}") == [["N", "4"]]


@pytest.mark.parametrize(
    ("trips", "condition", "shape"),
    [
        ("m", "Identity (g)", True),
        ("m", "Identity (yes)", True),
        ("n", "Identity (g)", False),
        ("m", "Less (i, n)", False),
    ],
)
def test_slices_are_as_many_as_steps(trips, condition, shape):
    text = loop(
        f"d = {condition}  w = Neg (v)  s = ReduceSum <keepdims = 0> (w, axis)",
        trips=trips,
        results="bool d, float[] w, float[] s",
    )
    _, (count, width) = shapes("float[] y, float[] s", f"h = Shape (z)  m = Gather (h, zero)  y, s = {text}")
    assert (count == "M" if shape else is_new(count)) and width == "4"


def test_sizes_of_a_step_have_other_names_outside():
    """Elements that are not zero are others in every step."""
    text = loop(
        "d = Identity (g)  w = Neg (v)  s = NonZero (w)  t = Shape (s)",
        results="bool d, float[] w, int64[] s, int64[] t",
    )
    _, (_, _, actual), (_, length) = shapes("float[] y, int64[] s, int64[] t", f"y, s, t = {text}")
    assert is_new(actual) and length == "2"


@pytest.mark.parametrize(("axis", "expected"), [(0, ["N", "4", "M"]), (1, ["4", "N", "M"]), (-1, ["4", "M", "N"])])
def test_slices_of_a_scan(axis, expected):
    text = f"""y, s = Scan <num_scan_inputs = 1, scan_output_axes = [{axis}],
        body = step (float[] a, float[] e) => (float[] t, float[] u) {{
            b = Add (a, e)  t = Identity (b)  p = Transpose (b)  u = Identity (p) }}> (z, x)"""
    assert shapes("float[] y, float[] s", text) == [["M", "4"], expected]


def test_names_that_a_body_declares_are_not_those_outside():
    """A state of N rows there is one of any number."""
    text = loop("d = Identity (g)  w = Concat <axis = 0> (v, z)", "float[N,4] v", results="bool d, float[N,4] w")
    ((rows, _),) = shapes("float[R,4] y, float[] r", f"y = {text}  r = Neg (y)")[:1]
    assert rows == "R"
    ((rows, _),) = shapes("float[] y", f"y = {text}")
    assert is_new(rows)


def test_shapes_inside_stay_as_they_are_declared():
    model = parse_model(
        f"""<ir_version: 10, opset_import: ["" : 23]> agraph (float[N,4] x, int64 n) => (float[] y)
        <bool yes = {{1}}> {{ y = {loop("d = Identity (g)  w = Neg (v)")} }}"""
    )
    pipeline.run(model, pipeline.parse("fold-shapes"))
    (node,) = model.graph
    assert [str(size) for size in node.attributes["body"].as_graph().inputs[2].shape] == ["A", "B"]
