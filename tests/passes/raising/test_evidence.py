"""The report of raising says what was tried, both sides of every decision, and what no trial reached."""

from __future__ import annotations

from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE

from .test_unraised import TABLE, model_of, returning_results


def report_of(model) -> Report:
    report = Report()
    RaiseMoE().apply(model, report)
    return report


def test_a_raised_block_names_its_trials_and_both_sides_of_its_decisions(build, texts, normal):
    report = report_of(build(texts["dense"], up=normal(4, 6, 5), down=normal(4, 5, 6)))
    (block,) = report.raised
    assert (block.name, block.reading, block.isomorphic_to) == ("top", "known operators", "")
    assert block.proposal.startswith("router softmax top-2, activation relu")
    trials = {trial.name: trial for trial in block.evidence.trials}
    assert (trials["no token"].tokens, trials["one token"].tokens) == (0, 1)
    assert all(trial.difference <= trial.tolerance for trial in trials.values())
    (relu,) = [decision for decision in block.evidence.decisions if decision.operator == "Relu"]
    assert [(side.condition, side.seen, side.by) for side in relu.sides] == [
        ("input 0 < 0.0", "trial", "every expert"),
        ("input 0 > 0.0", "trial", "every expert"),
    ]
    assert not any(decision.is_open for decision in block.evidence.decisions)
    assert not report.unraised


def test_a_side_that_no_input_takes_is_excluded_by_its_interval(build, texts, normal):
    above = texts["dense"].replace("(a, down)", "(b, down)").replace("    o = ", "    b = Max (a, below)\n    o = ")
    report = report_of(build(above, up=normal(4, 6, 5), down=normal(4, 5, 6), below=normal(1)[0] * 0 - 1))
    (block,) = report.raised
    (bound,) = [decision for decision in block.evidence.decisions if decision.operator == "Max"]
    excluded = [(side.condition, side.by) for side in bound.sides if side.seen == "excluded"]
    assert excluded == [("input 0 < input 1", "input 0 is 0 or more, input 1 is -1")]


def test_a_proposal_that_differs_is_kept_with_its_trial_and_without_decisions(build, texts, normal):
    odd = texts["dense"].replace("Relu (h)", "Sin (h)")
    (miss,) = report_of(build(odd, up=normal(4, 6, 5), down=normal(4, 5, 6))).unraised
    readings = {attempt.reading: attempt for attempt in miss.attempts}
    assert readings["known operators"].proposals > 1 and "differs by" in readings["known operators"].reason
    assert not any(attempt.evidence and attempt.evidence.decisions for attempt in miss.attempts)


def test_where_no_block_is_found_nothing_was_tried():
    (miss,) = report_of(model_of(returning_results(TABLE))).unraised
    assert miss.attempts == () and miss.attempts_left_out == 0
