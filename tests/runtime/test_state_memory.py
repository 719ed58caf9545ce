"""Memory of states of which only the entries of a window are kept: what is released, when, and what that forbids."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.specs import HeldState
from moec.runtime.held import PAGE
from moec.runtime.state_memory import StateMemory

SHAPE = (1, 2, 0, 4)


def memory_of(*windows: int, tokens: int | None = None) -> StateMemory:
    states = [HeldState(f"s{at}", f"n{at}", 2, "float32", "n", window=window) for at, window in enumerate(windows)]
    return StateMemory(states, {state.input: SHAPE for state in states}, tokens)


def grown(memory: StateMemory, growth: int) -> None:
    """Append entries whose numbers are their places in the sequence."""
    growths = dict.fromkeys(memory.lengths, growth)
    memory.pages(growths)
    for name, length in memory.lengths.items():
        places = np.arange(length, length + growth)
        kept = places - memory.released[name]
        memory._pages[name][kept // PAGE, :, :, kept % PAGE] = places[:, None, None, None]
    with memory.growing(growths):
        pass


def entries(memory: StateMemory, name: str) -> np.ndarray:
    """The numbers that lie in pages, one for each entry."""
    pages = memory._pages[name][:, 0, 0, :, 0].ravel()
    return pages[: memory.lengths[name] - memory.released[name]]


def sees_its_window(memory: StateMemory, name: str, window: int) -> bool:
    kept, length, released = entries(memory, name), memory.lengths[name], memory.released[name]
    return released <= max(0, length + 1 - window) and (kept == np.arange(released, length)).all()


@pytest.mark.parametrize("window", [1, 5, PAGE - 1, PAGE, PAGE + 1, 1000])
def test_the_entries_of_a_window_stay_in_order_while_others_are_released(window):
    memory, random = memory_of(0, window), np.random.default_rng(window)
    for growth in random.choice([1, 1, 7, 200, 512], 60):
        grown(memory, int(growth))
        assert sees_its_window(memory, "s1", window) and memory.released["s1"] % PAGE == 0
    assert memory.released["s0"] == 0 and len(entries(memory, "s0")) == memory.lengths["s0"]
    assert memory.released["s1"] > 0
    assert memory._pages["s1"].shape[0] == -(-(window + 512) // PAGE) + 1


def test_nothing_is_released_while_all_of_a_window_is_not_there():
    memory = memory_of(2000)
    for _ in range(4):
        grown(memory, 500)
    assert memory.released == {"s0": 0} and memory.shortest == 0


def test_memory_of_one_long_run_is_given_back():
    memory = memory_of(100)
    grown(memory, 9000)
    assert memory._pages["s0"].shape[0] == 36 and memory.released["s0"] == 0
    grown(memory, 1)
    assert memory._pages["s0"].shape[0] == 4 and memory.released["s0"] == (9000 - 99) // PAGE * PAGE
    assert sees_its_window(memory, "s0", 100) and memory.bytes_in_use == 2 * PAGE * 2 * 4 * 4
    steady = memory._pages["s0"]
    for _ in range(2000):
        grown(memory, 1)
    assert memory._pages["s0"] is steady and sees_its_window(memory, "s0", 100)


def test_runs_that_were_provided_for_move_nothing():
    memory = memory_of(100)
    grown(memory, 900)
    memory.reserve(400)
    pages, released = memory._pages["s0"], dict(memory.released)
    grown(memory, 200)
    grown(memory, 200)
    assert memory._pages["s0"] is pages and memory.released == released
    grown(memory, 512)
    assert memory.released != released and sees_its_window(memory, "s0", 100)


def test_the_last_run_can_be_forgotten_and_little_more():
    memory = memory_of(0, 100)
    assert memory.shortest == 0
    for _ in range(12):
        grown(memory, 400)
        assert memory.shortest <= memory.lengths["s1"] - 400
    assert memory.shortest == memory.released["s1"] + 99 > 3900
    memory.truncate(memory.shortest)
    grown(memory, 3)
    assert sees_its_window(memory, "s1", 100)
    memory.truncate(0)
    assert memory.released == {"s0": 0, "s1": 0} and memory.shortest == 0


def test_a_copy_keeps_what_the_original_releases():
    memory = memory_of(70)
    grown(memory, 800)
    copy = memory.copy()
    for _ in range(3):
        grown(memory, 500)
    assert copy.released == {"s0": 0} and (entries(copy, "s0") == np.arange(800)).all()
    grown(copy, 900)
    assert sees_its_window(copy, "s0", 70) and sees_its_window(memory, "s0", 70)


def test_no_more_memory_than_for_all_tokens_of_a_short_session():
    assert memory_of(100, tokens=PAGE)._pages["s0"].shape[0] == 1
    assert memory_of(100, tokens=100 * PAGE)._pages["s0"].shape[0] == 4
    assert memory_of(0, tokens=100 * PAGE)._pages["s0"].shape[0] == 100


@pytest.mark.parametrize("length", [1, 99, 355, 356, 900, 2500])
def test_saved_pages_are_those_that_the_next_token_sees(length):
    memory, other = memory_of(0, 100), memory_of(0, 100)
    for _ in range(length // 50):
        grown(memory, 50)
    grown(memory, length % 50)
    saved = memory.saved()
    other.load(saved, length)
    assert saved["s1"].shape[0] == -(-length // PAGE) - max(0, length - 99) // PAGE
    assert (entries(other, "s0") == np.arange(length)).all() and sees_its_window(other, "s1", 100)
    grown(other, 600)
    assert sees_its_window(other, "s1", 100)
