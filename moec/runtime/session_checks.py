"""Checks that a session can do what drafts and prompt caches need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from moec.common.errors import InputError
from moec.runtime.session import Session


def check_drafts(session: Session, *, to_remembered: bool = True) -> None:
    """Raise InputError for a session that cannot compute drafts and forget rejected ones. ``to_remembered``: returning
    to the states before all drafts suffices."""
    with _needed_for("drafts"):
        if session.fixed_length is not None:
            raise InputError(f"the model runs on {session.fixed_length} tokens at a time")
        session.check_truncation(to_remembered=to_remembered)


def check_prompt_cache(session: Session) -> None:
    """Raise InputError for a session whose prompt cannot be kept."""
    with _needed_for("a prompt cache"):
        session.check_saving()
        session.check_truncation(to_remembered=True)


@contextlib.contextmanager
def _needed_for(feature: str) -> Iterator[None]:
    """Context whose InputErrors advise to generate without a feature."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; generate without {feature}") from error
