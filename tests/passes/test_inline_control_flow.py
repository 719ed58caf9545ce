from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from moec.ir import interpreter
from moec.ir.dialect import REFUSAL_KEY
from moec.ir.text import parse_model
from moec.passes import pipeline
from moec.passes.framework.base import Report

from .before_after import assert_shown, check

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\nagraph '
PASSES = "infer-shapes,inline-control-flow"
X = np.linspace(-2, 3, 12, dtype=np.float32).reshape(4, 3)
BRANCHES = """<
    then_branch = a () => (float[N,3] p) { p = Neg (x) },
    else_branch = b () => (float[N,3] q) { q = Mul (x, x) }
>"""
COUNTING = """<body = b (int64 i, bool c, float[N,3] v) => (bool d, float[N,3] w, float[N,3] z) {
    f = Cast <to = 1> (i)  w = Add (v, f)  z = Sub (w, x)  d = Identity (c)
}>"""
SUMMING = """body = b (float[3] a, float[3] e) => (float[3] t, float[3] u) { t = Add (a, e)  u = Neg (t) }"""


def loop(trips: int, going: str = "yes") -> str:
    return f"""(float[N,3] x) => (float[N,3] y, float[{trips},N,3] s) <int64 trips = {{{trips}}}, bool yes = {{1}},
        bool no = {{0}}> {{ y, s = Loop (trips, {going}, x) {COUNTING} }}"""


def unchanged(rewrite, text: str, *cases, passes: str = PASSES) -> str:
    """Assert that control flow stays; return the only remark, its reason."""
    report = Report()
    model = rewrite(text, f"{passes},remove-dead-nodes", *cases, report=report)
    (remark,) = report.remarks
    (node,) = model.graph
    assert remark.severity == "warning" and node.metadata_props[REFUSAL_KEY] in remark.message
    assert_shown(model, text)
    return remark.message


@pytest.fixture
def rewrite():
    """The fixture of the other passes with onnxruntime instead of the interpreter: onnx.reference concatenates the scan
    outputs of a Loop, and supports neither axes nor directions of a Scan."""

    def apply(text: str, passes: str, *cases: dict[str, np.ndarray], report: Report | None = None) -> ir.Model:
        model = parse_model(HEADER + text)
        session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()) if cases else None
        pipeline.run(model, pipeline.parse(passes), report, verify_each=True)
        left = any(node.op_type in ("If", "Loop", "Scan") for node in model.graph)
        for case in cases if not left else ():
            actual = interpreter.run(model, case)
            for value, expected in zip(model.graph.outputs, session.run(None, case), strict=True):
                assert actual[value.name].dtype == expected.dtype
                np.testing.assert_array_equal(actual[value.name], expected)
        return model

    return apply


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_branch_of_a_known_condition_stays(condition, rows):
    check(
        f"{PASSES},remove-dead-nodes",
        f"(float[N,3] x) => (float[N,3] y) <bool c = {{{int(condition)}}}> {{ y = If (c) {BRANCHES} }}",
        f"(float[N,3] x) => (float[N,3] y) {{ y = {'Neg (x)' if condition else 'Mul (x, x)'} }}",
        {"x": X[:rows]},
    )


def test_a_condition_that_follows_from_sizes_is_known(rewrite, operators):
    text = f"""(float[4,3] x) => (float[4,3] y) <int64[2] four = {{4, 3}}, int64 zero = {{0}}, int64 n = {{4}}> {{
        s = Shape (x)  g = Gather (s, zero)  c = Equal (g, n)  y = If (c) {BRANCHES} }}"""
    assert "Neg" in (actual := operators(rewrite(text, PASSES, {"x": X}))) and "Where" not in actual


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_of_a_condition_at_run_time_both_branches_are_computed(rewrite, condition, rows):
    for shape, value in (("", np.array(condition)), ("[1]", np.array([condition]))):
        report = Report()
        text = f"(float[N,3] x, bool{shape} c) => (float[N,3] y) {{ y = If (c) {BRANCHES} }}"
        case = {"x": X[:rows], "c": value}
        after = f"""(float[N,3] x, bool{shape} c) => (float[N,3] y) <int64[0] "y.no_axes" = {{}}> {{
            "y.p" = Neg (x)  "y.q" = Mul (x, x)
            "y.condition" = Reshape (c, "y.no_axes")  y = Where ("y.condition", "y.p", "y.q") }}"""
        assert_shown(rewrite(text, PASSES, case, report=report), after)
        assert "both branches are computed" in report.remarks[0].message


@pytest.mark.parametrize(
    ("trips", "results", "is_bound"),
    [("count", "w", True), ("", "w", True), ("count", "w, z", False), ("two", "w", False)],
)
def test_loops_of_a_branch_depend_on_its_condition(rewrite, operators, trips, results, is_bound):
    """Except those that end anyway, and those with slices, of which there would be none."""
    built = ", ".join(f"float[] {name}" for name in results.split(", "))
    text = f"""(float[N] x, bool c, int64 count, float most) => (float[N] y) <bool yes = {{1}}, int64 two = {{2}}> {{
        y = If (c) <
            then_branch = a () => (float[] p) {{ {results.replace("w", "p")} = Loop ({trips}, yes, x) <
                body = step (int64 i, bool g, float[] v) => (bool d, {built}) {{
                    w = Neg (v)  z = Relu (v)  s = ReduceMax <keepdims = 0> (w)  d = Less (s, most) }}> }},
            else_branch = b () => (float[] q) {{ q = Neg (x) }}> }}"""
    actual = operators(rewrite(text, PASSES + "{limit=40}"))
    assert ("Not" in actual, "Where" in actual) == (is_bound, True)


IN_A_BRANCH = """If (c) <then_branch = a () => (float[N,3] r) { r = Identity (p) },
    else_branch = b () => (float[N,3] t) { t = Neg (p) }>"""


@pytest.mark.parametrize("inner", ["Add (v, p)", IN_A_BRANCH])
def test_what_stays_is_as_before_although_bodies_read_what_was_written(rewrite, inner):
    """The loop is in a branch of unequal shapes, and its body reads a value of that branch."""
    text = f"""(float[N,3] x, bool c, int64 n) => (float[M,3] y) <int64[1] zero = {{0}}, bool yes = {{1}}> {{
        y = If (c) <
            then_branch = a () => (float[N,3] q) {{ p = Neg (x)  q = Loop (n, yes, p) <
                body = step (int64 i, bool g, float[N,3] v) => (bool d, float[N,3] w) {{
                    d = Identity (g)  w = {inner} }}> }},
            else_branch = b () => (float[1,3] q) {{ q = ReduceSum (x, zero) }}> }}"""
    assert "expected equal shapes" in unchanged(rewrite, text)


def test_branches_of_other_shapes_stay(rewrite):
    """A Where would broadcast [1,3] to [N,3]."""
    text = """(float[N,3] x, bool c) => (float[M,3] y) <int64[1] zero = {0}> { y = If (c) <
        then_branch = a () => (float[N,3] p) { p = Neg (x) },
        else_branch = b () => (float[1,3] q) { q = ReduceSum (x, zero) }> }"""
    assert "expected equal shapes" in unchanged(rewrite, text, {"x": X, "c": np.array(False)})


@pytest.mark.parametrize("trips", [1, 3])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_loop_becomes_its_steps(rewrite, operators, trips, rows):
    actual = operators(rewrite(loop(trips), PASSES, {"x": X[:rows]}))
    assert actual.count("Add") == trips and "Loop" not in actual


def test_the_number_of_a_step_may_have_an_axis(rewrite, operators):
    text = """(float[N,3] x) => (float[1,3] y) <int64 two = {2}, bool yes = {1}, float[1,3] zero = {0, 0, 0}> {
        y = Loop (two, yes, zero) <body = b (int64[1] i, bool c, float[1,3] v) => (bool d, float[1,3] w) {
            e = Gather (x, i)  w = Add (v, e)  d = Identity (c) }> }"""
    assert operators(rewrite(text, PASSES, {"x": X})).count("Gather") == 2


def test_the_steps_of_a_loop_are_its_body_one_after_the_other():
    carrying = """<body = b (int64 i, bool c, float[N,3] v) => (bool d, float[N,3] w) {
        f = Cast <to = 1> (i)  w = Sub (f, v)  d = Identity (c) }>"""
    check(
        f"{PASSES},fold-constants,simplify,remove-dead-nodes",
        f"""(float[N,3] x) => (float[N,3] y) <int64 two = {{2}}, bool yes = {{1}}> {{
            y = Loop (two, yes, x) {carrying} }}""",
        """(float[N,3] x) => (float[N,3] y) <float "y.f" = {0}, float "y.f_2" = {1}> {
            "y.w" = Sub ("y.f", x)  y = Sub ("y.f_2", "y.w") }""",
    )


def test_a_loop_that_never_runs(rewrite):
    text = loop(0).replace("N,3]", "4,3]")
    after = """(float[4,3] x) => (float[4,3] y, float[0,4,3] s) <float[0,4,3] "y.nothing"> {
        y = Identity (x)  s = Identity ("y.nothing") }"""
    assert_shown(rewrite(text, f"{PASSES},remove-dead-nodes,infer-shapes", {"x": X}), after)


def test_a_loop_that_never_runs_with_scan_outputs_of_unknown_size_stays(rewrite):
    assert "never runs" in unchanged(rewrite, loop(0))


def test_a_loop_ends_where_its_condition_becomes_false(rewrite, operators):
    text = """(float[N] x) => (float[N] y) <bool yes = {1}, int64 three = {3}, int64 trips = {9}> {
        y = Loop (TRIPS, yes, x) <body = b (int64 i, bool c, float[N] v) => (bool d, float[N] w) {
            w = Add (v, v)  d = Less (i, three) }> }"""
    for trips in ("trips", ""):
        assert operators(rewrite(text.replace("TRIPS", trips), PASSES, {"x": X[0]})).count("Add") == 4
    never = text.replace("{1}", "{0}").replace("TRIPS", "")
    assert operators(rewrite(never, f"{PASSES},remove-dead-nodes", {"x": X[0]})) == ["Identity"]


@pytest.mark.parametrize("bound", [-9.0, 3.0, 1e9])
@pytest.mark.parametrize("going", [True, False])
def test_a_condition_at_run_time_ends_a_loop_within_its_trip_count(rewrite, operators, bound, going):
    text = """(float[N] x, float limit, bool going) => (float[N] y) <int64 trips = {4}> {
        y = Loop (trips, going, x) <body = b (int64 i, bool c, float[N] v) => (bool d, float[N] w) {
            w = Add (v, x)  s = ReduceSum <keepdims = 0> (w)  d = Less (s, limit) }> }"""
    for x in (X[0], np.ones(1, np.float32), np.ones(0, np.float32)):
        case = {"x": x, "limit": np.array(bound, np.float32), "going": np.array(going)}
        assert operators(rewrite(text, PASSES, case)).count("Where") == 4


def test_a_condition_at_run_time_without_a_trip_count_or_with_scan_outputs_stays(rewrite):
    case = {"x": X, "going": np.array(True)}
    text = loop(2, "going").replace("(float[N,3] x)", "(float[N,3] x, bool going)")
    assert "scan outputs" in unchanged(rewrite, text, case)
    text = """(float[N] x, bool going) => (float[N] y) { y = Loop (, going, x) <
        body = b (int64 i, bool c, float[N] v) => (bool d, float[N] w) { w = Add (v, x)  d = Not (c) }> }"""
    assert "more than 10 nodes" in unchanged(rewrite, text, passes=PASSES + "{limit=10}")
    text = text.replace("Add (v, x)", "Neg (v)").replace("d = Not (c)", "d = Equal (c, c)")
    assert "no trip count, and 256 steps do not end it" in unchanged(rewrite, text)


def test_what_a_loop_carries_under_a_condition_keeps_its_shape(rewrite):
    text = """(float[N] x, bool going) => (float[M] y) <int64 trips = {2}> {
        y = Loop (trips, going, x) <body = b (int64 i, bool c, float[K] v) => (bool d, float[L] w) {
            w = Concat <axis = 0> (v, v)  d = Not (c) }> }"""
    assert "expected equal shapes" in unchanged(rewrite, text, {"x": X[0], "going": np.array(False)})


def test_what_a_loop_carries_may_grow_where_its_steps_are_known(rewrite, operators):
    text = """(float[N] x) => (float[M] y) <int64 trips = {3}, bool yes = {1}> {
        y = Loop (trips, yes, x) <body = b (int64 i, bool c, float[K] v) => (bool d, float[L] w) {
            w = Concat <axis = 0> (v, v)  d = Identity (c) }> }"""
    assert operators(rewrite(text, PASSES, {"x": X[0]})).count("Concat") == 3


def test_a_trip_count_at_run_time_stays(rewrite):
    text = loop(2).replace("(float[N,3] x)", "(float[N,3] x, int64 count)").replace("Loop (trips", "Loop (count")
    text = text.replace("float[2,N,3] s", "float[K,N,3] s")
    case = {"x": X, "count": np.array(2)}
    assert "known only when the model runs; expected a trip count" in unchanged(rewrite, text, case)


def test_a_loop_larger_than_the_limit_stays(rewrite, operators):
    assert "Loop" not in operators(rewrite(loop(3), PASSES + "{limit=20}", {"x": X}))
    assert "more than 20 nodes" in unchanged(rewrite, loop(6), {"x": X}, passes=PASSES + "{limit=20}")


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("attributes", ["", "scan_input_directions = [1],", "scan_output_directions = [1],"])
def test_a_scan_becomes_its_steps(rewrite, operators, length, attributes):
    text = f"""(float[3] s, float[{length},3] x) => (float[3] y, float[{length},3] z) {{
        y, z = Scan <num_scan_inputs = 1, {attributes} {SUMMING}> (s, x) }}"""
    x = np.resize(X, (length, 3))
    assert operators(rewrite(text, PASSES, {"s": X[0], "x": x})).count("Add") == length


@pytest.mark.parametrize("axes", [(1, 1), (-1, -1), (1, 0)])
def test_a_scan_along_other_axes(rewrite, operators, axes):
    out = "N,4" if axes[1] else "4,N"
    text = f"""(float[N] s, float[N,4] x) => (float[N] y, float[{out}] z) {{
        y, z = Scan <num_scan_inputs = 1, scan_input_axes = [{axes[0]}], scan_output_axes = [{axes[1]}],
            {SUMMING.replace("[3]", "[N]")}> (s, x) }}"""
    assert "Scan" not in operators(rewrite(text, PASSES, {"s": X.T[:, 0], "x": X.T.copy()}))


def test_a_scan_over_nothing(rewrite):
    """onnxruntime cannot run it."""
    text = f"""(float[3] s, float[0,3] x) => (float[3] y, float[0,3] z) {{
        y, z = Scan <num_scan_inputs = 1, {SUMMING}> (s, x) }}"""
    model = rewrite(text, PASSES)
    actual = interpreter.run(model, {"s": X[0], "x": X[:0]})
    np.testing.assert_array_equal(actual["y"], X[0])
    assert actual["z"].shape == (0, 3)


def test_a_scan_over_an_axis_of_unknown_size_stays(rewrite):
    text = f"""(float[3] s, float[T,3] x) => (float[3] y, float[T,3] z) {{
        y, z = Scan <num_scan_inputs = 1, {SUMMING}> (s, x) }}"""
    assert "axes of size T; expected one fixed size" in unchanged(rewrite, text, {"s": X[0], "x": X})
    assert unchanged(rewrite, text, passes=f"{PASSES},inline-control-flow")  # which says it once


def test_control_flow_inside_bodies_follows(rewrite, operators):
    text = """(float[N] x, bool c) => (float[N] y) <int64 two = {2}, bool yes = {1}, int64 one = {1}> {
        y = Loop (two, yes, x) <body = outer (int64 i, bool g, float[N] v) => (bool h, float[N] w) {
            h = Identity (g)
            n = Add (i, one)
            u = Loop (n, yes, v) <body = inner (int64 j, bool k, float[N] a) => (bool l, float[N] b) {
                l = Identity (k)
                b = If (c) <then_branch = p () => (float[N] d) { d = Add (a, v) },
                            else_branch = q () => (float[N] e) { e = Mul (a, x) }> }>
            w = Neg (u) }> }"""
    cases = [{"x": X[0], "c": np.array(flag)} for flag in (True, False)]
    actual = operators(rewrite(text, PASSES, *cases))
    assert (actual.count("Where"), actual.count("Neg")) == (3, 2) and not {"If", "Loop"} & set(actual)


def test_a_branch_may_be_a_constant_or_a_value_twice(rewrite, operators):
    text = """(float[2] x, bool c) => (float[2] y, float[2] z) {
        y, z = If (c) <then_branch = a () => (float[2] p, float[2] q) {
            p = Constant <value = float[2] {1.0, 2.0}> ()  q = Identity (p) },
            else_branch = b () => (float[2] r, float[2] s) { r = Neg (x)  s = Identity (x) }> }"""
    cases = [{"x": X[0, :2], "c": np.array(flag)} for flag in (True, False)]
    assert "If" not in operators(rewrite(text, PASSES, *cases))
    known = text.replace("bool c)", "bool u)").replace("float[2] z)", "float[2] z) <bool c = {1}>")
    assert "If" not in operators(rewrite(known, PASSES, {"x": X[0, :2], "u": np.array(True)}))
