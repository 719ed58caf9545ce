"""Reasons why a block is not raised."""

from __future__ import annotations

from collections.abc import Sequence

from moec.passes.framework.evidence import Attempt


class NotUnderstoodError(Exception):
    """The block looks like a mixture of experts, but something in it is beyond the dialect or beyond the matchers.

    ``difference``: the distance of the nearest proposal from the block on a few tokens; infinite if there was no
    proposal.
    ``resembles``: nothing was tried, because the graph only resembles a mixture of experts. ``undecided``: a proposal
    agreed on all trials, but a decision of the block was never seen whole. ``is_mixture``: the block computes a sum of
    its experts' results, weighted by its router, whatever the experts are. ``attempts``: what was tried on the blocks
    around it.
    """

    attempts: tuple[Attempt, ...] = ()

    def __init__(
        self,
        reason: str,
        difference: float = float("inf"),
        *,
        resembles: bool = False,
        undecided: bool = False,
        is_mixture: bool = False,
    ) -> None:
        super().__init__(reason)
        self.difference = difference
        self.resembles = resembles
        self.undecided = undecided
        self.is_mixture = is_mixture


class NoResultError(NotUnderstoodError):
    """No value of the block holds the result of some expert."""


class NoRouterError(NotUnderstoodError):
    """No known router makes the weights of a block."""


def left_out(experts: Sequence[int], E: int, *, traced: bool) -> str:
    """Remark on experts that add nothing to y. ``traced``: experts were written one by one."""
    more = f" (nor do {len(experts) - 1} others)" if len(experts) > 1 else ""
    problem = f"of {E} experts expert {experts[0]} adds nothing to y{more}"
    if not traced:
        return problem
    return (
        f"{problem}; an export by tracing leaves out experts that no "
        "token of the trace reached: if the model has them, export again with an input that reaches every expert"
    )
