"""Two works take turns, in one order, and an error of either ends both."""

from __future__ import annotations

import threading

import pytest

from moec.runtime.baton import Baton


def steps(baton: Baton, name: str, count: int, said: list[str]) -> str:
    for number in range(count):
        said.append(f"{name}{number}")
        baton.pass_on()
    return name


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [(2, 2, "a0 b0 a1 b1"), (3, 1, "a0 b0 a1 a2"), (1, 3, "a0 b0 b1 b2"), (0, 2, "b0 b1"), (2, 0, "a0 a1"), (0, 0, "")],
)
def test_works_alternate_until_one_ends(first, second, order):
    baton, said = Baton(), []
    results = baton.in_turn(lambda: steps(baton, "a", first, said), lambda: steps(baton, "b", second, said))
    assert (results, " ".join(said)) == (("a", "b"), order)


def test_a_baton_is_used_again_and_does_nothing_between():
    baton, said = Baton(), []
    for _ in range(2):
        baton.in_turn(lambda: steps(baton, "a", 1, said), lambda: steps(baton, "b", 1, said))
        baton.pass_on()
    assert said == ["a0", "b0"] * 2


@pytest.mark.parametrize("failing", ["a", "b"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_of_one_ends_both_and_is_raised(failing, kind):
    baton, said = Baton(), []

    def work(name: str) -> str:
        steps(baton, name, 2, said)
        if name == failing:
            raise kind("of " + name)
        return steps(baton, name, 5, said)

    before = threading.active_count()
    with pytest.raises(kind, match="of " + failing):
        baton.in_turn(lambda: work("a"), lambda: work("b"))
    assert len(said) == (4 if failing == "a" else 5), "the other one does not go on"
    assert threading.active_count() == before
    assert baton.in_turn(lambda: 1, lambda: 2) == (1, 2)
