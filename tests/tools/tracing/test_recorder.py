"""Memory of tensors between calls."""

from __future__ import annotations

import types

from moec.tools.tracing.recorder import MemoryRecorder


def tensor(address: int, elements: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(shape=(elements,), dtype="float32", data_ptr=lambda: address)


def record(events):
    """Record (function, result, arguments) one after another."""
    watched = []
    recorder = MemoryRecorder(lambda _function, symbol, before, *_: watched.append((symbol, before)) or 0, lambda: 7)
    for symbol, result, arguments in events:
        recorder(None, symbol, True, None, *arguments)
        recorder(None, symbol, False, result, *arguments)
    return recorder, watched


def test_a_tensor_lives_from_its_first_to_its_last_use():
    first, second, other = tensor(64, 2), tensor(128, 4), tensor(999, 100)
    recorder, watched = record(
        [
            ("vm.builtin.alloc_tensor", first, ()),
            ("gather", None, (other, first)),  # the caller's tensor does not count
            ("vm.builtin.alloc_tensor", second, ()),
            ("add", None, (first, second)),
            ("vm.builtin.alloc_tensor", tensor(64, 1), ()),  # in memory that was the first one's
            ("sub", None, (second, tensor(64, 1))),
            ("cos", None, (tensor(64, 1), 3)),
        ]
    )
    assert recorder.calls == ["gather", "add", "sub", "cos"]
    assert recorder.live_bytes() == [8, 8 + 16, 16 + 4, 4]
    assert recorder.caches == [7] * 4
    assert ("gather", True) in watched and ("vm.builtin.alloc_tensor", False) in watched


def test_a_result_lives_until_the_end():
    result = tensor(64, 1)
    events = [("vm.builtin.alloc_tensor", result, ()), ("f", None, (result,)), ("g", None, ())]
    assert record(events)[0].live_bytes() == [4, 0]
    assert record([*events, ("vm.builtin.make_tuple", None, (result,))])[0].live_bytes() == [4, 4]


def test_a_run_without_calls_has_no_bytes():
    assert record([])[0].live_bytes() == []
