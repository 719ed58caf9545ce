"""Programs that compute only the requested logits of the last tokens, equal to those among all logits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import InputError
from moec.runtime.model import CompiledModel

from ..passes.before_after import model_of

IDS = np.array([[1, 2, 3, 4, 0], [4, 4, 0, 1, 2]])
ROUTED = """(int64[B,S] ids, float[B,P,4] past) => (float[B,S,9] logits, float[B,R,4] present)
    <float[5,4] words, float[4] scale, float[4,3] router, float[3,4,4] up, float[3,4,2] down, float[4,9] table,
     float cap = {2}, int64[1] one = {1}, int64[2] flat = {-1, 4}> {
    e = Gather (words, ids) present = Concat <axis = 1> (past, e) total = ReduceSum <keepdims = 1> (present, one)
    x = Add (e, total) normal = RMSNormalization <axis = -1> (x, scale)
    apart = Unsqueeze (normal, one) rows = Reshape (apart, flat) scores = MatMul (rows, router)
    y = moec.MoE <activation = "relu", k = 2> (rows, scores, "", up, down)
    size = Shape (x) tokens = Reshape (y, size) sum = Add (x, tokens) wide = MatMul (sum, table) small = Div (wide, cap)
    bent = Tanh (small) logits = Mul (bent, cap) }"""

EMBEDDED = "e = Gather (words, ids)"


def compiled(text: str) -> CompiledModel:
    return moec.compile(ir.to_proto(model_of(text)))


@pytest.fixture(scope="module")
def routed() -> CompiledModel:
    return compiled(ROUTED)


def rows_of(model: CompiledModel, symbol: str, **options: int) -> int:
    """Count the rows that a kernel computes in a run."""
    calls = []
    executor = model._executor
    arrays = executor._check(model._first_states.beside({"ids": IDS}))

    def note(_function, name, before, _result, *arguments):
        if before and symbol in name:
            calls.append([tuple(argument.shape) for argument in arguments if hasattr(argument, "data_ptr")])

    with executor._program.instrumented(note):
        executor._call(arrays, **options)
    (shapes,) = calls
    return shapes[0][0]


@pytest.mark.parametrize("last", [1, 2, 5])
def test_logits_are_those_among_all(routed: CompiledModel, last: int) -> None:
    whole = routed.run({"ids": IDS})
    actual = routed.run({"ids": IDS}, last=last)
    assert whole["logits"].shape == (2, 5, 9) and actual["logits"].shape == (2, last, 9)
    np.testing.assert_array_equal(actual["logits"], whole["logits"][:, -last:])
    np.testing.assert_array_equal(actual["present"], whole["present"])


def test_what_leads_to_them_is_computed_for_them_alone(routed: CompiledModel) -> None:
    assert rows_of(routed, "moe_route") == 10
    assert rows_of(routed, "moe_route", last=1) == 2


def test_sessions_want_the_last(routed: CompiledModel) -> None:
    first, whole = (routed.run({"ids": ids})["logits"] for ids in (IDS[:, :3], IDS))
    session = routed.session(batch=2)
    np.testing.assert_allclose(session.run(IDS[:, :3]), first[:, 2:], rtol=1e-5, atol=1e-6)
    fork = session.fork()
    np.testing.assert_allclose(session.run(IDS[:, 3:], last=None), whole[:, 3:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fork.run(IDS[:, 3:], last=9), whole[:, 3:], rtol=1e-5, atol=1e-6)


def test_feeding_computes_states_alone(routed: CompiledModel) -> None:
    fed, run = routed.session(batch=2), routed.session(batch=2)
    fed.feed(IDS[:, :3])
    run.run(IDS[:, :3])
    assert fed.length == 3
    np.testing.assert_array_equal(fed.run(IDS[:, 3:], last=None), run.run(IDS[:, 3:], last=None))


@pytest.mark.parametrize("last", [-1, 6])
def test_more_than_there_are(routed: CompiledModel, last: int) -> None:
    with pytest.raises(InputError, match=f"logits of the last {last} tokens are wanted, of 5 that the model is run on"):
        routed.run({"ids": IDS}, last=last)


@pytest.mark.parametrize("last", [0, 1.0, True, "1"])
def test_a_session_is_asked_for_a_number(routed: CompiledModel, last: object) -> None:
    with pytest.raises(InputError, match=r"last is .*; expected a whole number from 1 up"):
        routed.session().run([1], last=last)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "others", "body"),
    [
        ("float[B,S,4] e", "", "logits = MatMul (e, table)"),  # the number of tokens is unknown
        ("int64[B,S] ids", ", float[B,S,9] more", f"{EMBEDDED} logits = MatMul (e, table) more = Neg (logits)"),
        ("int64[B,S] ids", "", f"{EMBEDDED} wide = MatMul (e, table) logits = CumSum (wide, axis)"),
    ],
)
def test_models_without_such_logits(ids: str, others: str, body: str) -> None:
    constants = "<float[5,4] words, float[4,9] table, int64 axis = {1}>"
    model = compiled(f"({ids}) => (float[B,S,9] logits{others}) {constants} {{ {body} }}")
    assert model.artifact.program(None).last is None
