"""Python's collector of cyclic garbage, paused or called less often while many lasting objects are made."""

from __future__ import annotations

import gc

import pytest

from moec.common.garbage import collect_less_often, no_collection


def test_garbage_is_collected_again_where_what_was_done_fails():
    with pytest.raises(ValueError, match="an import"), no_collection():
        assert not gc.isenabled()
        raise ValueError("an import")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_process_that_asked_collects_less_often():
    before = gc.get_threshold()
    try:
        gc.set_threshold(700)
        collect_less_often()
        assert gc.isenabled() and gc.get_threshold()[0] == 10_000
    finally:
        gc.set_threshold(*before)
