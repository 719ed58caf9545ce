"""Selection of tokens on a GPU: the same token as the host's for the same logits, options and random number."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from moec.common.dtypes import dtype_of
from moec.common.errors import MoecError
from moec.runtime.sampling import NOT_NUMBERS, Option, Sampling
from moec.targets.gpu.kernels.sample import SampleProblem, sample

from .kernel_runner import build

UNTOUCHED = 99


class Case:
    """Logits [V] of one sequence, what it has seen, and how its next token is chosen."""

    def __init__(self, logits, seed: int = 0, seen=(), number: float | None = None, **options) -> None:
        self.logits = np.asarray(logits, np.float32)
        self.sampling, self._seed, self._number = Sampling(**options, seed=seed), seed, number
        self.seen = np.zeros(self.logits.size, bool)
        self.seen[list(seen)] = True

    def _random(self):
        """Random numbers by the seed, or one that the case gives."""
        if self._number is None:
            return np.random.default_rng(self._seed)
        return SimpleNamespace(random=lambda: self._number)

    @property
    def options(self) -> list[float]:
        return self.sampling.options(self._random())

    @property
    def expected(self) -> int:
        try:
            return self.sampling.choose(self.logits, self.seen, self._random())
        except MoecError:
            return NOT_NUMBERS


def check(kernel, cases, dtype=np.float32) -> None:
    """Compare the tokens that the kernel selects for all cases side by side with the host's."""
    logits = np.stack([case.logits for case in cases])[:, None].astype(dtype)
    logits = np.concatenate([np.full_like(logits, np.nan), logits], axis=1)  # the last position is read
    seen = np.stack([case.seen for case in cases]).astype(np.uint8)
    tokens = np.full(len(cases), UNTOUCHED, np.int64)
    options = np.array([case.options for case in cases])
    weights = np.empty(seen.shape, np.int64)
    marked, _, actual = kernel.outputs(3, logits, options, seen, weights, tokens)
    expected = [case.expected for case in cases]
    assert actual.tolist() == expected
    for row, token in enumerate(expected):
        if token != NOT_NUMBERS:
            seen[row, token] = 1
    np.testing.assert_array_equal(marked, seen)


@pytest.fixture(scope="module")
def of_37():
    return build(sample(SampleProblem(37, "float32")))


RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal(37).astype(np.float32) * 3
TIED = np.round(NORMAL)
ONE = np.full(37, -np.inf)
ONE[20] = -5.0
EXTREMES = {
    "all equal": np.zeros(37),
    "zeros of both signs": np.where(np.arange(37) % 2, 0.0, -0.0),
    "all -inf": np.full(37, -np.inf),
    "all -inf except one": ONE,
    "two inf": np.where(np.arange(37) % 20 == 7, np.inf, NORMAL),
    "largest numbers": NORMAL * 2e37,
    "smallest numbers": NORMAL * 1e-44,
    "NaN": np.where(np.arange(37) == 36, np.nan, NORMAL),
}
OPTIONS = [
    {},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-12},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1e-320},
    {"temperature": 1e300, "top_p": 0.5},
]


CHOICES = [
    *itertools.product((0.3, 1.0, 2.5), (0, 1, 2, 9, 36, 37, 50), (1e-9, 0.3, 0.9, 1.0), (0.0, 0.05), (1.0, 1.7))
]


def case_of(number: int, logits: np.ndarray) -> Case:
    temperature, k, p, least, penalty = CHOICES[number % len(CHOICES)]
    options = {"top_k": k, "top_p": p, "min_p": least, "repetition_penalty": penalty}
    return Case(logits, number, range(0, logits.size, 3), temperature=temperature, **options)


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.nightly)], ids=["some options", "all options"])
def test_the_same_tokens_as_the_host_selects(of_37, every):
    cases = [case_of(number, TIED if number % 2 else NORMAL) for number in range(0, len(CHOICES), every)]
    assert len({case.expected for case in cases}) > 6
    check(of_37, cases)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(1, "float32"), (33, "float16"), (1024, "float32"), (2500, "bfloat16")]
)
def test_vocabularies_of_other_sizes(vocabulary, dtype):
    """A single token, a warp and one more, a whole block, and several steps of a block."""
    random, numbers = np.random.default_rng(vocabulary), dtype_of(dtype)
    cases = []
    for number in range(0, len(CHOICES), 17):
        logits = random.standard_normal(vocabulary).astype(np.float32) * 3
        cases.append(case_of(number, (np.round(logits) if number % 3 else logits).astype(numbers).astype(np.float32)))
    excluded = np.zeros(vocabulary)
    excluded[:-1] = -np.inf
    cases += [Case(excluded, number=number, temperature=1.0) for number in (0.0, 1 - 2**-53)]
    check(build(sample(SampleProblem(vocabulary, dtype))), cases, numbers)


@pytest.mark.parametrize("logits", EXTREMES.values(), ids=EXTREMES)
def test_extreme_logits(of_37, logits):
    check(of_37, [Case(logits, seed, [7, 20], **options) for options in OPTIONS for seed in range(3)])


def test_ties_that_are_too_unlikely_are_not_drawn(of_37):
    """Two of the three tokens that top-k keeps have the least logit, and less than half of the weight of the other."""
    logits = np.where(np.arange(37) == 9, 1.0, 0.0)
    cases = [Case(logits, seed, temperature=1.0, top_k=3, min_p=least) for seed in range(8) for least in (0.5, 0.3)]
    assert {case.expected for case in cases[::2]} == {9} != {case.expected for case in cases[1::2]}
    check(of_37, cases)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}])
def test_the_ends_of_the_draw(of_37, options):
    """The first and the last token have no weight, so that neither the least nor the greatest number draws them."""
    logits = np.concatenate([[-np.inf], np.sort(NORMAL[1:36]), [-np.inf]])
    cases = [Case(logits, number=number, temperature=1.0, **options) for number in (0.0, 1 - 2**-53)]
    assert not {case.expected for case in cases} & {0, 36}
    check(of_37, cases)


def test_a_penalty_changes_what_is_greatest(of_37):
    cases = [Case(NORMAL, 0, [int(NORMAL.argmax())], repetition_penalty=penalty) for penalty in (1.0, 50.0, 1e-30)]
    assert cases[0].expected != cases[1].expected
    check(of_37, cases)


def test_sequences_that_are_not_active_keep_their_tokens(of_37):
    case = Case(NORMAL)
    options = np.array([[0.0] * len(Option), case.options])
    logits, seen = np.stack([NORMAL, NORMAL])[:, None], np.zeros((2, 37), np.uint8)
    marked, _, tokens = of_37.outputs(3, logits, options, seen, np.empty((2, 37), np.int64), np.array([UNTOUCHED] * 2))
    assert tokens.tolist() == [UNTOUCHED, case.expected]
    assert marked.sum() == 1
