"""Inputs on which a block and a proposal for it are compared: rows x [T,d] and logits [T,E]."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moec.passes.raising.block import MOST_TOKENS, Block
from moec.passes.raising.dataflow import Array
from moec.passes.raising.router import RoutingProposal
from moec.passes.raising.symbols import symbols_of

MANY = 300
"""A number of tokens that is large by itself."""
LAYOUT_SHARE = 4
"""Largest number of tokens of a layout, in evaluations, whose budget of tokens is small."""
SMALLEST = 3
"""The least size of a symbol in a layout, so that there is a third of everything."""
WORK = 1 << 32
"""Largest number of multiplications of a trial of many tokens that no decision asks for."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Inputs to compare on. ``extreme``: numbers so large or small that the original itself may overflow; then only the
    other rows are compared. ``long``: the number of tokens is the purpose. ``layout``: the sizes that give these rows,
    if these do not follow from their number."""

    name: str
    x: Array
    logits: Array
    extreme: bool = False
    long: bool = False
    layout: Mapping[str, int] | None = None

    def on(self, block: Block) -> Block:
        """The block in the layout of the trial."""
        return block if self.layout is None else block.laid_out(self.layout)


def sample_rows(T: int, d: int) -> Array:
    """Rows x [T,d] of very different magnitude, so that limits and saturating activations show."""
    return np.random.default_rng(1).normal(size=(T, d)) * np.resize([8.0, 1.0, 0.3, 60.0], T)[:, None]


def driving_logits(T: int, E: int, k: int) -> Array:
    """Logits [T,E] in which token t prefers experts t*k to t*k+k-1 (modulo E)."""
    logits = np.random.default_rng(2).normal(size=(T, E))
    preferred = (np.arange(T)[:, None] * k + np.arange(k)) % E
    np.put_along_axis(logits, preferred, 4 + np.take_along_axis(logits, preferred, 1), axis=1)
    return logits


def trials(block: Block, routing: RoutingProposal) -> Iterator[Trial]:
    """Trials with every expert driven, one expert preferred, ties, one token, no token, many tokens, more tokens than
    any number in a block that counts them; and large and small numbers, which show smooth saturation."""
    E, k, most = block.E, routing.spec.k, block.tokens_at_once()
    random = np.random.default_rng(3)
    yield from _in_parts(block, "every expert", drive_all(block, routing, -(-E // k) + 1))
    yield from _in_parts(block, "one expert preferred", np.zeros((3, E)) + 5 * (np.arange(E) == E - 1))
    yield from _in_parts(block, "ties", random.integers(0, 2, size=(4, E)).astype(float))
    yield from _in_parts(block, "one token", random.normal(size=(1, E)))
    yield from _in_parts(block, "no token", np.zeros((0, E)))
    yield crowd(block, min(2 * E, most))
    yield from _in_parts(block, "many tokens", random.normal(size=(min(most, 4 * E + 1), E)) * 3)
    yield from layout_trials(block)
    yield from counting_trials(block)
    yield from extreme_trials(block, routing)
    yield _magnitudes(block, min(MANY, most, WORK // block.work_per_token()))


def _magnitudes(block: Block, T: int) -> Trial:
    """Rows of all magnitudes, which also reach the range between two limits."""
    random = np.random.default_rng(8)
    start = _trial(block, "rows of all magnitudes", random.normal(size=(max(T, 1), block.E)) * 3)
    sizes = 10 ** random.uniform(-4, 5, size=(len(start.x), 1))
    return dataclasses.replace(start, x=random.normal(size=start.x.shape) * sizes, extreme=True)


def layouts(block: Block) -> list[dict[str, int]]:
    """Two layouts in which all symbols are 3 or more and no two are equal; the smallest of one is the largest of the
    other. Empty if x has one symbol and nothing else has any, because its size is the number of tokens."""
    symbols = [*symbols_of(block.x), *block.other_symbols]
    if len(symbols) < 2 and not block.other_symbols:
        return []
    sizes = range(SMALLEST, SMALLEST + len(symbols))
    return [dict(zip(symbols, order, strict=True)) for order in (sizes, sizes[::-1])]


def is_affordable(block: Block, layout: Mapping[str, int]) -> bool:
    """Whether a trial of such sizes takes no more than :data:`LAYOUT_SHARE` evaluations."""
    return block.rows_of(layout) <= LAYOUT_SHARE * block.tokens_at_once()


def layout_trials(block: Block) -> Iterator[Trial]:
    """A token in every place of a third sequence, row, and picture."""
    for layout in layouts(block):
        if is_affordable(block, layout):
            yield laid_out(block, "several of everything", layout)


def laid_out(block: Block, name: str, layout: Mapping[str, int], seed: int = 9) -> Trial:
    T = block.rows_of(layout)
    logits = np.random.default_rng(seed).normal(size=(T, block.E)) * 3
    return Trial(name, sample_rows(T, block.d), logits, layout=layout)


def counting_trials(block: Block) -> Iterator[Trial]:
    """Trials with more tokens than each number in a block that counts them, if they do not take long: a smooth
    dependency on the number of tokens decides nothing, but shows here."""
    if block.counts_tokens():
        yield from _long_trials(block, min(block.tokens_at_once(), WORK // block.work_per_token()))


def extreme_trials(block: Block, routing: RoutingProposal) -> Iterator[Trial]:
    """Numbers of other magnitudes."""
    logits, rows = _far_base(block, routing)
    yield Trial("large rows", rows * 1e4, logits, extreme=True)
    yield Trial("small rows", rows * 1e-4, logits, extreme=True)
    yield Trial("large logits", rows, logits + 700, extreme=True)
    yield Trial("small logits", rows, logits - 700, extreme=True)


def one_token_per_expert(block: Block, routing: RoutingProposal) -> Iterator[Trial]:
    """Every expert driven, by the fewest possible tokens."""
    return _in_parts(block, "every expert", drive_all(block, routing, -(-block.E // routing.spec.k)))


def crowd(block: Block, T: int) -> Trial:
    logits = np.zeros((T, block.E)) + 5 * (np.arange(block.E) == block.E // 2)
    return _trial(block, "all tokens to one expert", logits)


def _trial(block: Block, name: str, logits: Array) -> Trial:
    """A trial with as many rows as the model needs; if their number is fixed, all of them are compared."""
    step = max(block.row_step, 1)
    logits = np.resize(logits, (-(-len(logits) // step) * step, block.E))
    return Trial(name, sample_rows(len(logits), block.d), logits)


def _in_parts(block: Block, name: str, logits: Array) -> Iterator[Trial]:
    """One trial, or several if one evaluation of the original cannot take so many tokens."""
    size = block.tokens_at_once()
    return (_trial(block, name, logits[start : start + size]) for start in range(0, max(1, len(logits)), size))


def drive_all(block: Block, routing: RoutingProposal, T: int) -> Array:
    """Logits of T tokens or more for which the routing selects every expert that a logit can make it select."""
    return reaching_all(block, routing, driving_logits(T, block.E, routing.spec.k))


def reaching_all(block: Block, routing: RoutingProposal, logits: Array) -> Array:
    """The logits, and further ones for experts that the routing does not select by these."""
    for logit in (8.0, 64.0):  # a correction bias, or groups, may stand against what the logits prefer
        missing = np.setdiff1d(np.arange(block.E), routing.run(block, logits)[1])
        more = np.random.default_rng(5).normal(size=(len(missing), block.E))
        more[np.arange(len(missing)), missing] += logit
        logits = np.concatenate([logits, more])
    return logits


def far_trials(block: Block, routing: RoutingProposal) -> Iterator[Trial]:
    """Trials beyond ordinary ones: rows and logits of every magnitude, more tokens than any number in the block,
    infinities and NaN."""
    logits, rows = _far_base(block, routing)
    for factor in (1e2, 1e4, 1e8, 1e-2, 1e-4, 1e-8, 0.0):
        yield Trial(f"rows times {factor:g}", rows * factor, logits, extreme=True)
    for factor in (1e-2, 1.0, 1e2, 1e4, 1e8):
        for sign in (1, -1):
            yield Trial(f"rows of one sign times {sign * factor:g}", sign * np.abs(rows) * factor, logits, extreme=True)
    for first in (0, 1):
        sparse = rows.copy()
        sparse[:, first::2] = 0
        yield Trial(f"rows with zeros from entry {first} on", sparse, logits, extreme=True)
    for shift in (-8.0, -20.0, -100.0, -700.0, 8.0, 20.0, 100.0, 700.0):
        yield Trial(f"logits moved by {shift:g}", rows, logits + shift, extreme=True)
    for factor in (10.0, 100.0, 1e4, 1e8, -10.0, -1e3, 1e-2, 1e-4, 0.0):
        yield Trial(f"logits times {factor:g}", rows, logits * factor, extreme=True)
    yield from _long_trials(block, block.most_tokens())
    for number in (np.nan, np.inf, -np.inf):
        for place in ("rows", "logits"):
            x, scores = rows.copy(), logits.copy()
            (x if place == "rows" else scores)[0, 0] = number
            yield Trial(f"{number} among the {place}", x, scores, extreme=True)


def combined_trials(block: Block, routing: RoutingProposal, reached: Sequence[Trial]) -> Iterator[Trial]:
    """Rows of one trial with logits of another: a decision may matter only if another one takes its rare side.
    ``reached`` are the trials that were needed to take sides."""
    for trial in reached:
        for shift in (1, 2, 3):
            yield dataclasses.replace(trial, name=f"{trial.name}, turned", x=np.roll(trial.x, shift, axis=0))
    large_rows, _, *far_logits = extreme_trials(block, routing)
    longest = list(counting_trials(block))[-1:]
    for first, other in itertools.product([large_rows, *reached], [*far_logits, *longest, *reached]):
        if first is other:
            continue
        T = max(len(first.x), len(other.x))
        rows, logits = np.resize(first.x, (T, block.d)), np.resize(other.logits, (T, block.E))
        yield Trial(f"{first.name}, {other.name}", rows, logits, extreme=True)


def _far_base(block: Block, routing: RoutingProposal) -> tuple[Array, Array]:
    """Logits and rows to start from: as many tokens that drive experts as one evaluation can take."""
    logits = drive_all(block, routing, -(-block.E // routing.spec.k) + 1)[: block.tokens_at_once()]
    start = _trial(block, "", logits)
    return start.logits, start.x


def _long_trials(block: Block, most: int) -> Iterator[Trial]:
    """Numbers of tokens just beyond and well beyond the numbers in the block, but at most ``most``: for capacities,
    limits of places in a sequence, and (by every second, even number of tokens) of sequences."""
    numbers = {MANY, *(int(abs(number)) for number in block.numbers() if 1 <= abs(number) <= MOST_TOKENS)}
    yield from _long_layouts(block, sorted(numbers), most)
    steps = sorted({T for n in numbers for T in (n + 1, 2 * n + 4, 2 * n + 6)})
    for T in itertools.takewhile(most.__ge__, steps):
        long = _trial(block, "very many tokens", np.random.default_rng(6).normal(size=(T, block.E)))
        yield from (dataclasses.replace(trial, long=True) for trial in (crowd(block, T), long))


def _long_layouts(block: Block, numbers: Sequence[int], most: int) -> Iterator[Trial]:
    """Sizes beyond each number for symbols that the number of tokens does not lengthen: those of x between its first
    and its last, and lengths of other inputs."""
    symbols = symbols_of(block.x)
    usual = dict.fromkeys(symbols, 1) | dict.fromkeys(symbols[-1:], 2) | dict.fromkeys(block.other_symbols, SMALLEST)
    for symbol, number in itertools.product((*symbols[1:-1], *block.other_symbols), numbers):
        layout = {**usual, symbol: number + 1}
        if block.rows_of(layout) <= most:
            yield dataclasses.replace(laid_out(block, "much of one thing", layout, seed=6), long=True)
