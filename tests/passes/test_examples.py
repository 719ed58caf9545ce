"""Examples in the documentation of passes, each run by its pass."""

from __future__ import annotations

import re

import pytest

from moec.common.errors import MoecError
from moec.passes import PASSES, pipeline
from moec.passes.remove_dead_nodes import RemoveDeadNodes
from moec.placing.metadata import layers_of, planned_layers
from moec.placing.plan import ExpertPlan

from .before_after import check, examples, model_of
from .profiles import write_measured, write_routed


@pytest.mark.parametrize("name", PASSES)
def test_examples(name, tmp_path):
    actual = list(examples(PASSES[name]().__doc__ or ""))
    assert actual, f"{name}: its docstring has no example; give a graph before, an arrow, and the graph after"
    for before, passes, after in actual:
        if passes is not None and "PROFILE" in passes:
            path, model = tmp_path / "profile", model_of(before)
            if "logits =" in before:
                write_routed(path, model)
            else:
                write_measured(path, model, "int8+int4/32+int2/32")
            passes = passes.replace("PROFILE", str(path))
        if passes is not None and "PLAN" in passes:
            planned = ExpertPlan(planned_layers(layers_of(model_of(before))))
            (tmp_path / "plan.json").write_text(planned.text())
            passes = passes.replace("PLAN", str(tmp_path / "plan.json"))
        refusal = re.fullmatch(r"\s*MoecError: (.*)", after)
        if refusal is None:
            check(passes or name, before, after)
        else:
            with pytest.raises(MoecError, match=re.escape(refusal[1])):
                pipeline.run(model_of(before), pipeline.parse(passes or name))


def test_another_graph_is_noticed():
    graph = "(float[T] x) => (float[T] y) { a = Relu (x) y = Exp (a) }"
    check("remove-dead-nodes", graph)
    for other in ("{ a = Relu (x) y = Neg (a) }", "{ b = Relu (x) y = Exp (b) }", "{ y = Exp (x) }"):
        with pytest.raises(AssertionError):
            check("remove-dead-nodes", graph, "(float[T] x) => (float[T] y) " + other)


def test_a_pass_that_changes_results_is_noticed(monkeypatch):
    def negate(_pass, model, _report):
        model.graph.node(0).op_type = "Neg"
        return True

    monkeypatch.setattr(RemoveDeadNodes, "apply", negate)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(
            "remove-dead-nodes",
            "(float[T] x) => (float[T] y) { y = Relu (x) }",
            "(float[T] x) => (float[T] y) { y = Neg (x) }",
        )


def test_examples_are_found():
    text = """Does things.

    ::

        a
            fold-shapes,simplify ->
        b

    and nothing here::

        c

    """
    (actual,) = examples(text)
    assert [part and part.strip() for part in actual] == ["a", "fold-shapes,simplify", "b"]
