"""Errors of runs on several ranks."""

from __future__ import annotations

from unittest import mock

import pytest

from moec.common.errors import MoecError, RoomError
from moec.runtime.program_run import ProgramRun
from moec.runtime.ranks import OneRank


@pytest.mark.parametrize(("ranks", "kind"), [(OneRank(), RoomError), (mock.Mock(), MoecError)])
def test_a_rank_alone_does_not_try_fewer_tokens(ranks, kind):
    run = ProgramRun(mock.Mock(), ranks, mock.Mock())
    with pytest.raises(MoecError, match="no room") as raised:
        run.call(mock.Mock(side_effect=RoomError("no room")))
    assert type(raised.value) is kind
